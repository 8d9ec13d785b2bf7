//! `rag`: the decoder reads the chunks of the context that are nearest to the instruction.
//!
//! Sources: Lewis et al. 2020 (arXiv 2005.11401) for the idea; sentence-transformers for embeddings; BM25 (see [`bm25`]);
//! reciprocal rank fusion (Cormack et al. 2009). The context is cut into chunks of c characters. `dense` ranks them by
//! `cos(e(instruction), e(chunk))`, e being the encoder with the pooling and prompts its folder names; `bm25` by words;
//! `hybrid` fuses the two. The best k go into the prompt, k as large as the window allows, in the order of the
//! document.
//! Cost: encoding O(T c) time, once for all questions about a document; scoring O(T / c) per question; the decoder
//! then reads at most W tokens, O(W^2) attention and O(W) memory.
//!
//! Ours: a chunk that no longer fits is passed over for the next that does; chunks that touch are put together again
//! without a seam, others are parted by a blank line; a chunk beyond the encoder's window is cut in half instead of
//! being read in part. A context that fits is read whole, as `full` does.

mod bm25;
mod index;
mod rank;
#[cfg(test)]
mod tests;

use crate::decoder::{Decoder, DecoderBackend, Draft, LORA, Method, Prepared, WINDOW};
use crate::options::{at_least, bad_option, positive};
use crate::prompt::Whole;
use e2llm_backend::{
    BackendError, BackendSpec, BuildContext, Chunker, ErrorKind, Fingerprint, OptionSpec, Prompt, Usage,
};
use e2llm_lm::{EncoderFiles, Precision, Segment, SentenceEncoder, SentenceSettings, open_device};
use index::{Cut, Latest};
use rank::{by_score, cosine, fused};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

const NAME: &str = "rag";
/// Between chunks that do not touch.
const GAP: &str = "\n\n";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the decoder reads the chunks nearest to the instruction, found by the encoder or by words",
        source: "arXiv 2005.11401, sentence-transformers, BM25",
        needs_model: true,
        options: &[
            OptionSpec {
                name: "retriever",
                default: "dense",
                help: "dense, bm25 or hybrid (both, fused by rank)",
            },
            OptionSpec { name: "chunk_chars", default: "800", help: "characters of a chunk at most" },
            OptionSpec {
                name: "overlap",
                default: "0",
                help: "part of a chunk that the next repeats, up to 0.5",
            },
            OptionSpec { name: "top_k", default: "", help: "chunks taken at most; default: as many as fit" },
            OptionSpec {
                name: "budget",
                default: "",
                help: "tokens of the context at most; default: what the window leaves",
            },
            OptionSpec {
                name: "encoder",
                default: "",
                help: "folder of the encoder; default: that of the model",
            },
            OptionSpec {
                name: "pooling",
                default: "",
                help: "mean or cls; default: as the encoder's folder says",
            },
            OptionSpec {
                name: "query_prompt",
                default: "",
                help: "text before the query; default: as the encoder's folder says",
            },
            OptionSpec {
                name: "passage_prompt",
                default: "",
                help: "text before a chunk; default: as the encoder's folder says",
            },
            OptionSpec { name: "encode_batch", default: "32", help: "chunks encoded at once" },
            OptionSpec { name: "k1", default: "1.2", help: "bm25: how soon repetitions stop to count" },
            OptionSpec {
                name: "b",
                default: "0.75",
                help: "bm25: how much long chunks are held back, 0 to 1",
            },
            WINDOW,
            LORA,
        ],
        build: |context| {
            let method = Rag::new(context)?;
            let truncation = method.truncation();
            Ok(Box::new(DecoderBackend::new(NAME, &truncation, method, context)?))
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retriever {
    Dense,
    Bm25,
    Hybrid,
}

impl Retriever {
    fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Bm25 => "bm25",
            Self::Hybrid => "hybrid",
        }
    }
}

impl FromStr for Retriever {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Dense, Self::Bm25, Self::Hybrid];
        let known = || format!("`{text}`: known are dense, bm25, hybrid");
        all.into_iter().find(|r| r.name() == text).ok_or_else(known)
    }
}

/// The method with its options.
struct Rag {
    retriever: Retriever,
    chunker: Chunker,
    top_k: Option<usize>,
    budget: Option<usize>,
    wave: usize,
    k1: f64,
    b: f64,
    encoder: Option<Encoder>,
    latest: Latest,
}

