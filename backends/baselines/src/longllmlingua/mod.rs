//! `longllmlingua`: the decoder reads a context out of which what the question does not need was taken, token by token.
//!
//! Source: LongLLMLingua (Jiang et al. 2023, arXiv 2310.06839) and its code. With a target of n tokens:
//! 1. Coarse: chunk k is worth `r_k = mean_i log p(q_i | chunk k)` over the tokens of the question and the restrictive
//!    statement ("We can get the answer ..."). The best chunks are read on, until they have a n tokens together.
//! 2. Reordering: the best chunk first.
//! 3. Dynamic ratios: the i-th best of N chunks keeps the part `t + delta (N - 1 - 2 i) / (N - 1)` of its tokens.
//! 4. Fine: segment by segment, token x_i is worth `s_i = log p(x_i | question, x_<i) - log p(x_i | x_<i)`, where x_<i are
//!    the tokens kept before the segment and those before it within; the highest stay.
//! 5. Subsequence recovery of the answer (see [`recover`]).
//!
//! The small model that scores is the decoder itself. Settings: segments of 200 tokens and a = 2 as in LLMLingua, delta = 0.3
//! as upstream's examples, a quarter of the tokens kept (the paper's 4x).
//! Cost for a context of T tokens in N chunks of c: coarse, all chunks with the question of q tokens behind each, read side
//! by side: T + N q tokens, O((T + N q) (c + q)) attention, logits for the N q; fine, one after the other, a n tokens that
//! are scored and n that stay, each in two texts, O(a n (n + q)) attention, in one pass for each segment and text; then the
//! prompt of n tokens, O(n^2). Memory O(n + q) and one batch of chunks.
//!
//! Ours: t is such that exactly n tokens stay (upstream's parts are clipped, then missed); chunks are cut by length; a
//! target beyond what the window leaves is lowered to it, one that covers the context leaves the prompt as it is, also in
//! its order.

mod budget;
mod recover;
mod score;
#[cfg(test)]
mod tests;

use crate::decoder::{Decoder, DecoderBackend, Draft, Finishing, LORA, Method, Prepared, WINDOW};
use crate::options::{at_least, bad_option, positive};
use crate::prompt::Whole;
use e2llm_backend::{BackendError, BackendSpec, BuildContext, Chunker, ErrorKind, OptionSpec, Prompt, Usage};
use e2llm_lm::{Reader, Segment, tail_log_probs};
use recover::Kept;
use std::ops::Range;
use std::sync::Arc;

const NAME: &str = "longllmlingua";
/// What is put behind the question when chunks are ranked, in the paper's words.
const RESTRICTION: &str = " We can get the answer to this question in the given documents.";
/// Between chunks, and between the question and what is scored behind it.
const GAP: &str = "\n\n";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the decoder reads a context compressed token by token for the question, by perplexity",
        source: "LongLLMLingua, arXiv 2310.06839",
        needs_model: true,
        options: &[
            OptionSpec {
                name: "ratio",
                default: "0.25",
                help: "part of the context's tokens that stays, up to 1",
            },
            OptionSpec { name: "target", default: "", help: "tokens that stay, instead of a ratio" },
            OptionSpec { name: "chunk_chars", default: "800", help: "characters of a chunk at most" },
            OptionSpec {
                name: "coarse",
                default: "2",
                help: "tokens of the chunks read on, as a multiple of those that stay",
            },
            OptionSpec {
                name: "dynamic",
                default: "0.3",
                help: "how much more of the best chunk stays than of the mean, 0 to 1",
            },
            OptionSpec { name: "segment", default: "200", help: "tokens scored at once" },
            OptionSpec {
                name: "order",
                default: "relevance",
                help: "of chunks in the prompt: relevance or document",
            },
            OptionSpec {
                name: "recover",
                default: "true",
                help: "whether answers get back what was left out of their quotations",
            },
            WINDOW,
            LORA,
        ],
        build: |context| {
            let method = LongLlmLingua::new(context)?;
            Ok(Box::new(DecoderBackend::new(NAME, NAME, method, context)?))
        },
    }
}

/// How much of a context stays.
enum Target {
    Ratio(f64),
    Tokens(usize),
}

