//! How it is trained: `[data]`, `[optimizer]`, `[[phase]]`, `[compute]`, `[validation]`, `[output]`.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Which chunks are read of a context that has more than `max_chunks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContextChoice {
    /// The first half of them from the beginning, the rest from the end.
    Ends,
    /// The first ones.
    Head,
    /// Consecutive ones from a place drawn anew each time.
    Random,
}

/// `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// What `prepare` wrote.
    pub folder: PathBuf,
    /// Chunks read of a context in a reasoning example (`e2llm`, `cepe`, `lloco`).
    pub max_chunks: usize,
    /// Which ones where there are more.
    pub context: ContextChoice,
    /// Tokens read of a context (`sft-truncate`, `longlora`): the first and last halves, the middle is cut.
    pub max_context_tokens: usize,
    /// Tokens of an answer that are learned; longer ones are cut.
    pub max_answer_tokens: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            folder: PathBuf::new(),
            max_chunks: 128,
            context: ContextChoice::Ends,
            max_context_tokens: 1536,
            max_answer_tokens: 256,
        }
    }
}

/// `[optimizer]`: AdamW under a linear warm-up and a cosine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Highest learning rate.
    pub lr: f64,
    /// Steps until it is reached.
    pub warmup_steps: usize,
    /// Fraction of it that is left at the end; 1 keeps it constant after the warm-up.
    pub min_lr_ratio: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1e-4,
            warmup_steps: 100,
            min_lr_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
        }
    }
}

/// How a loss is made of token losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Mean over the tokens of a step.
    Mean,
    /// Sum over the tokens, mean over the items (the paper's).
    Sum,
}

/// `[[phase]]`: what is learned for some steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Phase {
    /// Its length.
    pub steps: usize,
    /// Reasoning examples of a step.
    pub reasoning_batch: usize,
    /// Reconstruction windows of a step.
    pub reconstruction_batch: usize,
    /// Consecutive chunks of a window; windows do not overlap.
    pub window: usize,
    /// Weight of the reconstruction loss beside the reasoning loss. Alone, reconstruction has weight 1.
    pub lambda: f64,
    /// Factor of the learning rate in this phase.
    pub lr_scale: f64,
}

impl Default for Phase {
    fn default() -> Self {
        Self { steps: 0, reasoning_batch: 0, reconstruction_batch: 0, window: 1, lambda: 0.5, lr_scale: 1.0 }
    }
}

/// `[compute]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Element type of weights and activations, `f32` or `bf16`; what is trained has float32 masters.
    pub dtype: String,
    /// Whether layers are computed again in the backward pass instead of being kept.
    pub checkpointing: bool,
    /// Most padded positions (encoder and decoder together) that go through the model at once. A step with more is
    /// split, and gradients are accumulated: memory is bounded, the loss stays the same. 0: no bound.
    pub micro_positions: usize,
}

impl Default for ComputeConfig {
    fn default() -> Self {
        Self { device: "cpu".into(), dtype: "f32".into(), checkpointing: false, micro_positions: 0 }
    }
}

/// `[validation]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidationConfig {
    /// Steps between two validations; 0: only at the end.
    pub every: usize,
    /// Most items of each objective, always the same ones; 0: all.
    pub items: usize,
    /// Validations without a better loss after which the last phase ends; 0: never.
    pub patience: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { every: 200, items: 256, patience: 5 }
    }
}

/// `[output]`: may be changed when resuming.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// Steps between two checkpoints; 0: only at the end and where the validation improves.
    pub checkpoint_every: usize,
    /// Checkpoints kept beside the best one.
    pub keep: usize,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { checkpoint_every: 200, keep: 2 }
    }
}
