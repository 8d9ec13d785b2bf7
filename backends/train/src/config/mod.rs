//! The settings of a training: `configs/train.toml`.

mod model;
mod parts;

pub use model::{Method, ModelConfig};
pub use parts::{
    ComputeConfig, ContextChoice, DataConfig, OptimizerConfig, OutputConfig, Phase, Reduction,
    ValidationConfig,
};

use crate::{Result, TrainError};
use serde::{Deserialize, Serialize};

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

    /// What differs from `old`, one line for each setting that a resumed training must not change. Where it writes, where it
    /// computes and in how much memory may change: a training whose memory was exhausted goes on in less.
    ///
    /// # Errors
    /// None that settings read from a file can cause.
    pub fn differences(&self, old: &Self) -> Result<Vec<String>> {
        const FREE: [&str; 3] = ["compute.device", "compute.checkpointing", "compute.micro_positions"];
        let free = |name: &str| name.starts_with("output.") || FREE.contains(&name);
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
        (new.compute.checkpointing, new.compute.micro_positions) = (true, 4096);
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
