//! Trained tensors by name: loaded for inference, or made variables for training.

use crate::config::TensorSpec;
use crate::{LmError, Result, TensorProblems};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};

/// The trained tensors of a model. In training every tensor handed out is a candle `Var`.
///
/// Sorted by name, so that saving, reducing and stepping go in the same order in every process.
#[derive(Debug)]
pub struct Params {
    tensors: BTreeMap<String, Tensor>,
    used: BTreeSet<String>,
    vars: BTreeMap<String, Var>,
    device: Device,
    dtype: DType,
    trainable: bool,
}

impl Params {
    /// Takes loaded tensors; they are handed out on `device` in `dtype`, as variables where `trainable`.
    pub fn new(tensors: BTreeMap<String, Tensor>, device: &Device, dtype: DType, trainable: bool) -> Self {
        let device = device.clone();
        Self { tensors, used: BTreeSet::new(), vars: BTreeMap::new(), device, dtype, trainable }
    }

    /// Whether tensors are handed out as variables.
    pub fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// Compares names and shapes with what a model will ask for, before it is built.
    ///
    /// # Errors
    /// All missing, unexpected and mis-shaped tensors at once.
    pub fn check(&self, expected: &[TensorSpec]) -> std::result::Result<(), TensorProblems> {
        let mut problems = TensorProblems::default();
        let names: BTreeSet<_> = expected.iter().map(|s| s.name.as_str()).collect();
        for spec in expected {
            match self.tensors.get(&spec.name) {
                None => problems.missing.push(spec.name.clone()),
                Some(t) if t.dims() != spec.shape => {
                    let how = format!("is {:?}, expected {:?}", t.dims(), spec.shape);
                    problems.mismatched.push((spec.name.clone(), how));
                }
                Some(_) => {}
            }
        }
        problems.unexpected = self.tensors.keys().filter(|n| !names.contains(n.as_str())).cloned().collect();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Whether there is a tensor called `name`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor called `name`; asking twice gives the same variable.
    ///
    /// # Errors
    /// No tensor of that name, or one of another shape.
    pub fn get(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(var) = self.vars.get(name) {
            return Ok(var.as_tensor().clone());
        }
        let Some(tensor) = self.tensors.get(name) else {
            return Err(LmError::Input(format!("trained tensor `{name}` is missing")));
        };
        if tensor.dims() != shape {
            let got = tensor.dims();
            return Err(LmError::Input(format!("trained tensor `{name}` is {got:?}, expected {shape:?}")));
        }
        let tensor = tensor.to_device(&self.device)?.to_dtype(self.dtype)?.contiguous()?;
        self.used.insert(name.to_owned());
        if !self.trainable {
            return Ok(tensor);
        }
        let var = Var::from_tensor(&tensor)?;
        let tensor = var.as_tensor().clone();
        self.vars.insert(name.to_owned(), var);
        Ok(tensor)
    }

    /// The variables handed out so far; empty outside training.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// The variables, once the model is built.
    ///
    /// # Errors
    /// Tensors that nobody asked for: they belong to another model.
    pub fn finish(self) -> Result<BTreeMap<String, Var>> {
        let unused: Vec<_> = self.tensors.keys().filter(|n| !self.used.contains(*n)).cloned().collect();
        if unused.is_empty() {
            return Ok(self.vars);
        }
        Err(LmError::Input(format!("trained tensors the model has no place for: {}", unused.join(", "))))
    }
}
