//! The loss of a decoder that reads nothing but ids.

use crate::{Item, Result, TrainError};
use candle_core::{Tensor, bail};
use e2llm_lm::{Llama, Source};

/// Refuses items that the decoder cannot read.
pub(super) fn check_window(items: &[Item], window: usize, describe: impl Fn(u32) -> String) -> Result<()> {
    let Some(i) = items.iter().position(|i| i.decoder as usize > window) else { return Ok(()) };
    let (long, name) = (items[i].decoder, describe(i as u32));
    let count = items.iter().filter(|i| i.decoder as usize > window).count();
    Err(TrainError::Data(format!(
        "{count} items take more than the decoder's {window} positions, the first {long}: {name}; lower \
         data.max_chunks, data.max_context_tokens, data.max_answer_tokens or the window"
    )))
}

/// A prompt and the answer to it.
pub(super) struct Sequence {
    pub(super) prompt: Vec<u32>,
    pub(super) answer: Vec<u32>,
}

/// Sum of the cross-entropies of all answer tokens, as a float32 scalar with its gradient. Sequences are padded on the
/// right; logits are made at the positions before an answer token only.
pub(super) fn answer_loss(decoder: &Llama, batch: &[Sequence]) -> candle_core::Result<Tensor> {
    answer_loss_of(decoder, batch, None)
}

/// As [`answer_loss`]; the decoder's cross-attention reads `source`.
pub(super) fn answer_loss_of(
    decoder: &Llama,
    batch: &[Sequence],
    source: Option<&Source>,
) -> candle_core::Result<Tensor> {
    let lengths: Vec<usize> = batch.iter().map(|s| s.prompt.len() + s.answer.len()).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let (mut ids, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::<u32>::new());
    for (i, s) in batch.iter().enumerate() {
        if s.prompt.is_empty() {
            bail!("a sequence without a prompt");
        }
        ids.extend(s.prompt.iter().chain(&s.answer));
        ids.resize((i + 1) * longest, 0);
        let first = i * longest + s.prompt.len() - 1;
        rows.extend((first..first + s.answer.len()).map(|r| r as u32));
        targets.extend(&s.answer);
    }
    if targets.is_empty() {
        bail!("a batch without an answer token has no loss");
    }
    let n = targets.len();
    let embedded = decoder.embed(&ids)?.reshape((batch.len(), longest, ()))?;
    let hidden = decoder.forward_block(&embedded, Some(&lengths), source)?;
    let kept = e2llm_kernels::gather_rows(&hidden.flatten(0, 1)?, &rows)?;
    decoder.cross_entropy(&kept, &Tensor::from_vec(targets, n, decoder.device())?)
}