/// The method with its options.
struct LongLlmLingua {
    target: Target,
    chunker: Chunker,
    coarse: f64,
    dynamic: f64,
    segment: usize,
    by_relevance: bool,
    recover: bool,
}

/// Tokens of a context, those that are to stay of it, those that the prompt has at most, and the room for the answer.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    target: usize,
    most: usize,
    room: usize,
}

/// A chunk of the context in the decoder's tokens.
struct Chunk {
    bytes: Range<usize>,
    ids: Vec<u32>,
    /// Bytes of each token in the context; together they are the chunk's.
    spans: Vec<Range<usize>>,
}

impl Chunk {
    fn new(decoder: &Decoder, context: &str, bytes: Range<usize>) -> Result<Self, BackendError> {
        let tokens = decoder.tokenizer.encode_with_offsets(&context[bytes.clone()])?;
        let mut spans = Vec::with_capacity(tokens.len());
        let mut start = bytes.start;
        for (_, range) in &tokens {
            // What stands between tokens (white space, for some tokenizers) goes with the one behind it.
            let end = context.floor_char_boundary(bytes.start + range.end).max(start);
            spans.push(start..end);
            start = end;
        }
        if let Some(last) = spans.last_mut() {
            last.end = bytes.end;
        }
        Ok(Self { bytes, ids: tokens.into_iter().map(|(id, _)| id).collect(), spans })
    }
}

/// A chunk as it is in the prompt: which of its tokens stay, and what they are worth.
struct Thinned<'a> {
    chunk: &'a Chunk,
    scores: Vec<f64>,
    keep: Vec<bool>,
}

