//! The settings of a training: `configs/train.toml`.

use crate::{Result, TrainError};
use e2llm::{AdapterKind, E2llmConfig};
use e2llm_baselines::lloco::LlocoConfig;
use e2llm_lm::{LoraConfig, Stretch};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// E2LLM: encoder LoRA, adapter, decoder LoRA.
    E2llm,
    /// CEPE: encoder LoRA, cross-attention of a frozen decoder.
    Cepe,
    /// LLoCO: the decoder's LoRA while it compresses and while it answers, summary tokens.
    Lloco,
    /// LoRA of the decoder alone, which reads what fits its budget of the context's own tokens.
    SftTruncate,
    /// LoRA of the decoder alone, which reads the instruction only.
    SftNoContext,
    /// LongLoRA: as `sft-truncate`, in shifted groups of attention, with embeddings and norms trained, too.
    Longlora,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::E2llm, Self::Cepe, Self::Lloco, Self::SftTruncate, Self::SftNoContext, Self::Longlora];

    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::E2llm => "e2llm",
            Self::Cepe => "cepe",
            Self::Lloco => "lloco",
            Self::SftTruncate => "sft-truncate",
            Self::SftNoContext => "sft-no-context",
            Self::Longlora => "longlora",
        }
    }

    /// Whether it needs an encoder.
    pub fn encodes(self) -> bool {
        matches!(self, Self::E2llm | Self::Cepe)
    }

    /// Whether it has a reconstruction loss.
    pub fn restates(self) -> bool {
        matches!(self, Self::E2llm | Self::Cepe | Self::Lloco)
    }
}

/// `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// What is trained.
    pub method: Method,
    /// Encoder: a catalogue name or a folder in HF layout.
    pub encoder: String,
    /// Decoder: a catalogue name, a folder in HF layout or a `.gguf` file.
    pub decoder: String,
    /// A checkpoint whose trained weights are the start; its settings of the model win over those here.
    pub start: Option<PathBuf>,
    /// The adapter.
    pub adapter: AdapterKind,
    /// Soft tokens of a chunk.
    pub soft_tokens_per_chunk: usize,
    /// Attention heads of `vpma`.
    pub vpma_num_heads: usize,
    /// Whether soft tokens start at the length of the decoder's embeddings.
    pub output_scale: bool,
    /// LoRA of the encoder.
    pub encoder_lora: LoraConfig,
    /// LoRA of the decoder.
    pub decoder_lora: LoraConfig,
    /// How the decoder's window is stretched (`sft-*`, `longlora`); not at all where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope: Option<Stretch>,
    /// Tokens of the context's end that the decoder reads as they are, at most (`cepe`).
    pub decoder_context: usize,
    /// Tokens that are compressed at once (`lloco`).
    pub segment_tokens: usize,
    /// Summary vectors that a segment becomes (`lloco`).
    pub summary_tokens: usize,
    /// Compression steps that a gradient runs through (`lloco`).
    pub bptt_segments: usize,
    /// Whether the compressor is trained too, or the answering LoRA only, of another domain (`lloco`).
    pub train_compressor: bool,
    /// LoRA of the decoder while it compresses (`lloco`).
    pub compressor_lora: LoraConfig,
    /// Element type of the trained tensors in a checkpoint's model: `f32` or `bf16`. The masters are kept beside it.
    pub save_dtype: String,
}

impl Default for ModelConfig {
    fn default() -> Self {
        let d = E2llmConfig::default();
        let l = LlocoConfig::default();
        Self {
            method: Method::E2llm,
            encoder: "all-minilm-l6-v2".into(),
            decoder: "smollm2-135m-instruct".into(),
            start: None,
            adapter: d.adapter,
            soft_tokens_per_chunk: d.soft_tokens_per_chunk,
            vpma_num_heads: d.vpma_num_heads,
            output_scale: d.output_scale,
            encoder_lora: d.encoder_lora,
            decoder_lora: d.decoder_lora,
            rope: None,
            decoder_context: 512,
            segment_tokens: l.segment_tokens,
            summary_tokens: l.summary_tokens,
            bptt_segments: l.bptt_segments,
            train_compressor: true,
            compressor_lora: l.compressor_lora,
            save_dtype: "f32".into(),
        }
    }
}

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

