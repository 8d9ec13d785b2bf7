//! `cepe`: an encoder reads the earlier context in parallel, the frozen decoder attends to all of its states.
//!
//! Source: CEPE (Yen et al. 2024, arXiv 2402.16617) and its code. A small bidirectional encoder reads the context in
//! chunks, each by itself; its last states s of all tokens, one chunk's behind the other's, are read by a cross-attention
//! that is put into every decoder layer, between self-attention and feed-forward: `x + O softmax(q k^T / sqrt(d)) v`, `q =
//! Q norm(x)`, `k = K s`, `v = V s`, in the decoder's heads and without positions. The decoder is frozen; encoder and
//! cross-attention are trained. The context's end is read by the decoder as it is.
//! Cost of a context of T tokens in chunks of c, of which the decoder reads W: the encoder O(T c) in attention and O(T) in
//! everything else; the decoder O(W^2 + W T) in attention, then O(W + T) a token it writes. Memory: O(T) states, and
//! while an answer is written O(T) keys and values of every layer (upstream makes them anew for every token).
//!
//! Parameters at Llama-2-7B: 32 layers with Q, O of 4096 x 4096, K, V of 4096 x 1024 and a norm are 1.34 billion; the
//! paper's encoder (24 layers of width 1024, 32,000 tokens) has the 435 million that the paper gives.
//!
//! Ours: the encoder is any BERT, with LoRA on all of its linears (the paper's is a RoBERTa of Llama's tokens made for it,
//! and all of it is trained); chunks are those of the prepared data, by sentences (the paper's have 256 tokens);
//! the output `O` starts at zero and Q, K, V as torch starts linears (the paper's code copies the self-attention's
//! where the shapes allow it). What is trained is the answer to an instruction, and restating what the encoder reads, which
//! is the paper's warm-up; in training the encoder reads at least half of the chunks, so that every example teaches it.

mod model;
#[cfg(test)]
mod tests;

pub use model::{CepeConfig, CepeModel, METHOD};

use crate::decoder::{Decoder, DecoderBackend, Draft, Method, Prepared, WINDOW};
use crate::options::at_least;
use crate::trained;
use candle_core::Tensor;
use e2llm_backend::{
    BackendError, BackendSpec, BuildContext, Chunk, Chunker, ErrorKind, Fingerprint, OptionSpec, Prompt,
    Usage,
};
use e2llm_lm::{
    BertEncoder, CrossKeys, CrossMemory, EncoderFiles, KvCache, Llama, LmError, Memory, Params, Precision,
    Segment, Tokenizer,
};
use model::{DECODER, load_encoder};
use std::sync::{Arc, Mutex, PoisonError};

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: METHOD,
        description: "the decoder attends to an encoder's states of the earlier context (trained)",
        source: "CEPE, arXiv 2402.16617",
        needs_model: true,
        options: &[
            OptionSpec {
                name: "decoder_context",
                default: "",
                help: "tokens of the context's end that the decoder reads as they are; default: the checkpoint's",
            },
            OptionSpec { name: "encode_batch", default: "32", help: "chunks encoded at once" },
            WINDOW,
        ],
        build: |context| {
            let method = Cepe::new(context)?;
            Ok(Box::new(DecoderBackend::new(METHOD, "none", method, context)?))
        },
    }
}

/// The method with its encoder.
struct Cepe {
    context: BuildContext,
    config: CepeConfig,
    trained: bool,
    encoder: BertEncoder,
    encoder_parameters: u64,
    tokenizer: Tokenizer,
    chunker: Chunker,
    wave: usize,
    parameters: u64,
    /// What is trained of the decoder, until it is loaded.
    cross: Option<Params>,
    latest: Mutex<Latest>,
}

/// Of the prompt that was prepared last.
#[derive(Default)]
struct Latest {
    /// Keys and values of the last context that was read.
    read: Option<Read>,
    /// Whether the prompt has any.
    reads: bool,
}

struct Read {
    text: String,
    keys: Arc<Vec<CrossKeys>>,
    states: usize,
}

