//! `lloco`: the decoder compresses a document into summary vectors, offline, and answers from those.
//!
//! Sources: LLoCO (Tan et al. 2024, arXiv 2404.07979) and its code; AutoCompressors (Chevalier et al. 2023, arXiv
//! 2305.14788). A document is cut into segments of 1536 tokens. Segment by segment the decoder reads
//! `[summary vectors of all segments before] [segment] [50 summary tokens]`, and its last states at the summary tokens are the
//! segment's summary vectors. The vectors of a whole document are kept, by document and compressor, and every question about
//! it is answered from `[summary vectors] [instruction]` by the decoder with a LoRA of the document's domain.
//! Cost of a document of T tokens in segments of c that become s vectors: N = T / c passes over c + 2 s positions each (the
//! keys and values of vectors before are kept), which attend to at most s N more: O(T c + s T N) in attention, once; each question then O((s N + q)^2) for q tokens of prompt. Memory: O(c + s N) positions
//! while compressing, O(s N) for an answer; 50 x D numbers for each segment in the store.
//!
//! Trained parameters at Llama-2-7B: LLoCO's LoRA (rank 8 on q, k, v, o) has 8.4 million; AutoCompressors' (rank 16 on the
//! same, and 50 summary embeddings) 17 million.
//!
//! Ours: compressor and answering LoRA are trained together on the answers and on restating segments, on the instruction
//! model itself (AutoCompressors are trained to predict the next segments of 15 billion tokens, LLoCO then trains its LoRA
//! only, which `train_compressor = false` does); every summary vector gets the answer's gradient, and what compression steps
//! hand to each other is cut between groups of `bptt_segments` of them (2, as theirs); positions count through vectors, segment
//! and summary tokens; one learned number scales summary vectors, started so that they are as long as embeddings
//! (their models learn that over billions of tokens). Retrieval of documents is not part of it: a prompt has its context.

mod model;
mod store;
#[cfg(test)]
mod tests;

pub use model::{Compressor, LlocoConfig, LlocoModel, METHOD};

use crate::decoder::{Decoder, DecoderBackend, Draft, Method, Prepared, WINDOW};
use crate::trained;
use candle_core::Tensor;
use e2llm::checkpoint::weights_hash;
use e2llm::{E2llmConfig, PromptIds, PromptStyle};
use e2llm_backend::{
    BackendError, BackendSpec, BuildContext, ErrorKind, Fingerprint, OptionSpec, Prompt, Usage,
};
use e2llm_lm::{DecoderFiles, Llama, LmError, Precision, Segment, TensorSpec};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use store::Store;

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: METHOD,
        description: "the decoder compresses the context into summary vectors, offline (trained)",
        source: "LLoCO, arXiv 2404.07979; AutoCompressors, arXiv 2305.14788",
        needs_model: true,
        options: &[
            OptionSpec {
                name: "store",
                default: "",
                help: "folder that documents' summary vectors are kept in; default: only the latest 64, in memory",
            },
            WINDOW,
        ],
        build: |context| {
            let method = Lloco::new(context)?;
            Ok(Box::new(DecoderBackend::new(METHOD, "none", method, context)?))
        },
    }
}

/// The method, whose compressor comes with the decoder.
struct Lloco {
    context: BuildContext,
    config: LlocoConfig,
    trained: bool,
    specs: Vec<TensorSpec>,
    tensors: Option<BTreeMap<String, Tensor>>,
    eos: Option<u32>,
    compressor: Option<(Compressor, Mutex<Store>)>,
    style: E2llmConfig,
}

