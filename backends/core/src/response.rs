//! What a backend answers.

use serde::{Deserialize, Serialize};

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model's end-of-sequence token.
    Eos,
    /// One of the prompt's stop strings.
    StopString,
    /// `max_new_tokens` were generated.
    Length,
    /// Nothing was generated: the answer is the most likely of the choices.
    Chosen,
}

/// What became of the prompt, and what it cost. Token counts are the decoder's unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Positions that the decoder read before its first own token, soft tokens included.
    pub prompt_tokens: u64,
    /// Tokens of the whole context.
    pub context_tokens: u64,
    /// Tokens of the context that the decoder read as they are.
    pub context_seen: u64,
    /// Tokens of the context that nothing read.
    pub context_dropped: u64,
    /// Tokens of the context that were read and then forgotten: their keys and values were gone before the answer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context_evicted: u64,
    /// Tokens of the context that were compressed into soft tokens.
    pub context_compressed: u64,
    /// Soft tokens they became.
    pub soft_tokens: u64,
    /// Chunks the context was cut into, where some were chosen among.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub chunks: u64,
    /// Chunks that were chosen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub chunks_retrieved: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Seconds from the request to the first generated token.
    pub time_to_first_token: f64,
    /// Seconds from the first generated token to the last.
    pub decode_time: f64,
    /// Peak of memory in bytes while it was answered, weights included, where it can be told: that of tensors on a GPU, else
    /// of the process. Requests that were answered together have that of all of them.
    pub peak_memory: Option<u64>,
    /// The truncation applied, e.g. `middle-longbench-v2`; absent where nothing was cut.
    pub truncation: Option<String>,
}

/// Whether a count that few methods have is left out.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Usage {
    /// Adds what another turn of the same sample took.
    pub fn add(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.context_tokens += other.context_tokens;
        self.context_seen += other.context_seen;
        self.context_dropped += other.context_dropped;
        self.context_evicted += other.context_evicted;
        self.context_compressed += other.context_compressed;
        self.soft_tokens += other.soft_tokens;
        self.chunks += other.chunks;
        self.chunks_retrieved += other.chunks_retrieved;
        self.generated_tokens += other.generated_tokens;
        self.time_to_first_token += other.time_to_first_token;
        self.decode_time += other.decode_time;
        self.peak_memory = self.peak_memory.max(other.peak_memory);
        if self.truncation.is_none() {
            self.truncation.clone_from(&other.truncation);
        }
    }
}

/// A generated answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The text, without the prompt, special tokens and the stop string.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it took.
    pub usage: Usage,
}

/// The log-likelihoods of given continuations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Sum of the token log-probabilities of each continuation, in nats.
    pub log_likelihoods: Vec<f64>,
    /// Tokens of each continuation, for length normalisation.
    pub tokens: Vec<usize>,
    /// What it took.
    pub usage: Usage,
}

impl Choice {
    /// Index of the most likely continuation (the first of equals).
    pub fn best(&self) -> Option<usize> {
        greatest(self.log_likelihoods.iter().copied())
    }

    /// Index of the continuation with the greatest log-likelihood per unit of its length (the first of equals).
    pub fn best_per(&self, lengths: &[usize]) -> Option<usize> {
        greatest(self.log_likelihoods.iter().zip(lengths).map(|(l, n)| l / *n as f64))
    }
}

fn greatest(values: impl Iterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, value) in values.enumerate() {
        if best.is_none_or(|(_, b)| value > b) {
            best = Some((i, value));
        }
    }
    best.map(|(i, _)| i)
}
