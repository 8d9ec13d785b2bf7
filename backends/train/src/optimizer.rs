//! AdamW on float32 master weights, with accumulated and clipped gradients.

use crate::config::OptimizerConfig;
use crate::{Result, TrainError};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use e2llm_kernels::{AdamW, Update, adamw_steps, global_norm};
use std::collections::BTreeMap;

/// Moments of one variable.
#[derive(Debug)]
struct Moments {
    first: Tensor,
    second: Tensor,
}

/// The optimiser of a set of variables.
///
/// As torch's `AdamW` behind `clip_grad_norm_`: gradients are scaled by `min(1, max_norm / (norm + 1e-6))`, and a
/// variable that got no gradient is left alone.
#[derive(Debug)]
pub struct Optimizer {
    settings: AdamW,
    max_norm: f64,
    vars: BTreeMap<String, Var>,
    moments: BTreeMap<String, Moments>,
    gradients: BTreeMap<String, Tensor>,
    steps: usize,
}

impl Optimizer {
    /// An optimiser before its first step.
    ///
    /// # Errors
    /// Variables that are not float32.
    pub fn new(vars: &BTreeMap<String, Var>, config: &OptimizerConfig) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, var) in vars {
            if var.dtype() != DType::F32 {
                return Err(TrainError::Config(format!("trained tensor `{name}` is not float32")));
            }
            moments.insert(name.clone(), Moments { first: var.zeros_like()?, second: var.zeros_like()? });
        }
        let settings = AdamW {
            lr: config.lr,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay: config.weight_decay,
        };
        Ok(Self {
            settings,
            max_norm: config.max_grad_norm,
            vars: vars.clone(),
            moments,
            gradients: BTreeMap::new(),
            steps: 0,
        })
    }

    /// Adds a batch's gradients to those of the step.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn accumulate(&mut self, store: &mut GradStore) -> Result<()> {
        for (name, var) in &self.vars {
            let Some(gradient) = store.remove(var) else { continue };
            let gradient = match self.gradients.remove(name) {
                Some(before) => (before + gradient)?,
                None => gradient,
            };
            // Detached, or the graph that made it would be kept alive.
            self.gradients.insert(name.clone(), gradient.detach());
        }
        Ok(())
    }

    /// Euclidean norm of all accumulated gradients together.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn gradient_norm(&self) -> Result<f64> {
        let all: Vec<&Tensor> = self.gradients.values().collect();
        Ok(global_norm(&all)?)
    }

    /// Makes a step with the accumulated gradients, whose norm is `norm`, and forgets them.
    ///
    /// # Errors
    /// Failing tensor operations.
    pub fn step(&mut self, lr: f64, norm: f64) -> Result<()> {
        let scale = (self.max_norm / (norm + 1e-6)).min(1.0);
        let settings = AdamW { lr, ..self.settings };
        self.steps += 1;
        let gradients = std::mem::take(&mut self.gradients);
        let update = |(name, grad): (&String, &'_ Tensor)| {
            let (var, m) = (self.vars.get(name)?, self.moments.get(name)?);
            Some((var.as_tensor(), m, grad.contiguous()))
        };
        let mut all = Vec::with_capacity(gradients.len());
        for (p, m, grad) in gradients.iter().filter_map(update) {
            all.push((p, m, grad?));
        }
        let updates: Vec<_> =
            all.iter().map(|(p, m, grad)| Update { p, m: &m.first, v: &m.second, grad }).collect();
        adamw_steps(&updates, &settings, self.steps, scale)?;
        Ok(())
    }

    /// Forgets the accumulated gradients.
    pub fn discard(&mut self) {
        self.gradients.clear();
    }

    /// Weights and moments under `weight.`, `first.` and `second.`.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut all = BTreeMap::new();
        for (name, var) in &self.vars {
            all.insert(format!("weight.{name}"), var.as_detached_tensor());
        }
        for (name, m) in &self.moments {
            all.insert(format!("first.{name}"), m.first.clone());
            all.insert(format!("second.{name}"), m.second.clone());
        }
        all
    }

    /// Takes weights and moments back, after `steps` steps. Nothing is changed unless all of them fit.
    ///
    /// # Errors
    /// Tensors that are missing, unexpected or of another shape, all of them.
    pub fn restore(&mut self, tensors: &BTreeMap<String, Tensor>, steps: usize) -> Result<()> {
        let own = self.tensors();
        let mut wrong: Vec<String> = Vec::new();
        for (name, tensor) in &own {
            match tensors.get(name) {
                None => wrong.push(format!("{name} is missing")),
                Some(t) if t.dims() != tensor.dims() || t.dtype() != DType::F32 => {
                    wrong.push(format!("{name} is {:?} {:?}, not {:?}", t.dtype(), t.dims(), tensor.dims()));
                }
                Some(_) => {}
            }
        }
        wrong.extend(tensors.keys().filter(|n| !own.contains_key(*n)).map(|n| format!("{n} is unexpected")));
        if !wrong.is_empty() {
            return Err(TrainError::Data(format!(
                "the checkpoint is of another architecture: {}",
                wrong.join(", ")
            )));
        }
        for (name, var) in &self.vars {
            let take = |part: &str| tensors[&format!("{part}.{name}")].to_device(var.device());
            var.set(&take("weight")?)?;
            let moments = Moments { first: take("first")?.copy()?, second: take("second")?.copy()? };
            self.moments.insert(name.clone(), moments);
        }
        self.steps = steps;
        Ok(())
    }
}
