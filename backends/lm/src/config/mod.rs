//! Model configurations: HF `config.json` and GGUF metadata.

mod bert;
mod llama;

pub use bert::BertConfig;
pub use llama::LlamaConfig;

use crate::{LmError, Result};
use serde::Deserialize;
use std::path::Path;

/// A tensor that a configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// HF name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of the given name and dimensions.
    pub fn new(name: impl Into<String>, shape: Vec<usize>) -> Self {
        Self { name: name.into(), shape }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A linear layer that a configuration asks for.
#[derive(Debug, Clone)]
pub(crate) struct LinearSpec {
    pub(crate) module: String,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) bias: bool,
}

impl LinearSpec {
    pub(crate) fn new(module: impl Into<String>, outputs: usize, inputs: usize, bias: bool) -> Self {
        Self { module: module.into(), outputs, inputs, bias }
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        let weight = TensorSpec::new(format!("{}.weight", self.module), vec![self.outputs, self.inputs]);
        let bias = self.bias.then(|| TensorSpec::new(format!("{}.bias", self.module), vec![self.outputs]));
        std::iter::once(weight).chain(bias)
    }
}

pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| LmError::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| LmError::file(path, format!("not the JSON it should be: {e}")))
}

/// Dimensions beyond this are a damaged file, not a model.
const LARGEST: usize = 1 << 24;
/// As many layers would be: each costs memory before its tensors are looked for.
const MOST_LAYERS: usize = 1 << 10;

fn check_sizes(sizes: &[(&str, usize)]) -> std::result::Result<(), String> {
    let most = |name: &str| if name == "num_hidden_layers" { MOST_LAYERS } else { LARGEST };
    match sizes.iter().find(|(name, n)| *n == 0 || *n > most(name)) {
        Some((name, n)) => Err(format!("`{name}` = {n} is out of range")),
        None => Ok(()),
    }
}

/// One id, several, or none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum Ids {
    One(u32),
    Many(Vec<u32>),
    #[default]
    None,
}

impl Ids {
    pub(crate) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
            Self::None => Vec::new(),
        }
    }
}
