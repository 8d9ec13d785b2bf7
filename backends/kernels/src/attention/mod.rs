//! Scaled dot-product attention that never holds the score matrix.

mod backward;
#[cfg(feature = "flash-attn")]
mod flash;
mod forward;
mod groups;
mod heads;
mod narrow;
mod narrow_backward;
mod wide;

pub use groups::{HeadGroups, group_attention};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, backend::BackendStorage, bail};
use half::bf16;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::RowLengths;
use crate::element::{Element, Real, for_dtype, halves, storage};
use crate::gemm::Mat;
use crate::host;
use crate::rope::dense;
pub(crate) use heads::Heads;

/// Widest heads that the GPU's kernels hold.
pub(crate) const WIDEST_ON_GPU: usize = 128;

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
    /// As `Keys`, with lengths that are on the device already.
    Rows(&'a RowLengths),
    /// Both: query row `i` of batch row `b` sees keys `0..=i` that are below `lengths[b]`.
    CausalKeys(&'a [usize]),
}

/// `softmax(scale * q k^T + mask) v` for every head.
///
/// `q` is `[B, H, Tq, d]`, `k` and `v` `[B, Hkv, Tk, d]` with `H` a multiple of `Hkv` (query head `h` reads key head
/// `h / (H / Hkv)`); the result is `[B, H, Tq, d]`, a view of what [`attention_rows`] returns.
///
/// Only the last dimension of the inputs must be dense: a transposed view of a projection, or a cache narrowed to
/// its filled part, is read in place. A row that sees no key is zero, and passes no gradient. Memory beyond the
/// result is one float per row and head plus a block of scores per thread; on a GPU, heads wider than 128 hold all scores.
///
/// # Errors
/// If sizes, element types or devices do not fit together, or on a GPU the scale is not positive.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, scale: f64) -> Result<Tensor> {
    run(q, k, v, mask, scale, None)?.transpose(1, 2)
}

/// As [`attention`], with the logarithm of each row's sum of exponentials, `[B, H, Tq]` (float32, float64 for float64),
/// by which attentions to disjoint sets of keys are put together; for inference. Of a row that sees no key it means nothing.
///
/// # Errors
/// As [`attention`].
pub fn attention_lse(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, scale: f64) -> Result<(Tensor, Tensor)> {
    let kept = Kept::default();
    let o = run(q, k, v, mask, scale, Some(&kept))?;
    Ok((o.transpose(1, 2)?, kept.get()?))
}

/// As [`attention`], with the heads of a position side by side: `[B, Tq, H * d]`, contiguous, which is what the
/// output projection reads. Neither this nor its backward pass moves anything to get there.
///
/// # Errors
/// As [`attention`].
pub fn attention_rows(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, scale: f64) -> Result<Tensor> {
    let o = run(q, k, v, mask, scale, None)?;
    let (b, tq, h, d) = o.dims4()?;
    o.reshape((b, tq, h * d))
}

/// The result as `[B, Tq, H, d]`; `lse` gets its logarithms where they are asked for.
fn run(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, scale: f64, lse: Option<&Kept>) -> Result<Tensor> {
    let _timer = crate::profile::timer(crate::profile::Kind::Attention);
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
        Mask::Rows(lengths) => (Some(lengths.rows()), None),
        Mask::CausalKeys(lengths) => (Some(lengths), Some(0)),
    };
    if let Some(lengths) = lengths
        && lengths.len() != b
    {
        bail!("attention: {} key lengths for a batch of {b}", lengths.len());
    }
    let lengths: Vec<usize> = (0..b).map(|i| lengths.map_or(tk, |l| l[i].min(tk))).collect();
    #[cfg(feature = "flash-attn")]
    if lse.is_none()
        && let Some(o) = flash::attention([q, k, v], &lengths, offset, scale)?
    {
        return Ok(o);
    }
    #[cfg(feature = "cuda")]
    let on_device = match mask {
        Mask::Rows(lengths) => lengths.device.clone(),
        _ if lengths.iter().all(|&l| l == tk) => None,
        _ => upload(&lengths, q.device())?,
    };
    let visible = Visible { lengths, offset };
    let size = Size { b, h, hkv, tq, tk, d };
    if q.device().is_cuda() && d > WIDEST_ON_GPU {
        let (o, sums) = wide::attention([q, k, v], size, &visible, scale)?;
        lse.inspect(|lse| lse.put(sums));
        return Ok(o);
    }
    let tracked = lse.is_some() || q.track_op() || k.track_op() || v.track_op();
    let op = Attention {
        size,
        visible,
        scale,
        tracked,
        lse: lse.cloned().unwrap_or_default(),
        #[cfg(feature = "cuda")]
        lengths: on_device,
    };
    dense(q)?.apply_op3(&dense(k)?, &dense(v)?, op)
}