impl LongLlmLingua {
    fn new(context: &BuildContext) -> Result<Self, BackendError> {
        let options = &context.options;
        let target = if options.text("target").is_empty() {
            let ratio = positive(options, "ratio")?;
            if ratio > 1.0 {
                return Err(bad_option("ratio", &format!("{ratio}: it must be at most 1")));
            }
            Target::Ratio(ratio)
        } else {
            Target::Tokens(at_least(options, "target", 1)?)
        };
        let coarse = positive(options, "coarse")?;
        if coarse < 1.0 {
            return Err(bad_option("coarse", &format!("{coarse}: it must be at least 1")));
        }
        let dynamic = options.parse::<f64>("dynamic")?.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&dynamic) {
            return Err(bad_option("dynamic", &format!("{dynamic}: it must be between 0 and 1")));
        }
        let by_relevance = match options.text("order") {
            "relevance" => true,
            "document" => false,
            other => return Err(bad_option("order", &format!("`{other}`: known are relevance, document"))),
        };
        let size = at_least(options, "chunk_chars", 1)?;
        Ok(Self {
            target,
            chunker: Chunker::new(size, 0.0).map_err(|e| bad_option("chunk_chars", &e.to_string()))?,
            coarse,
            dynamic,
            segment: at_least(options, "segment", 1)?,
            by_relevance,
            recover: options.parse("recover")?.unwrap_or(true),
        })
    }

    /// Tokens that are to stay of `n`.
    fn target(&self, n: usize) -> usize {
        match self.target {
            Target::Ratio(ratio) => (n as f64 * ratio).round() as usize,
            Target::Tokens(tokens) => tokens,
        }
    }

    /// Chunks from the most to the least important.
    fn ranked(
        &self,
        decoder: &Decoder,
        chunks: &[Chunk],
        question: &str,
    ) -> Result<Vec<usize>, BackendError> {
        let cancelled = || decoder.cancel.is_cancelled();
        let start = start_id(decoder)?;
        let question = decoder.tokenizer.encode(&format!("{GAP}{question}{RESTRICTION}"), false)?;
        let behind = |chunk: &Chunk| {
            let ids = [&[start][..], &chunk.ids, &question].concat();
            (ids, 1 + chunk.ids.len())
        };
        let texts: Vec<_> = chunks.iter().map(behind).collect();
        let scores = tail_log_probs(&decoder.model.llama, &texts, &cancelled)?;
        let worth: Vec<f64> = scores.iter().map(|scores| score::importance(scores)).collect();
        let mut order: Vec<usize> = (0..chunks.len()).collect();
        order.sort_by(|&a, &b| worth[b].total_cmp(&worth[a]));
        Ok(order)
    }

    /// Takes tokens out of the chunks, which come in the order of the prompt with how many of each stay.
    fn thinned<'a>(
        &self,
        decoder: &Decoder,
        chunks: &[(&'a Chunk, usize)],
        question: &str,
    ) -> Result<Vec<Thinned<'a>>, BackendError> {
        let cancelled = || decoder.cancel.is_cancelled();
        let start = start_id(decoder)?;
        let gap = decoder.tokenizer.encode(GAP, false)?;
        let question = decoder.tokenizer.encode(&format!("{question}{GAP}"), false)?;
        let expected = chunks.iter().map(|(_, kept)| kept).sum::<usize>() + self.segment + 1;
        let mut plain = Reader::new(&decoder.model.llama, expected);
        let mut asked = Reader::new(&decoder.model.llama, expected + question.len());
        plain.skip(&[start]);
        asked.skip(&[start]);
        asked.skip(&question);
        let mut out: Vec<Thinned<'a>> = Vec::with_capacity(chunks.len());
        for &(chunk, kept) in chunks {
            if out.last().is_some_and(|before| before.chunk.bytes.end != chunk.bytes.start) {
                plain.skip(&gap);
                asked.skip(&gap);
            }
            let (mut scores, mut keep) = (Vec::new(), Vec::new());
            for (n, kept) in budget::segments(chunk.ids.len(), kept, self.segment) {
                let ids = &chunk.ids[scores.len()..scores.len() + n];
                let marks = (plain.bookmark(), asked.bookmark());
                let worth = score::contrastive(&plain.read(ids, &cancelled)?, &asked.read(ids, &cancelled)?);
                let stays = score::keep(&worth, kept);
                if kept < n {
                    // What follows is judged behind the compressed text.
                    let left: Vec<u32> =
                        ids.iter().zip(&stays).filter(|(_, s)| **s).map(|(id, _)| *id).collect();
                    plain.go_back(&marks.0);
                    asked.go_back(&marks.1);
                    plain.skip(&left);
                    asked.skip(&left);
                }
                scores.extend(worth);
                keep.extend(stays);
            }
            out.push(Thinned { chunk, scores, keep });
        }
        Ok(out)
    }

    fn compressed(
        &self,
        decoder: &Decoder,
        prompt: &Prompt,
        chunks: &[Chunk],
        Sizes { n, target, most, room }: Sizes,
    ) -> Result<Prepared, BackendError> {
        let context = prompt.context.as_str();
        let tokens: Vec<usize> = chunks.iter().map(|c| c.ids.len()).collect();
        let ranking = self.ranked(decoder, chunks, &prompt.instruction)?;
        let best = budget::coarse(&ranking, &tokens, (target as f64 * self.coarse).ceil() as usize);
        let sizes: Vec<usize> = best.iter().map(|&i| tokens[i]).collect();
        let kept = budget::kept(&sizes, target, self.dynamic);
        let mut order: Vec<(usize, usize)> = best.iter().copied().zip(kept).collect();
        if !self.by_relevance {
            order.sort_unstable();
        }
        let order: Vec<_> = order.into_iter().map(|(i, kept)| (&chunks[i], kept)).collect();
        let mut thinned = self.thinned(decoder, &order, &prompt.instruction)?;
        loop {
            let text = text_of(context, &thinned);
            let ids = decoder.wrap(&prompt.render_with(&text), prompt)?;
            let seen = thinned.iter().flat_map(|t| &t.keep).filter(|keep| **keep).count();
            if ids.len() <= most {
                // Chunks can have a token more together than the whole, which other methods count.
                let all = n.max(seen);
                let usage = Usage {
                    prompt_tokens: ids.len() as u64,
                    context_tokens: all as u64,
                    context_seen: seen as u64,
                    context_dropped: (all - seen) as u64,
                    chunks: chunks.len() as u64,
                    chunks_retrieved: thinned.len() as u64,
                    truncation: Some(NAME.to_owned()),
                    ..Usage::default()
                };
                let finish = self.recover.then(|| finishing(decoder, context, chunks, &thinned));
                return Ok(Prepared { segments: vec![Segment::Ids(ids)], usage, finish });
            }
            // The text's own tokens can be more than those it was put together from.
            if !drop_worst(&mut thinned, ids.len() - most) {
                let what = "the prompt does not fit even without its context";
                return Err(decoder.too_long(what, ids.len(), room));
            }
        }
    }
}

