//! Settings of low-rank adapters (Hu et al. 2021, arXiv 2106.09685), named as in PEFT.

use crate::config::{LinearSpec, TensorSpec};
use crate::{LmError, Lora, Params, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Which linears get an adapter, and of what rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Last names of the linears, e.g. `q_proj`.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { r: 16, lora_alpha: 32.0, target_modules: Vec::new() }
    }
}

impl LoraConfig {
    /// The factor of the update.
    pub fn scaling(&self) -> f64 {
        self.lora_alpha / self.r as f64
    }

    /// Whether the linear called `module` (a dotted path) gets an adapter.
    pub fn targets(&self, module: &str) -> bool {
        let last = module.rsplit('.').next().unwrap_or(module);
        self.target_modules.iter().any(|t| t == last)
    }

    /// The adapters' tensors for linears given as (module, outputs, inputs), each name behind `prefix`.
    pub(crate) fn specs<'a>(
        &self,
        prefix: &str,
        linears: impl Iterator<Item = (&'a str, usize, usize)>,
    ) -> Vec<TensorSpec> {
        let mut specs = Vec::new();
        for (module, outputs, inputs) in linears.filter(|(m, ..)| self.targets(m)) {
            specs.push(TensorSpec::new(format!("{prefix}{module}.lora_A.weight"), vec![self.r, inputs]));
            specs.push(TensorSpec::new(format!("{prefix}{module}.lora_B.weight"), vec![outputs, self.r]));
        }
        specs
    }

    /// Checks the rank and that every target names at least one of `modules`.
    ///
    /// # Errors
    /// A rank of zero, or targets that name nothing.
    pub(crate) fn check<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
        if self.r == 0 && !self.target_modules.is_empty() {
            let targets = self.target_modules.join(", ");
            return Err(LmError::Input(format!(
                "LoRA of {targets} has a rank `r` of 0: it must be at least 1"
            )));
        }
        let known = |t: &str| modules.clone().any(|m| m.rsplit('.').next() == Some(t));
        let unknown: Vec<_> = self.target_modules.iter().filter(|t| !known(t)).cloned().collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let all: BTreeSet<_> = modules.filter_map(|m| m.rsplit('.').next()).collect();
        let all = all.into_iter().collect::<Vec<_>>().join(", ");
        let unknown = unknown.join(", ");
        Err(LmError::Input(format!("LoRA `target_modules` the model has not: {unknown}; it has {all}")))
    }
}

/// Where a model's adapters come from when it is loaded, and trained tensors that stand in the place of its own: those of
/// `params` that are called as one of a decoder's embeddings or norms.
pub struct LoraSource<'a> {
    /// Ranks and targets.
    pub config: &'a LoraConfig,
    /// Their tensors.
    pub params: &'a mut Params,
    /// What stands before the module's path in their names: `encoder.` or `decoder.`.
    pub prefix: &'a str,
}

impl LoraSource<'_> {
    /// The adapter of a linear, where it has one.
    pub(crate) fn of(&mut self, spec: &LinearSpec) -> Result<Option<Lora>> {
        if !self.config.targets(&spec.module) {
            return Ok(None);
        }
        let r = self.config.r;
        let name = |part| format!("{}{}.lora_{part}.weight", self.prefix, spec.module);
        Ok(Some(Lora {
            a: self.params.get(&name("A"), &[r, spec.inputs])?,
            b: self.params.get(&name("B"), &[spec.outputs, r])?,
            scaling: self.config.scaling(),
        }))
    }
}
