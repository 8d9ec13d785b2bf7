//! How likely the model finds given texts.

use crate::prefill::read_blocks;
use crate::{KvCache, Llama, LmError, Memory, PREFILL_BLOCK, Result, Segment, prefill, prompt_len};
use candle_core::{DType, Tensor};

/// A few positions' logits at a time: 64 x 150k x 4 bytes are 38 MB, a whole block's would be 300.
const LOGIT_ROWS: usize = PREFILL_BLOCK / 8;
/// Positions of texts that are read side by side: enough for a GPU's whole layers, and what a CPU's caches can bear.
const BATCH_ON_GPU: usize = 16_384;
const BATCH: usize = 2048;

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
    let firsts: Option<Vec<u32>> = continuations.iter().map(|ids| ids.first().copied()).collect();
    let Some(firsts) = firsts else { return Err(LmError::Input("an empty continuation".to_owned())) };
    if firsts.is_empty() {
        return Ok(Vec::new());
    }
    check_ids(llama, &firsts)?;
    let first = log_softmax(&llama.logits(&last)?)?.squeeze(0)?;
    let first = on_host(&[first.index_select(&Tensor::new(firsts, first.device())?, 0)?])?;
    let mut scores = Vec::with_capacity(continuations.len());
    for (ids, mut score) in continuations.iter().zip(first) {
        if ids.len() > 1 {
            let mut branch = memory.fork()?;
            let read = ids[..ids.len() - 1].to_vec();
            let rest = block_log_probs(llama, &[Segment::Ids(read)], &ids[1..], &mut *branch, cancelled)?;
            score += rest.iter().sum::<f64>();
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

/// Log-likelihoods (nats) of the ids from `first` on (1 at least) of each text `(ids, first)`, behind those before them.
///
/// Texts are read side by side and each once, in batches of texts of about one length; of the positions that are not asked
/// for there are no logits.
///
/// # Errors
/// A text whose first id of all is asked for, ids beyond the vocabulary; [`LmError::Cancelled`].
pub fn tail_log_probs(
    llama: &Llama,
    texts: &[(Vec<u32>, usize)],
    cancelled: &dyn Fn() -> bool,
) -> Result<Vec<Vec<f64>>> {
    if texts.iter().any(|(_, first)| *first == 0) {
        return Err(LmError::Input("the first id of all has no likelihood".to_owned()));
    }
    let mut scores = vec![Vec::new(); texts.len()];
    let mut order: Vec<usize> = (0..texts.len()).filter(|&i| texts[i].1 < texts[i].0.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(texts[i].0.len()));
    let most = if llama.device().is_cuda() { BATCH_ON_GPU } else { BATCH };
    let mut left = &order[..];
    while let Some(&longest) = left.first() {
        if cancelled() {
            return Err(LmError::Cancelled);
        }
        // The last id of a text is not read: nothing follows it.
        let t = texts[longest].0.len() - 1;
        let (batch, rest) = left.split_at((most / t).clamp(1, left.len()));
        left = rest;
        let mut all = side_by_side(llama, batch.iter().map(|&i| &texts[i]), t)?.into_iter();
        for &i in batch {
            let (ids, first) = &texts[i];
            scores[i] = all.by_ref().take(ids.len() - first).collect();
        }
    }
    Ok(scores)
}

/// The log-likelihoods asked for of texts of at most `t + 1` ids, one text's behind the other's.
fn side_by_side<'a>(
    llama: &Llama,
    texts: impl Iterator<Item = &'a (Vec<u32>, usize)>,
    t: usize,
) -> Result<Vec<f64>> {
    let (mut padded, mut lengths, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (ids, first) in texts {
        let start = padded.len();
        let read = ids.len() - 1;
        padded.extend(&ids[..read]);
        padded.resize(start + t, 0);
        lengths.push(read);
        rows.extend((start + first - 1..start + read).map(|row| row as u32));
        targets.extend(&ids[*first..]);
    }
    let x = llama.embed(&padded)?.reshape((lengths.len(), t, ()))?;
    let hidden = llama.forward_hidden(&x, Some(&lengths), None)?.flatten(0, 1)?;
    let rows = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?.unsqueeze(0)?;
    on_host(&[chosen(llama, &rows, &targets)?])
}

/// Log-likelihood of `targets[i]` behind position `i` of `read`.
fn block_log_probs(
    llama: &Llama,
    read: &[Segment],
    targets: &[u32],
    memory: &mut dyn Memory,
    cancelled: &dyn Fn() -> bool,
) -> Result<Vec<f64>> {
    let (mut scores, mut start) = (Vec::new(), 0);
    read_blocks(llama, read, memory, cancelled, |hidden| {
        let end = start + hidden.dim(1)?;
        scores.push(chosen(llama, hidden, &targets[start..end])?);
        start = end;
        Ok(())
    })?;
    on_host(&scores)
}

/// Log-likelihoods `[T]`, on the model's device, of `targets[i]` by the hidden states `[1, T, D]` of the positions before.
pub(crate) fn chosen(llama: &Llama, hidden: &Tensor, targets: &[u32]) -> candle_core::Result<Tensor> {
    check_ids(llama, targets)?;
    let mut parts = Vec::with_capacity(targets.len().div_ceil(LOGIT_ROWS));
    for (block, ids) in targets.chunks(LOGIT_ROWS).enumerate() {
        let rows = hidden.narrow(1, block * LOGIT_ROWS, ids.len())?;
        let logits = log_softmax(&llama.logits(&rows)?)?;
        let ids = Tensor::new(ids, logits.device())?.unsqueeze(1)?;
        parts.push(logits.gather(&ids, 1)?.squeeze(1)?);
    }
    Tensor::cat(&parts, 0)
}

/// Numbers of several tensors `[n]`, copied from their device at once.
pub(crate) fn on_host(parts: &[Tensor]) -> Result<Vec<f64>> {
    if parts.is_empty() {
        return Ok(Vec::new());
    }
    Ok(Tensor::cat(parts, 0)?.to_dtype(DType::F64)?.to_vec1()?)
}

/// `[1, T, V]` to `[T, V]`, in float32 at least.
fn log_softmax(logits: &Tensor) -> candle_core::Result<Tensor> {
    let logits = if logits.dtype() == DType::F64 { logits.clone() } else { logits.to_dtype(DType::F32)? };
    candle_nn::ops::log_softmax(&logits.squeeze(0)?, 1)
}

/// A GPU would read beyond the logits.
fn check_ids(llama: &Llama, ids: &[u32]) -> candle_core::Result<()> {
    let vocabulary = llama.config().vocab_size;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        candle_core::bail!("token {id} is beyond the vocabulary of {vocabulary}");
    }
    Ok(())
}