/// What a text is read behind where nothing stands before it.
fn start_id(decoder: &Decoder) -> Result<u32, BackendError> {
    let ids = decoder.tokenizer.bos_id().into_iter().chain(decoder.model.eos_ids.iter().copied()).next();
    ids.ok_or_else(|| {
        let message = format!("backend `{NAME}`: the decoder has no token that begins or ends a text");
        BackendError::new(ErrorKind::Unsupported, message)
    })
}

/// The text of the tokens that stay.
fn text_of(context: &str, thinned: &[Thinned<'_>]) -> String {
    let mut text = String::new();
    let mut end = None;
    for Thinned { chunk, keep, .. } in thinned {
        if end.is_some_and(|end| end != chunk.bytes.start) {
            text.push_str(GAP);
        }
        for (span, _) in chunk.spans.iter().zip(keep).filter(|(_, keep)| **keep) {
            text.push_str(&context[span.clone()]);
        }
        end = Some(chunk.bytes.end);
    }
    text
}

/// Takes out the `n` tokens that are worth least; false where none is left.
fn drop_worst(thinned: &mut [Thinned<'_>], n: usize) -> bool {
    let mut kept: Vec<(f64, usize, usize)> = Vec::new();
    for (c, t) in thinned.iter().enumerate() {
        kept.extend(t.keep.iter().enumerate().filter(|(_, keep)| **keep).map(|(i, _)| (t.scores[i], c, i)));
    }
    kept.sort_by(|a, b| a.0.total_cmp(&b.0));
    for &(_, c, i) in kept.iter().take(n) {
        thinned[c].keep[i] = false;
    }
    !kept.is_empty()
}

/// Subsequence recovery for answers to this prompt.
fn finishing(decoder: &Decoder, context: &str, chunks: &[Chunk], thinned: &[Thinned<'_>]) -> Finishing {
    let mut places = std::collections::BTreeMap::new();
    let mut first = 0;
    for chunk in chunks {
        places.insert(chunk.bytes.start, first);
        first += chunk.ids.len();
    }
    let mut kept = Vec::new();
    for Thinned { chunk, keep, .. } in thinned {
        let first = places[&chunk.bytes.start];
        let stay = chunk.spans.iter().zip(keep).enumerate().filter(|(_, (_, keep))| **keep);
        kept.extend(stay.map(|(i, (span, _))| Kept { bytes: span.clone(), place: first + i }));
    }
    let (tokenizer, context) = (Arc::clone(&decoder.tokenizer), context.to_owned());
    Arc::new(move |answer: &str| {
        let tokens = tokenizer.encode_with_offsets(answer)?;
        let mut end = 0;
        let spans = tokens.into_iter().map(|(_, range)| {
            let start = end;
            end = range.end.max(start);
            start..end
        });
        Ok(recover::recovered(answer, &spans.collect::<Vec<_>>(), &context, &kept))
    })
}

impl Method for LongLlmLingua {
    fn draft<'a>(
        &'a self,
        decoder: &'a Decoder,
        prompt: &'a Prompt,
        room: usize,
    ) -> Result<Draft<'a>, BackendError> {
        let whole = Whole::new(decoder, prompt)?;
        let n = decoder.tokenizer.encode(&prompt.context, false)?.len();
        let most = decoder.window.saturating_sub(room);
        let target = self.target(n);
        if target >= n && whole.ids.len() <= most || whole.context.is_empty() {
            return whole.within_window(decoder, room).map(Draft::from);
        }
        let rest = decoder.wrap(&prompt.render_with(""), prompt)?.len();
        if rest >= most {
            return Err(decoder.too_long("the prompt does not fit even without its context", rest, room));
        }
        let context = prompt.context.as_str();
        let chunks = self.chunker.chunks(context);
        let chunks = chunks.into_iter().map(|c| Chunk::new(decoder, context, c.bytes));
        let chunks = chunks.collect::<Result<Vec<_>, _>>()?;
        let sizes = Sizes { n, target: target.min(most - rest), most, room };
        Ok(Draft::rest(move || self.compressed(decoder, prompt, &chunks, sizes)))
    }
}