impl Lloco {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let opened = trained::open::<LlocoConfig>(context, METHOD)?;
        let config = opened.settings;
        config.check().map_err(|e| BackendError::failed(&LmError::Input(e)))?;
        let decoder = context.model.decoder.as_ref().ok_or_else(|| trained::no_part(METHOD, "a decoder"))?;
        let files = DecoderFiles::open(decoder)?;
        let specs = config.tensors(&files.config);
        let folder = context.model.checkpoint.as_deref().filter(|_| opened.trained);
        Ok(Self {
            context: context.clone(),
            trained: opened.trained,
            tensors: folder.map(|f| trained::tensors_of(f, METHOD, &specs)).transpose()?,
            eos: files.eos_ids().first().copied(),
            specs,
            compressor: None,
            style: trained::plain_style(),
            config,
        })
    }

    /// What decides a document's summary vectors.
    fn fingerprint(&self, precision: Precision) -> Result<String, BackendError> {
        let mut hash = Fingerprint::new("lloco-compressor", env!("CARGO_PKG_VERSION"));
        if let Some(decoder) = &self.context.model.decoder {
            let files = DecoderFiles::open(decoder)?.weights.files();
            hash.text("decoder", &weights_hash(&files)?);
        }
        hash.text("dtype", &precision.to_string());
        trained::hash(&mut hash, &self.context, METHOD, self.trained)?;
        Ok(hash.finish())
    }

    /// A context's summary vectors `[n, D]`, from the store or by compressing it.
    fn summaries(&self, decoder: &Decoder, text: &str, ids: Vec<u32>) -> Result<Tensor, BackendError> {
        let Some((compressor, store)) = &self.compressor else {
            return Err(BackendError::failed(&LmError::Input("the decoder is not loaded".into())));
        };
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        let key = store.key(text);
        if let Some(known) = store.get(&key, decoder.model.llama.device())? {
            return Ok(known);
        }
        let cancelled = || {
            let stopped = decoder.cancel.is_cancelled();
            if stopped { Err(candle_core::Error::Msg("cancelled".into())) } else { Ok(()) }
        };
        let made = compressor.compress(&ids, cancelled);
        decoder.cancel.check()?;
        let made = made.map_err(LmError::from)?;
        store.put(key, &made)?;
        Ok(made)
    }
}

impl Method for Lloco {
    fn hash(&self, hash: &mut Fingerprint) -> Result<(), BackendError> {
        trained::hash(hash, &self.context, METHOD, self.trained)
    }

    fn attach(&mut self, llama: &mut Llama, precision: Precision) -> Result<Vec<String>, BackendError> {
        let tensors = match self.tensors.take() {
            Some(tensors) => tensors,
            None => {
                let eos = self.eos.ok_or_else(|| trained::no_part(METHOD, "an end-of-sequence token"))?;
                self.config.start_tensors(llama, eos, self.context.seed).map_err(LmError::from)?
            }
        };
        let place = (&llama.device().clone(), precision);
        let (mut model, _) = LlocoModel::load(self.config.clone(), llama, tensors, place, (false, false))?;
        if precision.merges(llama.device()) {
            model.merge_lora().map_err(LmError::from)?;
        }
        *llama = model.decoder;
        let folder = self.context.options.text("store");
        let folder = (!folder.is_empty()).then(|| PathBuf::from(folder));
        let store = Store::new(folder, self.fingerprint(precision)?)?;
        self.compressor = Some((model.compressor, Mutex::new(store)));
        let what = "summary vectors carry little meaning, and neither do the scores";
        Ok(if self.trained { Vec::new() } else { vec![trained::untrained(METHOD, what)] })
    }

    fn parameters(&self) -> u64 {
        self.specs.iter().map(|s| s.len() as u64).sum()
    }

    fn trained_parameters(&self) -> u64 {
        if self.trained { self.parameters() } else { 0 }
    }

    fn draft<'a>(
        &'a self,
        decoder: &'a Decoder,
        prompt: &'a Prompt,
        room: usize,
    ) -> Result<Draft<'a>, BackendError> {
        if prompt.instruction.is_empty() && prompt.context.is_empty() {
            return Err(BackendError::new(ErrorKind::BadRequest, "the prompt is empty"));
        }
        let template = decoder.tokenizer.chat().filter(|_| prompt.chat);
        let style = PromptStyle { template, answer_prefix: &prompt.answer_prefix };
        let context = decoder.tokenizer.encode(&prompt.context, false)?;
        let around = if context.is_empty() {
            PromptIds::without_context(&decoder.tokenizer, &prompt.instruction, style)?
        } else {
            PromptIds::with_context(&self.style, &decoder.tokenizer, &prompt.instruction, style)?
        };
        let (n, soft) = (context.len(), self.config.summaries(context.len()));
        let positions = around.prefix.len() + soft + around.suffix.len();
        // Refused before the work is done.
        let compressing = if n == 0 { 0 } else { self.config.positions(n) };
        if positions + room > decoder.window || compressing > decoder.window {
            let what = format!(
                "the context becomes {soft} summary vectors, read in passes of {compressing} positions"
            );
            return Err(decoder.too_long(&what, positions, room));
        }
        let usage = Usage {
            prompt_tokens: positions as u64,
            context_tokens: n as u64,
            context_compressed: n as u64,
            soft_tokens: soft as u64,
            ..Usage::default()
        };
        Ok(Draft::rest(move || {
            let mut segments = vec![Segment::Ids(around.prefix)];
            if n > 0 {
                segments.push(Segment::Embeds(self.summaries(decoder, &prompt.context, context)?));
            }
            segments.push(Segment::Ids(around.suffix));
            segments.retain(|s| !s.is_empty());
            Ok(Prepared::new(segments, usage))
        }))
    }
}
