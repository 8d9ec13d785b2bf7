//! Causal attention within groups of positions.

use candle_core::{Device, Result, Tensor, bail};
use std::ops::Range;

use super::{Mask, attention_rows};
use crate::RowMap;
use crate::loss::IGNORED;

/// Groups of a batch's positions, each padded on the right to the longest.
#[derive(Clone, Debug)]
pub struct HeadGroups {
    pub(crate) count: usize,
    pub(crate) longest: usize,
    /// Positions `[B * T]` to places in groups `[count * longest]`.
    pub(crate) map: RowMap,
}

impl HeadGroups {
    /// Groups of consecutive positions of `positions` (`B * T`), in order; a position that is in none sees nothing.
    ///
    /// # Errors
    /// A position that is not there or in two groups.
    pub fn new(groups: &[Range<usize>], positions: usize, device: &Device) -> Result<Self> {
        let longest = groups.iter().map(Range::len).max().unwrap_or(0);
        let mut rows = vec![IGNORED; groups.len() * longest];
        for (place, group) in rows.chunks_mut(longest.max(1)).zip(groups) {
            for (row, position) in place.iter_mut().zip(group.clone()) {
                *row = u32::try_from(position).unwrap_or(IGNORED);
            }
        }
        Ok(Self { count: groups.len(), longest, map: RowMap::new(&rows, positions, device)? })
    }

    /// Some heads of `[B, H, T, d]` within the groups: `[B, T, heads, d]`. Padding stands behind all that is seen.
    fn attend(&self, qkv: [&Tensor; 3], heads: &Range<usize>, scale: f64) -> Result<Tensor> {
        let (b, _, t, d) = qkv[0].dims4()?;
        let n = heads.len();
        let mut grouped = Vec::with_capacity(3);
        for x in qkv {
            let rows = x.narrow(1, heads.start, n)?.transpose(1, 2)?.reshape((b * t, n * d))?;
            grouped.push(self.map.gather(&rows)?.reshape((self.count, self.longest, n, d))?.transpose(1, 2)?);
        }
        let mask = Mask::Causal { offset: 0 };
        let o = attention_rows(&grouped[0], &grouped[1], &grouped[2], mask, scale)?;
        let o = o.reshape((self.count * self.longest, n * d))?;
        self.map.inverse().gather(&o)?.reshape((b, t, n, d))
    }
}

/// What queries `[B, H, T, d]` see of keys and values `[B, Hkv, T, d]`: the first half of the heads those before them in the
/// first groups, the others in the second. `[B, H, T, d]`, zero for a position in no group.
///
/// # Errors
/// Shapes that do not fit together.
pub fn group_attention(
    groups: &[HeadGroups; 2],
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
) -> Result<Tensor> {
    let h = q.dim(1)?;
    // A key head may serve query heads of both halves.
    let (k, v) = (repeat_heads(k, h)?, repeat_heads(v, h)?);
    let mut parts = Vec::new();
    for (groups, range) in groups.iter().zip([0..h / 2, h / 2..h]) {
        if !range.is_empty() {
            parts.push(groups.attend([q, &k, &v], &range, scale)?);
        }
    }
    Tensor::cat(&parts, 2)?.transpose(1, 2)
}

/// Key heads `[B, Hkv, T, d]` once for each of `h` query heads.
fn repeat_heads(x: &Tensor, h: usize) -> Result<Tensor> {
    let (b, own, t, d) = x.dims4()?;
    if own == h {
        return Ok(x.clone());
    }
    if own == 0 || !h.is_multiple_of(own) {
        bail!("{h} query heads for {own} key heads");
    }
    x.unsqueeze(2)?.broadcast_as((b, own, h / own, t, d))?.reshape((b, h, t, d))
}