impl Cepe {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let (device, precision) = trained::placement(context)?;
        let opened = trained::open::<CepeConfig>(context, METHOD)?;
        let mut config = opened.settings;
        if !context.options.text("decoder_context").is_empty() {
            config.decoder_context = at_least(&context.options, "decoder_context", 0)?;
        }
        let path = context.model.encoder.as_ref().ok_or_else(|| trained::no_part(METHOD, "an encoder"))?;
        let files = EncoderFiles::open(path)?;
        let decoder = context.model.decoder.as_ref().ok_or_else(|| trained::no_part(METHOD, "a decoder"))?;
        let decoder = e2llm_lm::DecoderFiles::open(decoder)?.config;
        let specs = config.tensors(&files.config, &decoder);
        let tensors = match context.model.checkpoint.as_deref().filter(|_| opened.trained) {
            Some(folder) => trained::tensors_of(folder, METHOD, &specs)?,
            None => config.start_tensors(&files.config, &decoder, context.seed).map_err(LmError::from)?,
        };
        let mut params = trained::params(tensors, &device, precision, false);
        let mut encoder = load_encoder(&config, &files, &mut params, &device, precision)?;
        if precision == Precision::F32 {
            encoder.merge_lora().map_err(LmError::from)?;
        }
        let chunker =
            Chunker::new(config.chunk_chars, config.chunk_overlap).map_err(|e| BackendError::failed(&e))?;
        Ok(Self {
            context: context.clone(),
            trained: opened.trained,
            encoder,
            encoder_parameters: files.config.parameters(),
            tokenizer: files.tokenizer.ok_or_else(|| trained::no_part(METHOD, "an encoder's tokenizer"))?,
            chunker,
            wave: at_least(&context.options, "encode_batch", 1)?,
            parameters: specs.iter().map(|s| s.len() as u64).sum(),
            cross: Some(params),
            latest: Mutex::default(),
            config,
        })
    }

    /// A text's chunks in the encoder's ids.
    fn chunks(&self, text: &str) -> Result<Vec<Vec<u32>>, BackendError> {
        let window = self.encoder.config().window();
        Ok(e2llm::encoder_chunks(text, &self.chunker, &self.tokenizer, window)?)
    }

    /// Whether a text is the one that was read last, as far as that can be known without waiting.
    fn was_read(&self, text: &str) -> bool {
        let is_last = |latest: &Latest| latest.read.as_ref().is_some_and(|read| read.text == text);
        self.latest.try_lock().is_ok_and(|latest| is_last(&latest))
    }

    /// Makes keys and values of a text's states, of its chunks where they are known, or takes those of the last time.
    fn read(
        &self,
        latest: &mut Latest,
        decoder: &Decoder,
        text: &str,
        chunks: Option<Vec<Vec<u32>>>,
    ) -> Result<usize, BackendError> {
        if let Some(read) = latest.read.as_ref().filter(|r| r.text == text) {
            return Ok(read.states);
        }
        latest.read = None;
        let chunks = chunks.map_or_else(|| self.chunks(text), Ok)?;
        let states = self.states(&chunks, decoder)?;
        let keys = Arc::new(decoder.model.llama.cross_keys(&states)?);
        let states = states.dim(1).map_err(LmError::from)?;
        latest.read = Some(Read { text: text.to_owned(), keys, states });
        Ok(states)
    }

    /// States of all tokens in the order of the text, `[1, N, E]`. Chunks of like length share a wave.
    fn states(&self, chunks: &[Vec<u32>], decoder: &Decoder) -> Result<Tensor, BackendError> {
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        order.sort_by_key(|&i| chunks[i].len());
        let mut parts: Vec<Option<Tensor>> = vec![None; chunks.len()];
        for wave in order.chunks(self.wave) {
            decoder.cancel.check()?;
            let ids: Vec<_> = wave.iter().map(|&i| chunks[i].clone()).collect();
            let (states, lengths) = self.encoder.forward(&ids).map_err(LmError::from)?;
            for ((row, &i), n) in wave.iter().enumerate().zip(lengths) {
                let own = states.get(row).and_then(|s| s.narrow(0, 0, n)).map_err(LmError::from)?;
                parts[i] = Some(own);
            }
        }
        let parts: Vec<Tensor> = parts.into_iter().flatten().collect();
        let all = Tensor::cat(&parts, 0).and_then(|t| t.to_dtype(decoder.model.llama.dtype())?.unsqueeze(0));
        Ok(all.map_err(LmError::from)?)
    }

    /// Where the part of a context begins that the decoder reads: at the beginning of one of the last chunks, which have
    /// at most `budget` tokens; and how many they have.
    fn tail(
        &self,
        decoder: &Decoder,
        context: &str,
        chunks: &[Chunk],
        budget: usize,
    ) -> Result<(usize, usize), BackendError> {
        let (mut start, mut tokens) = (context.len(), 0);
        for chunk in chunks.iter().rev() {
            let n = decoder.tokenizer.encode(&context[chunk.bytes.start..start], false)?.len();
            if tokens + n > budget {
                break;
            }
            (start, tokens) = (chunk.bytes.start, tokens + n);
        }
        Ok((start, tokens))
    }

    /// The message of a prompt whose decoder reads `tail` of the context: the same as `truncate`'s, or the instruction
    /// alone, as `no-context` has it.
    fn message(prompt: &Prompt, tail: &str) -> String {
        if tail.is_empty() && !prompt.instruction.is_empty() {
            return prompt.instruction.clone();
        }
        prompt.render_with(tail)
    }
}

