//! Scaled dot-product attention that never holds the score matrix.

mod backward;
mod forward;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use std::sync::{Mutex, PoisonError};

use crate::element::{Element, Real, for_dtype, storage};
use crate::host;
use crate::rope::dense;

/// Which keys a query may see.
#[derive(Clone, Copy, Debug)]
pub enum Mask<'a> {
    /// Every key.
    None,
    /// Query row `i` sees keys `0..=offset + i`: `offset` is the number of cached positions before the first query.
    Causal {
        /// Position of the first query.
        offset: usize,
    },
    /// Batch row `b` has `lengths[b]` valid keys, the rest is padding.
    Keys(&'a [usize]),
    /// Both: query row `i` of batch row `b` sees keys `0..=i` that are below `lengths[b]`.
    CausalKeys(&'a [usize]),
}

/// `softmax(scale * q k^T + mask) v` for every head.
///
/// `q` is `[B, H, Tq, d]`, `k` and `v` `[B, Hkv, Tk, d]` with `H` a multiple of `Hkv` (query head `h` reads key head
/// `h / (H / Hkv)`); the result is `[B, H, Tq, d]`. It is laid out so that `transpose(1, 2)` of it is contiguous,
/// which is what the output projection reads.
///
/// Only the last dimension of the inputs must be dense: a transposed view of a projection, or a cache narrowed to
/// its filled part, is read in place. A row that sees no key is zero, and passes no gradient. Memory beyond the
/// result is one float per row and head plus a block of scores per thread.
///
/// # Errors
/// If sizes, element types or devices do not fit together.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, scale: f64) -> Result<Tensor> {
    let (b, h, tq, d) = q.dims4()?;
    let (kb, hkv, tk, kd) = k.dims4()?;
    if kb != b || kd != d || v.dims() != k.dims() || hkv == 0 || h % hkv != 0 {
        bail!("attention: q {:?}, k {:?} and v {:?} do not fit together", q.shape(), k.shape(), v.shape());
    }
    if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
        bail!("attention: element types differ: q {:?}, k {:?}, v {:?}", q.dtype(), k.dtype(), v.dtype());
    }
    let (lengths, offset) = match mask {
        Mask::None => (None, None),
        Mask::Causal { offset } => (None, Some(offset)),
        Mask::Keys(lengths) => (Some(lengths), None),
        Mask::CausalKeys(lengths) => (Some(lengths), Some(0)),
    };
    if let Some(lengths) = lengths
        && lengths.len() != b
    {
        bail!("attention: {} key lengths for a batch of {b}", lengths.len());
    }
    let lengths = (0..b).map(|i| lengths.map_or(tk, |l| l[i].min(tk))).collect();
    let visible = Visible { lengths, offset };
    let size = Size { b, h, hkv, tq, tk, d };
    let tracked = q.track_op() || k.track_op() || v.track_op();
    let op = Attention { size, visible, scale, tracked, lse: Mutex::new(None) };
    dense(q)?.apply_op3(&dense(k)?, &dense(v)?, op)?.transpose(1, 2)
}

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
struct Size {
    b: usize,
    h: usize,
    hkv: usize,
    tq: usize,
    tk: usize,
    d: usize,
}

impl Size {
    /// Query heads per key head.
    fn group(&self) -> usize {
        self.h / self.hkv
    }
}

/// The mask in the form the loops need: every query sees a prefix of the keys.
#[derive(Clone, Debug)]
struct Visible {
    lengths: Vec<usize>,
    offset: Option<usize>,
}

impl Visible {
    /// Number of keys that query row `i` of batch row `b` sees.
    #[inline(always)]
    fn keys(&self, b: usize, i: usize) -> usize {
        match self.offset {
            Some(offset) => self.lengths[b].min(offset + i + 1),
            None => self.lengths[b],
        }
    }
}

/// Rows of a `[B, H, T, d]` tensor whose last dimension is dense.
#[derive(Clone, Copy)]
struct Rows<'a, T> {
    data: &'a [T],
    stride: [usize; 3],
    d: usize,
}

impl<'a, T> Rows<'a, T> {
    fn new(data: &'a [T], layout: &Layout) -> Result<Self> {
        let (_, _, _, d) = layout.shape().dims4()?;
        let s = layout.stride();
        Ok(Self { data: &data[layout.start_offset()..], stride: [s[0], s[1], s[2]], d })
    }

    #[inline(always)]
    fn row(&self, b: usize, h: usize, t: usize) -> &'a [T] {
        &self.data[b * self.stride[0] + h * self.stride[1] + t * self.stride[2]..][..self.d]
    }
}

/// `lse` keeps the logarithm of each row's sum of exponentials, `[B, H, Tq]`, from forward to backward.
struct Attention {
    size: Size,
    visible: Visible,
    scale: f64,
    tracked: bool,
    lse: Mutex<Option<Tensor>>,
}

impl Attention {
    fn keep(&self, lse: Tensor) {
        *self.lse.lock().unwrap_or_else(PoisonError::into_inner) = Some(lse);
    }

    fn kept(&self) -> Result<Tensor> {
        match &*self.lse.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(lse) => Ok(lse.clone()),
            None => bail!("attention: backward without forward"),
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Size { b, h, tq, d, .. } = self.size;
        for_dtype!("attention", q.dtype(), T => {
            let q = Rows::new(q.as_slice::<T>()?, ql)?;
            let k = Rows::new(k.as_slice::<T>()?, kl)?;
            let v = Rows::new(v.as_slice::<T>()?, vl)?;
            let (o, lse) = forward::run(self.size, &self.visible, <T as Element>::Acc::real(self.scale), q, k, v);
            if self.tracked {
                self.keep(Tensor::from_vec(lse, (b, h, tq), &candle_core::Device::Cpu)?);
            }
            Ok((storage(o), Shape::from((b, tq, h, d))))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let lse = self.kept()?;
        // Both are [B, Tq, H, d]; the loops want [B, H, Tq, d] and read views.
        let (o, g) = (o.transpose(1, 2)?, dense(g)?.transpose(1, 2)?);
        for_dtype!("attention", q.dtype(), T => {
            let stores = [q, k, v, &o, &g].map(Tensor::storage_and_layout);
            let [rq, rk, rv, ro, rg] = {
                let mut rows = Vec::with_capacity(5);
                for (s, l) in &stores {
                    rows.push(Rows::new(host::cpu(s)?.as_slice::<T>()?, l)?);
                }
                [rows[0], rows[1], rows[2], rows[3], rows[4]]
            };
            let lse = host::to_vec::<<T as Element>::Acc>(&lse)?;
            let scale = <T as Element>::Acc::real(self.scale);
            let inputs = backward::Inputs { q: rq, k: rk, v: rv, o: ro, g: rg, lse: &lse };
            let (dq, dk, dv) = backward::run(self.size, &self.visible, scale, inputs);
            let tensor = |data: Vec<T>, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
            Ok((Some(tensor(dq, q)?), Some(tensor(dk, k)?), Some(tensor(dv, v)?)))
        })
    }
}