/// The key lengths as the kernels read them, on a GPU.
#[cfg(feature = "cuda")]
pub(crate) fn upload(lengths: &[usize], device: &candle_core::Device) -> Result<Option<Tensor>> {
    if !device.is_cuda() {
        return Ok(None);
    }
    let lengths: Vec<u32> = lengths.iter().map(|&l| u32::try_from(l).unwrap_or(u32::MAX)).collect();
    Ok(Some(Tensor::new(lengths, device)?))
}

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) b: usize,
    pub(crate) h: usize,
    pub(crate) hkv: usize,
    pub(crate) tq: usize,
    pub(crate) tk: usize,
    pub(crate) d: usize,
}

impl Size {
    /// Query heads per key head.
    pub(crate) fn group(&self) -> usize {
        self.h / self.hkv
    }
}

/// The mask in the form the loops need: every query sees a prefix of the keys.
#[derive(Clone, Debug)]
pub(crate) struct Visible {
    lengths: Vec<usize>,
    pub(crate) offset: Option<usize>,
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

    /// The same rows if their elements are bf16.
    fn halves(&self) -> Option<Rows<'a, bf16>>
    where
        T: Element,
    {
        halves(self.data).map(|data| Rows { data, stride: self.stride, d: self.d })
    }

    /// `n` rows of a head from `start` on, in place.
    fn matrix(&self, b: usize, head: usize, start: usize, n: usize) -> Mat<'a, T> {
        let first = b * self.stride[0] + head * self.stride[1] + start * self.stride[2];
        Mat::strided(&self.data[first..], n, self.d, self.stride[2])
    }

    #[inline(always)]
    fn row(&self, b: usize, h: usize, t: usize) -> &'a [T] {
        &self.data[b * self.stride[0] + h * self.stride[1] + t * self.stride[2]..][..self.d]
    }
}

/// The logarithm of each row's sum of exponentials, `[B, H, Tq]`, once it is computed.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Option<Tensor>>>);

impl Kept {
    fn put(&self, lse: Tensor) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lse);
    }

    fn get(&self) -> Result<Tensor> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(lse) => Ok(lse.clone()),
            None => bail!("attention: no sums of exponentials before the forward pass"),
        }
    }
}

/// `lse` goes from forward to backward.
pub(crate) struct Attention {
    pub(crate) size: Size,
    pub(crate) visible: Visible,
    pub(crate) scale: f64,
    tracked: bool,
    lse: Kept,
    #[cfg(feature = "cuda")]
    pub(crate) lengths: Option<Tensor>,
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
            let scale = <T as Element>::Acc::real(self.scale);
            let (o, lse) = forward::run(self.size, &self.visible, scale, [q, k, v], self.tracked);
            if let Some(lse) = lse {
                self.lse.put(Tensor::from_vec(lse, (b, h, tq), &candle_core::Device::Cpu)?);
            }
            Ok((storage(o), Shape::from((b, tq, h, d))))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        ql: &Layout,
        k: &CudaStorage,
        kl: &Layout,
        v: &CudaStorage,
        vl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let Size { b, h, tq, d, .. } = self.size;
        let (o, lse) = crate::cuda::attention::forward(self, (q, ql), (k, kl), (v, vl))?;
        if self.tracked {
            self.lse.put(lse);
        }
        Ok((o, Shape::from((b, tq, h, d))))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let lse = self.lse.get()?;
        #[cfg(feature = "cuda")]
        if q.device().is_cuda() {
            let g = dense(g)?.transpose(1, 2)?;
            let (dq, dk, dv) = crate::cuda::attention::gradients(self, [q, k, v, o, &g], &lse)?;
            return Ok((Some(dq), Some(dk), Some(dv)));
        }
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
            let tensor = |rows: Vec<T>, like: &Tensor| {
                let (b, h, t, d) = like.dims4()?;
                Tensor::from_vec(rows, (b, t, h, d), like.device())?.transpose(1, 2).map(Some)
            };
            Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
        })
    }
}