/// Everything that decides what a training does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of start values, data order and choices.
    pub seed: u64,
    /// How token losses are reduced.
    pub loss_reduction: Reduction,
    /// Model.
    pub model: ModelConfig,
    /// Data.
    pub data: DataConfig,
    /// Optimiser.
    pub optimizer: OptimizerConfig,
    /// Phases, one after the other.
    pub phase: Vec<Phase>,
    /// Where and how it is computed.
    pub compute: ComputeConfig,
    /// Validation.
    pub validation: ValidationConfig,
    /// Checkpoints.
    pub output: OutputConfig,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            loss_reduction: Reduction::Mean,
            model: ModelConfig::default(),
            data: DataConfig::default(),
            optimizer: OptimizerConfig::default(),
            phase: Vec::new(),
            compute: ComputeConfig::default(),
            validation: ValidationConfig::default(),
            output: OutputConfig::default(),
        }
    }
}

impl TrainConfig {
    /// Steps of all phases.
    pub fn steps(&self) -> usize {
        self.phase.iter().map(|p| p.steps).sum()
    }

    /// Makes the phases `steps` long together: cuts the last ones, or makes the very last one longer.
    pub fn set_steps(&mut self, steps: usize) {
        let mut left = steps;
        let last = self.phase.len().saturating_sub(1);
        for (i, phase) in self.phase.iter_mut().enumerate() {
            phase.steps = if i == last { left } else { phase.steps.min(left) };
            left -= phase.steps;
        }
        self.phase.retain(|p| p.steps > 0);
    }

    /// The phase of a step (both from 0) and the step's number within it.
    pub fn phase_at(&self, step: usize) -> Option<(usize, usize)> {
        let mut first = 0;
        for (i, phase) in self.phase.iter().enumerate() {
            if step < first + phase.steps {
                return Some((i, step - first));
            }
            first += phase.steps;
        }
        None
    }

    /// Checks everything that can be checked without model and data.
    ///
    /// # Errors
    /// The first setting out of range.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(TrainError::Config(what));
        let o = &self.optimizer;
        if self.steps() == 0 {
            return bad("no steps: give at least one [[phase]] with `steps`".into());
        }
        for (i, p) in self.phase.iter().enumerate() {
            let at = format!("[[phase]] number {}", i + 1);
            if p.reasoning_batch + p.reconstruction_batch == 0 {
                return bad(format!("{at}: `reasoning_batch` and `reconstruction_batch` are both 0"));
            }
            if p.window == 0 {
                return bad(format!("{at}: `window` is 0 chunks"));
            }
            if !(p.lambda.is_finite() && p.lambda >= 0.0 && p.lr_scale.is_finite() && p.lr_scale > 0.0) {
                return bad(format!("{at}: `lambda` must be at least 0 and `lr_scale` above 0"));
            }
            if !self.model.method.restates() && p.reconstruction_batch > 0 {
                return bad(format!(
                    "{at}: only the methods `e2llm`, `cepe` and `lloco` have a reconstruction loss"
                ));
            }
        }
        if let Some(rope) = &self.model.rope {
            if self.model.method.restates() {
                let method = self.model.method.name();
                return bad(format!("[model.rope]: the method `{method}` keeps to the decoder's own window"));
            }
            rope.rope_scaling(1).map_err(|e| TrainError::Config(format!("[model.rope] {e}")))?;
        }
        if !(o.lr.is_finite() && o.lr > 0.0) {
            return bad(format!("optimizer.lr is {}: it must be above 0", o.lr));
        }
        if !(0.0..=1.0).contains(&o.min_lr_ratio) {
            return bad(format!("optimizer.min_lr_ratio is {}: it must be between 0 and 1", o.min_lr_ratio));
        }
        if o.max_grad_norm.is_nan() || o.max_grad_norm <= 0.0 {
            return bad(format!("optimizer.max_grad_norm is {}: it must be above 0", o.max_grad_norm));
        }
        if !((0.0..1.0).contains(&o.beta1) && (0.0..1.0).contains(&o.beta2)) {
            return bad("optimizer.beta1 and beta2 must be at least 0 and below 1".into());
        }
        if !(o.eps > 0.0 && o.weight_decay >= 0.0 && o.weight_decay.is_finite()) {
            return bad("optimizer.eps must be above 0 and weight_decay at least 0".into());
        }
        if self.data.max_chunks == 0 || self.data.max_answer_tokens == 0 {
            return bad("data.max_chunks and data.max_answer_tokens must be at least 1".into());
        }
        if self.output.keep == 0 {
            return bad("output.keep is 0: at least the last checkpoint must be kept".into());
        }
        for (key, value) in
            [("compute.dtype", &self.compute.dtype), ("model.save_dtype", &self.model.save_dtype)]
        {
            if !matches!(value.as_str(), "f32" | "bf16") {
                return bad(format!("{key} is `{value}`: f32 or bf16"));
            }
        }
        Ok(())
    }

    /// What differs from `old`, one line for each setting that a resumed training must not change.
    ///
    /// # Errors
    /// None that settings read from a file can cause.
    pub fn differences(&self, old: &Self) -> Result<Vec<String>> {
        let free = |name: &str| name.starts_with("output.") || name == "compute.device";
        let table = |c: &Self| toml::Table::try_from(c).map_err(|e| TrainError::Config(e.to_string()));
        let mut lines = Vec::new();
        compare("", &toml::Value::Table(table(old)?), &toml::Value::Table(table(self)?), &mut lines);
        lines.retain(|(name, _)| !free(name));
        Ok(lines.into_iter().map(|(name, line)| format!("{name}: {line}")).collect())
    }
}