/// Tokens that the prompt has at most, the room for the answer, and tokens that are free for chunks.
#[derive(Clone, Copy)]
struct Sizes {
    most: usize,
    room: usize,
    free: usize,
}

struct Encoder {
    model: SentenceEncoder,
    parameters: u64,
    files: Vec<PathBuf>,
}

impl Rag {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let options = &context.options;
        let retriever: Retriever =
            options.text("retriever").parse().map_err(|e: String| bad_option("retriever", &e))?;
        let size = at_least(options, "chunk_chars", 1)?;
        let overlap = options.parse("overlap")?.unwrap_or(0.0);
        let chunker = Chunker::new(size, overlap).map_err(|e| bad_option("overlap", &e.to_string()))?;
        let limit = |name| match options.text(name) {
            "" => Ok(None),
            _ => at_least(options, name, 1).map(Some),
        };
        let b = options.parse::<f64>("b")?.unwrap_or(0.75);
        if !(0.0..=1.0).contains(&b) {
            return Err(bad_option("b", &format!("{b}: it must be between 0 and 1")));
        }
        let encoder = if retriever == Retriever::Bm25 { None } else { Some(Encoder::open(context)?) };
        Ok(Self {
            retriever,
            chunker,
            top_k: limit("top_k")?,
            budget: limit("budget")?,
            wave: at_least(options, "encode_batch", 1)?,
            k1: positive(options, "k1")?,
            b,
            encoder,
            latest: Latest::default(),
        })
    }

    fn truncation(&self) -> String {
        format!("retrieval-{}", self.retriever.name())
    }

    /// Chunks from the nearest to the farthest.
    fn ranked(&self, cut: &Arc<Cut>, decoder: &Decoder, query: &str) -> Result<Vec<usize>, BackendError> {
        let mut rankings = Vec::new();
        if let Some(encoder) = &self.encoder {
            let embeddings = self.embeddings(cut, decoder)?;
            let query = encoder.model.query(query)?;
            let scores: Vec<f64> = embeddings.iter().map(|e| cosine(e, &query)).collect();
            rankings.push(by_score(&scores));
        }
        if let Some(words) = &cut.words {
            rankings.push(by_score(&words.scores(query)));
        }
        Ok(fused(&rankings))
    }
}

impl Encoder {
    fn open(context: &BuildContext) -> Result<Self, BackendError> {
        let options = &context.options;
        let given = Path::new(options.text("encoder"));
        let folder = match (&context.model.encoder, given.as_os_str().is_empty()) {
            (_, false) if !given.is_dir() => {
                return Err(bad_option("encoder", &format!("no folder {}", given.display())));
            }
            (_, false) => given,
            (Some(folder), true) => folder,
            (None, true) => {
                let message = format!(
                    "backend `{NAME}` needs an encoder, and model `{}` has none: use a model with both parts, name one by \
                     --backend-option encoder=FOLDER, or rank by words with --backend-option retriever=bm25",
                    context.model.name
                );
                return Err(BackendError::new(ErrorKind::BadRequest, message));
            }
        };
        let mut settings = SentenceSettings::of(folder)?;
        if !options.text("pooling").is_empty() {
            settings.pooling =
                options.text("pooling").parse().map_err(|e: String| bad_option("pooling", &e))?;
        }
        for (name, prompt) in
            [("query_prompt", &mut settings.query_prompt), ("passage_prompt", &mut settings.passage_prompt)]
        {
            if !options.text(name).is_empty() {
                options.text(name).clone_into(prompt);
            }
        }
        let files = EncoderFiles::open(folder)?;
        let parameters = files.config.parameters();
        let hashed = files.files.iter().chain(&settings.files).cloned().collect();
        let device = open_device(context.device)?;
        // Eight-bit products would save nothing worth their error in a model this small.
        let precision = match context.dtype.as_str() {
            "" if device.is_cpu() => Precision::F32,
            "" => Precision::BF16,
            "q" => Precision::F32,
            name => name.parse()?,
        };
        Ok(Self {
            model: SentenceEncoder::load(files, settings, &device, precision)?,
            parameters,
            files: hashed,
        })
    }
}

