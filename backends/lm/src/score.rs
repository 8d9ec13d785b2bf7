//! How likely the model finds given texts.

use crate::prefill::read_blocks;
use crate::{KvCache, Llama, LmError, Memory, PREFILL_BLOCK, Result, Segment, prefill, prompt_len};
use candle_core::{DType, Tensor};

/// A few positions' logits at a time: 64 x 150k x 4 bytes are 38 MB, a whole block's would be 300.
pub(crate) const LOGIT_ROWS: usize = PREFILL_BLOCK / 8;

/// Log-likelihoods (nats) of each continuation behind the prompt, which is read once and shared.
///
/// # Errors
/// An empty prompt or continuation, ids beyond the vocabulary; [`LmError::Cancelled`].
pub fn score_continuations(
    llama: &Llama,
    prompt: &[Segment],
    continuations: &[Vec<u32>],
    cancelled: &dyn Fn() -> bool,
) -> Result<Vec<f64>> {
    let longest = continuations.iter().map(Vec::len).max().unwrap_or(0);
    let mut cache = KvCache::new(prompt_len(prompt) + longest);
    score_continuations_with(&mut cache, llama, prompt, continuations, cancelled)
}

/// As [`score_continuations`], with a memory of the caller's.
///
/// # Errors
/// As [`score_continuations`].
pub fn score_continuations_with(
    memory: &mut dyn Memory,
    llama: &Llama,
    prompt: &[Segment],
    continuations: &[Vec<u32>],
    cancelled: &dyn Fn() -> bool,
) -> Result<Vec<f64>> {
    let last = prefill(llama, prompt, memory, cancelled)?;
    let first = log_softmax(&llama.logits(&last)?)?;
    let mut scores = Vec::with_capacity(continuations.len());
    for ids in continuations {
        let Some((first_id, rest)) = ids.split_first() else {
            return Err(LmError::Input("an empty continuation".to_owned()));
        };
        let mut score = at(&first, 0, *first_id)?;
        if !rest.is_empty() {
            let mut branch = memory.fork()?;
            let read = ids[..ids.len() - 1].to_vec();
            score += block_log_probs(llama, &[Segment::Ids(read)], rest, &mut *branch, cancelled)?
                .iter()
                .sum::<f64>();
        }
        scores.push(score);
    }
    Ok(scores)
}

/// Log-likelihoods (nats) of every id but the first, each behind those before it.
///
/// # Errors
/// Fewer than two ids, ids beyond the vocabulary; [`LmError::Cancelled`].
pub fn token_log_probs(llama: &Llama, ids: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f64>> {
    if ids.len() < 2 {
        return Err(LmError::Input(format!(
            "{} ids: the first is only read, so there must be two",
            ids.len()
        )));
    }
    let mut cache = KvCache::new(ids.len());
    let read = ids[..ids.len() - 1].to_vec();
    block_log_probs(llama, &[Segment::Ids(read)], &ids[1..], &mut cache, cancelled)
}

/// Log-likelihood of `targets[i]` behind position `i` of `read`.
fn block_log_probs(
    llama: &Llama,
    read: &[Segment],
    targets: &[u32],
    memory: &mut dyn Memory,
    cancelled: &dyn Fn() -> bool,
) -> Result<Vec<f64>> {
    let mut scores = Vec::with_capacity(targets.len());
    read_blocks(llama, read, memory, cancelled, |hidden| {
        let t = hidden.dim(1)?;
        for start in (0..t).step_by(LOGIT_ROWS) {
            let rows = LOGIT_ROWS.min(t - start);
            let logits = log_softmax(&llama.logits(&hidden.narrow(1, start, rows)?)?)?;
            for row in 0..rows {
                scores.push(at(&logits, row, targets[scores.len()])?);
            }
        }
        Ok(())
    })?;
    Ok(scores)
}

/// `[1, T, V]` to `[T, V]`, in float32 at least.
pub(crate) fn log_softmax(logits: &Tensor) -> candle_core::Result<Tensor> {
    let logits = if logits.dtype() == DType::F64 { logits.clone() } else { logits.to_dtype(DType::F32)? };
    candle_nn::ops::log_softmax(&logits.squeeze(0)?, 1)
}

pub(crate) fn at(log_probs: &Tensor, row: usize, id: u32) -> candle_core::Result<f64> {
    let vocab = log_probs.dim(1)?;
    if id as usize >= vocab {
        candle_core::bail!("token {id} is beyond the vocabulary of {vocab}");
    }
    log_probs.get(row)?.get(id as usize)?.to_dtype(DType::F64)?.to_scalar::<f64>()
}
