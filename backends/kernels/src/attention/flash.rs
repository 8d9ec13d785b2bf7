//! FlashAttention-2's own kernels (Dao 2023, through candle-flash-attn) in the place of ours, for inference.
//!
//! They have no backward pass, so that whatever is trained goes through this crate's kernels. Building them fetches and
//! compiles CUTLASS, which is why they are a feature.

use candle_core::{DType, Result, Tensor};

/// Widest heads that the kernels take.
const WIDEST: usize = 256;

/// The result `[B, Tq, H, d]` of inputs as [`attention`](super::attention) takes them; `None` where the kernels do not
/// serve: on other devices and element types, for padded keys, and where something is trained.
///
/// # Errors
/// Any of the kernels.
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    lengths: &[usize],
    offset: Option<usize>,
    scale: f64,
) -> Result<Option<Tensor>> {
    let (tq, tk, d) = (q.dim(2)?, k.dim(2)?, q.dim(3)?);
    let tracked = [q, k, v].iter().any(|t| t.track_op());
    let fits = q.device().is_cuda()
        && matches!(q.dtype(), DType::BF16 | DType::F16)
        && !tracked
        && d.is_multiple_of(8)
        && d <= WIDEST
        && lengths.iter().all(|l| *l == tk)
        // The kernels' causal mask is aligned with the last key.
        && offset.is_none_or(|offset| offset + tq == tk);
    if !fits {
        return Ok(None);
    }
    let rows = |t: &Tensor| t.transpose(1, 2);
    let o = candle_flash_attn::flash_attn(&rows(q)?, &rows(k)?, &rows(v)?, scale as f32, offset.is_some())?;
    Ok(Some(o))
}