impl Method for Cepe {
    fn hash(&self, hash: &mut Fingerprint) -> Result<(), BackendError> {
        let path = self.context.model.encoder.as_ref();
        let files = EncoderFiles::open(path.ok_or_else(|| trained::no_part(METHOD, "an encoder"))?)?.files;
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            hash.file(&format!("encoder/{name}"), file).map_err(|e| BackendError::failed(&e))?;
        }
        hash.text("decoder_context", &self.config.decoder_context.to_string());
        trained::hash(hash, &self.context, METHOD, self.trained)
    }

    fn attach(&mut self, llama: &mut Llama, _: Precision) -> Result<Vec<String>, BackendError> {
        if let Some(mut params) = self.cross.take() {
            llama.add_cross_attention(self.encoder.config().hidden_size, &mut params, DECODER)?;
            params.finish()?;
        }
        let what = "what the encoder reads changes nothing";
        Ok(if self.trained { Vec::new() } else { vec![trained::untrained(METHOD, what)] })
    }

    fn parameters(&self) -> u64 {
        self.encoder_parameters + self.parameters
    }

    fn trained_parameters(&self) -> u64 {
        if self.trained { self.parameters } else { 0 }
    }

    fn draft<'a>(
        &'a self,
        decoder: &'a Decoder,
        prompt: &'a Prompt,
        room: usize,
    ) -> Result<Draft<'a>, BackendError> {
        let context = prompt.context.as_str();
        let chunks = self.chunker.chunks(context);
        let shown = prompt.template.contains("{context}");
        let mut budget = if shown { self.config.decoder_context } else { 0 };
        let (ids, start, seen) = loop {
            let (start, seen) = self.tail(decoder, context, &chunks, budget)?;
            let message = Self::message(prompt, &context[start..]);
            if message.is_empty() {
                return Err(BackendError::new(ErrorKind::BadRequest, "the prompt is empty"));
            }
            let ids = decoder.wrap(&message, prompt)?;
            let excess = (ids.len() + room).saturating_sub(decoder.window);
            if excess == 0 {
                break (ids, start, seen);
            }
            if seen == 0 {
                return Err(decoder.too_long("the instruction alone does not fit", ids.len(), room));
            }
            budget = seen.saturating_sub(excess);
        };
        let earlier = &context[..start];
        let reads = !earlier.trim().is_empty();
        let parts = if reads && !self.was_read(earlier) { Some(self.chunks(earlier)?) } else { None };
        let context_tokens = decoder.tokenizer.encode(context, false)?.len();
        Ok(Draft::rest(move || {
            let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            latest.reads = reads;
            let states = if reads { self.read(&mut latest, decoder, earlier, parts)? } else { 0 };
            let usage = Usage {
                prompt_tokens: ids.len() as u64,
                context_tokens: context_tokens as u64,
                context_seen: seen.min(context_tokens) as u64,
                context_compressed: context_tokens.saturating_sub(seen) as u64,
                soft_tokens: states as u64,
                ..Usage::default()
            };
            Ok(Prepared::new(vec![Segment::Ids(ids)], usage))
        }))
    }

    fn remembers(&self) -> bool {
        true
    }

    /// Of the prompt that was prepared last.
    fn memory(&self, _decoder: &Decoder, _prompt: usize, expected: usize) -> Box<dyn Memory> {
        let own = KvCache::new(expected);
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match latest.read.as_ref().filter(|_| latest.reads) {
            Some(read) => Box::new(CrossMemory::new(own, Arc::clone(&read.keys))),
            None => Box::new(own),
        }
    }
}
