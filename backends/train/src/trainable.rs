//! What the training loop needs of a model and its data.

use crate::Result;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A part of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Answering an instruction about a context.
    Reasoning,
    /// Restating a window of consecutive chunks.
    Reconstruction,
}

impl Objective {
    /// Both, in the order in which they are computed.
    pub const ALL: [Self; 2] = [Self::Reasoning, Self::Reconstruction];

    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reasoning => "reasoning",
            Self::Reconstruction => "reconstruction",
        }
    }
}

/// What data is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Learned from.
    Train,
    /// Only measured on.
    Validation,
}

impl Split {
    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// A set of items of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What they are for.
    pub split: Split,
    /// What is learned from them.
    pub objective: Objective,
    /// Consecutive chunks of a reconstruction item.
    pub window: usize,
}

/// What an item costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Item {
    /// Tokens the encoder reads, padding within the item included.
    pub encoder: u32,
    /// Positions of the decoder.
    pub decoder: u32,
    /// Tokens that are predicted.
    pub targets: u32,
}

/// Items that go through the model together.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Where they are from.
    pub part: Part,
    /// Their numbers in [`Trainable::items`].
    pub items: &'a [u32],
    /// Seed of any choice that is made anew each time an item comes (which part of a context is read).
    pub draw: u64,
}

/// Anything that can be trained by [`train`](crate::train).
///
/// All of its answers must be functions of the arguments and the variables alone: that is what makes a resumed
/// training the same as one that was never interrupted.
pub trait Trainable {
    /// The variables by name: float32 master weights, changed in place by the optimiser.
    fn vars(&self) -> &BTreeMap<String, Var>;

    /// What each item of a part costs; empty where the model has no such objective.
    ///
    /// # Errors
    /// Items that cannot be trained on, e.g. beyond the decoder's window.
    fn items(&self, part: Part) -> Result<Vec<Item>>;

    /// Sum of the cross-entropies of all target tokens of a batch, in nats: a float32 scalar with its gradient.
    /// How it is reduced is the loop's business, which knows all batches of a step.
    ///
    /// # Errors
    /// Failing tensor operations.
    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor>;

    /// The document that an item is about: losses of one document's items are not independent.
    fn document(&self, part: Part, item: u32) -> String;

    /// An item for a message: which document and what of it.
    fn describe(&self, part: Part, item: u32) -> String;

    /// Identifies data and frozen weights: a training is resumed on the same ones only.
    fn fingerprint(&self) -> String;

    /// Writes what inference needs into a folder that exists.
    ///
    /// # Errors
    /// Anything that cannot be written.
    fn save(&self, folder: &Path) -> Result<()>;
}
