//! Losses of single items: what a model makes of data without learning from it.

use crate::{Batch, Part, Result, TrainError, Trainable};
use candle_core::DType;
use e2llm_backend::CancelFlag;

/// The loss of one item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ItemLoss {
    /// The item's number in [`Trainable::items`].
    pub item: u32,
    /// Sum of the cross-entropies of its target tokens.
    pub nats: f64,
    /// Target tokens.
    pub tokens: u32,
}

/// Losses of at most `most` evenly spread items of a part (0: all), each computed alone, so that none depends on its
/// neighbours' padding. `None` where `cancel` was set meanwhile.
///
/// # Errors
/// Items that the model cannot read; failing tensor operations; a loss that is no number.
pub fn item_losses(
    model: &dyn Trainable,
    part: Part,
    most: usize,
    cancel: &CancelFlag,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Option<Vec<ItemLoss>>> {
    let items = model.items(part)?;
    let n = items.len();
    let count = if most == 0 { n } else { most.min(n) };
    let mut losses = Vec::with_capacity(count);
    for i in 0..count {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        let item = (i * n / count) as u32;
        let loss = model.loss(&Batch { part, items: &[item], draw: 0 })?;
        let nats: f64 = loss.detach().to_dtype(DType::F64)?.to_scalar()?;
        if !nats.is_finite() {
            let what = model.describe(part, item);
            return Err(TrainError::Data(format!("the loss is {nats}: {what}")));
        }
        losses.push(ItemLoss { item, nats, tokens: items[item as usize].targets });
        progress(i + 1, count);
    }
    Ok(Some(losses))
}
