//! Rotary position embedding in the half-split (NeoX) layout.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::element::{Element, Real, for_dtype, storage, zeros};
use crate::host;
use crate::profile::{Kind, timer};

/// Rotates the pairs `(x[i], x[i + d/2])` of each head by the angle of its position.
///
/// `x` is `[B, H, T, d]` and may be a transposed view (only its last dimension must be dense, otherwise it is
/// copied); `cos` and `sin` are `[T, d/2]` in any float type and take no gradient. The rotation is done in float32.
///
/// # Errors
/// If sizes or devices do not fit together.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let _timer = timer(Kind::Elementwise);
    let (_, _, t, d) = x.dims4()?;
    if d % 2 != 0 || cos.dims() != [t, d / 2] || sin.dims() != [t, d / 2] {
        bail!("rope: cos {:?} and sin {:?} do not fit x {:?}", cos.shape(), sin.shape(), x.shape());
    }
    let dtype = if x.dtype() == candle_core::DType::F64 { x.dtype() } else { candle_core::DType::F32 };
    let table = |t: &Tensor| t.detach().to_dtype(dtype)?.contiguous();
    dense(x)?.apply_op1(Rope { cos: table(cos)?, sin: table(sin)?, inverse: false })
}

/// The tensor itself if its last dimension is dense, else a contiguous copy.
pub(crate) fn dense(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) || x.dims().last() == Some(&1) { Ok(x.clone()) } else { x.contiguous() }
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
    inverse: bool,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (b, h, t, d) = layout.shape().dims4()?;
        for_dtype!("rope", x.dtype(), T => {
            let x = &x.as_slice::<T>()?[layout.start_offset()..];
            let (cos, sin) = (host::to_vec(&self.cos)?, host::to_vec(&self.sin)?);
            let y = rotate(x, layout.stride(), (b, h, t, d), &cos, &sin, self.inverse);
            Ok((storage(y), layout.shape().clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = crate::cuda::rows::rope((x, layout), &self.cos, &self.sin, self.inverse)?;
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let back = Rope { cos: self.cos.clone(), sin: self.sin.clone(), inverse: true };
        Ok(Some(dense(g)?.apply_op1_no_bwd(&back)?))
    }
}

/// Rotates the `h` heads of each position of rows `[B, T, h * d]` in place, or back if `inverse`; `cos` and `sin` are `[T, d / 2]`.
pub(crate) fn rotate_rows<T: Element>(
    x: &mut [T],
    (h, t, d): (usize, usize, usize),
    (cos, sin): (&[T::Acc], &[T::Acc]),
    inverse: bool,
) {
    let _timer = timer(Kind::Elementwise);
    let half = d / 2;
    let sign = if inverse { -T::Acc::ONE } else { T::Acc::ONE };
    host::for_rows(
        x,
        d,
        #[inline(always)]
        |first, rows| {
            for (i, row) in rows.chunks_exact_mut(d).enumerate() {
                let time = (first + i) / h % t;
                let (cos, sin) = (&cos[time * half..][..half], &sin[time * half..][..half]);
                let (x1, x2) = row.split_at_mut(half);
                let x2 = &mut x2[..half];
                for i in 0..half {
                    let (a, b, c, s) = (x1[i].widen(), x2[i].widen(), cos[i], sin[i] * sign);
                    x1[i] = T::narrow(a * c - b * s);
                    x2[i] = T::narrow(b * c + a * s);
                }
            }
        },
    );
}

fn rotate<T: Element>(
    x: &[T],
    stride: &[usize],
    (b, h, t, d): (usize, usize, usize, usize),
    cos: &[T::Acc],
    sin: &[T::Acc],
    inverse: bool,
) -> Vec<T> {
    let half = d / 2;
    let sign = if inverse { -T::Acc::ONE } else { T::Acc::ONE };
    let mut y = zeros::<T>(b * h * t * d);
    host::for_rows(
        &mut y,
        d,
        #[inline(always)]
        |first, rows| {
            for (i, y) in rows.chunks_exact_mut(d).enumerate() {
                let row = first + i;
                let (time, head, batch) = (row % t, row / t % h, row / t / h);
                let x = &x[batch * stride[0] + head * stride[1] + time * stride[2]..][..d];
                let (cos, sin) = (&cos[time * half..][..half], &sin[time * half..][..half]);
                let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
                for i in 0..half {
                    let (a, b, c, s) = (x1[i].widen(), x2[i].widen(), cos[i], sin[i] * sign);
                    y1[i] = T::narrow(a * c - b * s);
                    y2[i] = T::narrow(b * c + a * s);
                }
            }
        },
    );
    y
}
