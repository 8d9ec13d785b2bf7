//! Keys and values of sequences of different lengths that are read side by side.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Result, Tensor, bail};

use crate::rope::dense;

/// How many positions each row of a batch has, where the operations need it: made once for all layers of a pass.
#[derive(Debug, Clone)]
pub struct RowLengths {
    host: Vec<usize>,
    #[cfg(feature = "cuda")]
    pub(crate) device: Option<Tensor>,
}

impl RowLengths {
    /// Lengths of the rows of tensors on `device`.
    ///
    /// # Errors
    /// Any of copying them there.
    pub fn new(lengths: Vec<usize>, device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            #[cfg(feature = "cuda")]
            device: crate::attention::upload(&lengths, device)?,
            host: lengths,
        })
    }

    /// The lengths, row by row.
    pub fn rows(&self) -> &[usize] {
        &self.host
    }

    /// The longest row's; 0 without rows.
    pub fn longest(&self) -> usize {
        self.host.iter().copied().max().unwrap_or(0)
    }
}

/// Puts `x: [B, H, 1, d]` at the last position of each row of `cache: [B, H, room, d]`, `lengths[b] - 1`, in place.
///
/// `cache` must be contiguous, e.g. the first rows of a larger one.
///
/// # Errors
/// If sizes, element types or devices do not fit together, or a row is empty or longer than its room.
pub fn store_last(cache: &Tensor, x: &Tensor, lengths: &RowLengths) -> Result<()> {
    let ((b, h, room, d), (xb, xh, t, xd)) = (cache.dims4()?, x.dims4()?);
    if (xb, xh, t, xd) != (b, h, 1, d) || lengths.host.len() != b || !cache.is_contiguous() {
        let n = lengths.host.len();
        bail!("store_last: x {:?} and {n} lengths do not fit a cache {:?}", x.shape(), cache.shape());
    }
    if let Some(wrong) = lengths.host.iter().find(|&&l| l == 0 || l > room) {
        bail!("store_last: a row of {wrong} positions in room for {room}");
    }
    cache.inplace_op2(&dense(x)?, &StoreLast(lengths))
}

struct StoreLast<'a>(&'a RowLengths);

impl InplaceOp2 for StoreLast<'_> {
    fn name(&self) -> &'static str {
        "store_last"
    }

    fn cpu_fwd(&self, cache: &mut CpuStorage, cl: &Layout, x: &CpuStorage, xl: &Layout) -> Result<()> {
        match (cache, x) {
            (CpuStorage::F32(cache), CpuStorage::F32(x)) => self.store(cache, cl, x, xl),
            (CpuStorage::BF16(cache), CpuStorage::BF16(x)) => self.store(cache, cl, x, xl),
            (CpuStorage::F64(cache), CpuStorage::F64(x)) => self.store(cache, cl, x, xl),
            _ => bail!("store_last: both must be f32, bf16 or f64"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, cache: &mut CudaStorage, cl: &Layout, x: &CudaStorage, xl: &Layout) -> Result<()> {
        crate::cuda::rows::store_last((cache, cl), (x, xl), self.0)
    }
}

impl StoreLast<'_> {
    fn store<T: Copy>(&self, cache: &mut [T], cl: &Layout, x: &[T], xl: &Layout) -> Result<()> {
        let ((_, h, room, d), stride) = (cl.shape().dims4()?, xl.stride());
        let (cache, x) = (&mut cache[cl.start_offset()..], &x[xl.start_offset()..]);
        for (b, length) in self.0.host.iter().enumerate() {
            for head in 0..h {
                let to = ((b * h + head) * room + length - 1) * d;
                let from = b * stride[0] + head * stride[1];
                cache[to..to + d].copy_from_slice(&x[from..from + d]);
            }
        }
        Ok(())
    }
}