fn compare(name: &str, old: &toml::Value, new: &toml::Value, out: &mut Vec<(String, String)>) {
    if let (toml::Value::Table(a), toml::Value::Table(b)) = (old, new) {
        let mut keys: Vec<_> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            match (a.get(key), b.get(key)) {
                (Some(a), Some(b)) => compare(&path, a, b, out),
                (Some(a), None) => out.push((path, format!("was {a}, now not set"))),
                (None, Some(b)) => out.push((path, format!("was not set, now {b}"))),
                (None, None) => {}
            }
        }
    } else if old != new {
        out.push((name.to_owned(), format!("was {old}, now {new}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> TrainConfig {
        toml::from_str(text).unwrap()
    }

    const TWO: &str =
        "[[phase]]\nsteps = 5\nreconstruction_batch = 4\n[[phase]]\nsteps = 3\nreasoning_batch = 2";

    #[test]
    fn steps_belong_to_phases() {
        let mut c = config(TWO);
        c.check().unwrap();
        let at: Vec<_> = [0, 4, 5, 7, 8].iter().map(|s| c.phase_at(*s)).collect();
        assert_eq!(at, [Some((0, 0)), Some((0, 4)), Some((1, 0)), Some((1, 2)), None]);
        c.set_steps(20);
        assert_eq!(c.phase.iter().map(|p| p.steps).collect::<Vec<_>>(), [5, 15]);
        c.set_steps(3);
        assert_eq!(c.phase.iter().map(|p| p.steps).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn what_a_resumed_training_must_not_change_is_listed() {
        let old = config(TWO);
        let mut new = old.clone();
        new.output.keep = 7;
        new.compute.device = "cuda:0".into();
        assert_eq!(new.differences(&old).unwrap(), [""; 0]);
        new.optimizer.lr = 0.5;
        new.phase[1].window = 3;
        new.model.start = Some("x".into());
        let all = new.differences(&old).unwrap().join("\n");
        for part in ["optimizer.lr: was 0.0001, now 0.5", "phase", "model.start: was not set"] {
            assert!(all.contains(part), "{part} is not in {all}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (text, key) in [
            ("", "phase"),
            ("[[phase]]\nsteps = 1", "reasoning_batch"),
            ("[optimizer]\nlr = -1\n[[phase]]\nsteps = 1\nreasoning_batch = 1", "optimizer.lr"),
            ("[compute]\ndtype = \"f16\"\n[[phase]]\nsteps = 1\nreasoning_batch = 1", "compute.dtype"),
            ("[model]\nmethod = \"sft-truncate\"\n[[phase]]\nsteps = 1\nreconstruction_batch = 1", "e2llm"),
            ("[model.rope]\nfactor = 2\n[[phase]]\nsteps = 1\nreasoning_batch = 1", "own window"),
            (
                "[model]\nmethod = \"longlora\"\nrope = { factor = 0.5 }\n[[phase]]\nsteps = 1\nreasoning_batch = 1",
                "[model.rope] `factor`: 0.5",
            ),
            ("[output]\nkeep = 0\n[[phase]]\nsteps = 1\nreasoning_batch = 1", "output.keep"),
        ] {
            let error = config(text).check().unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
        assert!(toml::from_str::<TrainConfig>("colour = 1").is_err());
        for method in Method::ALL {
            assert_eq!(toml::Value::try_from(method).unwrap().as_str(), Some(method.name()));
        }
    }
}