/// What the chunks cover, in the order of the document: chunks that touch or overlap are one.
fn covered(chunks: &[Range<usize>], chosen: &[usize]) -> Vec<Range<usize>> {
    let mut sorted: Vec<_> = chosen.iter().map(|&i| chunks[i].clone()).collect();
    sorted.sort_by_key(|r| r.start);
    let mut out: Vec<Range<usize>> = Vec::new();
    for range in sorted {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

fn joined(context: &str, ranges: &[Range<usize>]) -> String {
    ranges.iter().map(|r| &context[r.clone()]).collect::<Vec<_>>().join(GAP)
}

impl Method for Rag {
    fn hash(&self, hash: &mut Fingerprint) -> Result<(), BackendError> {
        for file in self.encoder.iter().flat_map(|e| &e.files) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            hash.file(&format!("encoder/{name}"), file).map_err(|e| BackendError::failed(&e))?;
        }
        Ok(())
    }

    fn parameters(&self) -> u64 {
        self.encoder.as_ref().map_or(0, |e| e.parameters)
    }

    fn draft<'a>(
        &'a self,
        decoder: &'a Decoder,
        prompt: &'a Prompt,
        room: usize,
    ) -> Result<Draft<'a>, BackendError> {
        let context = prompt.context.as_str();
        let cut = self.cut(context)?;
        let n = cut.chunks.len();
        let whole = Whole::new(decoder, prompt)?;
        let most = decoder.window.saturating_sub(room);
        let within = |limit: Option<usize>, n: usize| limit.is_none_or(|limit| n <= limit);
        let tokens: Vec<_> =
            decoder.tokenizer.encode_with_offsets(context)?.into_iter().map(|(_, bytes)| bytes).collect();
        if whole.ids.len() <= most && within(self.top_k, n) && within(self.budget, tokens.len()) {
            let usage = Usage { chunks: n as u64, chunks_retrieved: n as u64, ..whole.usage() };
            return Ok(Prepared::new(vec![Segment::Ids(whole.ids)], usage).into());
        }
        let free = most.saturating_sub(decoder.wrap(&prompt.render_with(""), prompt)?.len());
        let sizes = Sizes { most, room, free: free.min(self.budget.unwrap_or(usize::MAX)) };
        if self.encoder.is_none() {
            return self.retrieved(decoder, prompt, &cut, &tokens, sizes).map(Draft::from);
        }
        Ok(Draft::rest(move || self.retrieved(decoder, prompt, &cut, &tokens, sizes)))
    }
}

impl Rag {
    /// The prompt with the chunks nearest to its instruction; `tokens` are the bytes of each token of the context.
    fn retrieved(
        &self,
        decoder: &Decoder,
        prompt: &Prompt,
        cut: &Arc<Cut>,
        tokens: &[Range<usize>],
        Sizes { most, room, mut free }: Sizes,
    ) -> Result<Prepared, BackendError> {
        let context = prompt.context.as_str();
        let n = cut.chunks.len();
        let mut chosen = Vec::new();
        for i in self.ranked(cut, decoder, &prompt.instruction)? {
            if chosen.len() == self.top_k.unwrap_or(n) {
                break;
            }
            let cost = decoder.tokenizer.encode(&context[cut.chunks[i].clone()], false)?.len();
            if cost <= free {
                free -= cost;
                chosen.push(i);
            }
        }
        loop {
            let ranges = covered(&cut.chunks, &chosen);
            let ids = decoder.wrap(&prompt.render_with(&joined(context, &ranges)), prompt)?;
            if ids.len() <= most {
                let is_seen = |t: &Range<usize>| ranges.iter().any(|r| t.start < r.end && t.end > r.start);
                let seen = tokens.iter().filter(|bytes| is_seen(bytes)).count();
                let usage = Usage {
                    prompt_tokens: ids.len() as u64,
                    context_tokens: tokens.len() as u64,
                    context_seen: seen as u64,
                    context_dropped: (tokens.len() - seen) as u64,
                    chunks: n as u64,
                    chunks_retrieved: chosen.len() as u64,
                    truncation: Some(self.truncation()),
                    ..Usage::default()
                };
                return Ok(Prepared::new(vec![Segment::Ids(ids)], usage));
            }
            // Seams can take a token more than the chunks alone.
            if chosen.pop().is_none() {
                return Err(decoder.too_long(
                    "the prompt does not fit even without its context",
                    ids.len(),
                    room,
                ));
            }
        }
    }
}
