//! Linear layer with a frozen weight.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use crate::element::{Element, Real, for_dtype, storage, widened, widened_mut, zeros};
use crate::gemm::{Mat, product};
use crate::host;
use crate::simd::dot;

/// Rows of input up to which each weight is read once and multiplied directly: packing it for a blocked product
/// would cost more than the product.
const FEW_ROWS: usize = 4;
/// Output columns that are widened at a time for element types without a matrix product of their own.
const PANEL: usize = 256;

/// `x weight^T + bias` with frozen `weight` and `bias`.
///
/// `x` is `[.., in]`, `weight` `[out, in]`, `bias` `[out]`; the result is `[.., out]`. The backward pass returns the
/// gradient of `x` and nothing else, whatever the other two are: candle's own product computes and keeps the
/// gradient of a frozen weight, which for LoRA is more work than everything that is trained. A trained matrix goes
/// through [`Tensor::matmul`].
///
/// # Errors
/// If sizes, element types or devices do not fit together.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let _timer = crate::profile::timer(crate::profile::Kind::Product);
    let (out, inner) = weight.dims2()?;
    let Some((&last, leading)) = x.dims().split_last() else { bail!("linear: x is a scalar") };
    if last != inner {
        bail!("linear: x of shape {:?} does not fit weight {:?}", x.shape(), weight.shape());
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("linear: bias of shape {:?} does not fit weight {:?}", bias.shape(), weight.shape());
    }
    for t in [Some(weight), bias].into_iter().flatten() {
        if t.dtype() != x.dtype() {
            bail!("linear: x is {:?} but a parameter is {:?}", x.dtype(), t.dtype());
        }
    }
    let mut shape = leading.to_vec();
    shape.push(out);
    let op = Linear {
        weight: weight.detach().contiguous()?,
        bias: bias.map(|b| b.detach().contiguous()).transpose()?,
        shape: shape.into(),
    };
    x.contiguous()?.apply_op1(op)
}

struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    shape: Shape,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let (n, k) = self.weight.dims2()?;
        for_dtype!("linear", self.weight.dtype(), T => {
            let x = host::slice::<T>(x, layout)?;
            let w = host::slice::<T>(host::cpu(&weight)?, weight_layout)?;
            let bias = self.bias.as_ref().map(host::to_vec::<T>).transpose()?;
            Ok((storage(forward(x, w, bias.as_deref(), n, k)), self.shape.clone()))
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (n, k) = self.weight.dims2()?;
        let m = self.shape.elem_count() / n.max(1);
        let (weight, weight_layout) = self.weight.storage_and_layout();
        let rows = Layout::contiguous_with_offset((m, k), layout.start_offset());
        let weight = crate::cuda::gpu(&weight)?;
        let mut y = x.matmul(weight, (1, m, n, k), &rows, &weight_layout.transpose(0, 1)?)?;
        if let Some(bias) = &self.bias {
            crate::cuda::rows::add_bias(&mut y, bias)?;
        }
        Ok((y, self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (n, k) = self.weight.dims2()?;
        let g = g.contiguous()?.reshape(((), n))?;
        let dx = match (x.device().is_cpu(), x.dtype()) {
            (true, DType::BF16) => {
                // candle widens the whole weight at once; panel by panel it stays in the cache.
                let (gs, gl) = g.storage_and_layout();
                let (ws, wl) = self.weight.storage_and_layout();
                let g = host::slice::<half::bf16>(host::cpu(&gs)?, gl)?;
                let w = host::slice::<half::bf16>(host::cpu(&ws)?, wl)?;
                Tensor::from_vec(input_gradient(g, w, n, k), x.shape(), x.device())?
            }
            _ => g.matmul(&self.weight)?.reshape(x.shape())?,
        };
        Ok(Some(dx))
    }
}

fn forward<T: Element>(x: &[T], w: &[T], bias: Option<&[T]>, n: usize, k: usize) -> Vec<T> {
    let m = x.len().checked_div(k).unwrap_or(0);
    let mut y = zeros::<T>(m * n);
    if m == 0 {
        return y;
    }
    if m <= FEW_ROWS {
        few_rows(x, w, bias, n, k, &mut y);
        return y;
    }
    match (widened(x), widened(w), widened_mut(&mut y)) {
        (Some(x), Some(w), Some(y)) => {
            if let Some(bias) = bias {
                host::for_rows(
                    y,
                    n,
                    #[inline(always)]
                    |_, rows| {
                        for row in rows.chunks_exact_mut(n) {
                            for (y, b) in row.iter_mut().zip(bias) {
                                *y = b.widen();
                            }
                        }
                    },
                );
            }
            product(Mat::new(x, m, k), Mat::new(w, n, k).t(), y, n, bias.is_some(), true);
        }
        _ => panels(x, w, bias, n, k, &mut y),
    }
    y
}

/// Reads every weight once and multiplies it with all rows of `x`.
fn few_rows<T: Element>(x: &[T], w: &[T], bias: Option<&[T]>, n: usize, k: usize, y: &mut [T]) {
    let x: Vec<T::Acc> = x.iter().map(|v| v.widen()).collect();
    let m = x.len() / k;
    let mut columns = zeros::<T>(n * m);
    host::for_work(
        &mut columns,
        m,
        k * m,
        #[inline(always)]
        |first, out| {
            for (j, out) in out.chunks_exact_mut(m).enumerate() {
                let row = &w[(first + j) * k..][..k];
                let b = bias.map_or(T::Acc::ZERO, |b| b[first + j].widen());
                for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                    *out = T::narrow(dot(x, row) + b);
                }
            }
        },
    );
    for (j, column) in columns.chunks_exact(m).enumerate() {
        for (i, v) in column.iter().enumerate() {
            y[i * n + j] = *v;
        }
    }
}

fn widen_all<T: Element>(data: &[T]) -> Vec<T::Acc> {
    let mut out = vec![T::Acc::ZERO; data.len()];
    host::for_rows(
        &mut out,
        1,
        #[inline(always)]
        |first, out| {
            for (o, v) in out.iter_mut().zip(&data[first..]) {
                *o = v.widen();
            }
        },
    );
    out
}

/// Product by panels of weight rows, widened into a buffer that stays in the cache.
fn panels<T: Element>(x: &[T], w: &[T], bias: Option<&[T]>, n: usize, k: usize, y: &mut [T]) {
    let m = x.len() / k;
    let x = widen_all(x);
    let mut wide_y = vec![T::Acc::ZERO; m * n];
    for first in (0..n).step_by(PANEL) {
        let cols = PANEL.min(n - first);
        let wide = widen_all(&w[first * k..(first + cols) * k]);
        product(Mat::new(&x, m, k), Mat::new(&wide, cols, k).t(), &mut wide_y[first..], n, false, true);
    }
    host::for_rows(
        y,
        n,
        #[inline(always)]
        |first, rows| {
            for (row, wide) in rows.chunks_exact_mut(n).zip(wide_y[first * n..].chunks_exact(n)) {
                match bias {
                    Some(bias) => {
                        for ((y, v), b) in row.iter_mut().zip(wide).zip(bias) {
                            *y = T::narrow(*v + b.widen());
                        }
                    }
                    None => {
                        for (y, v) in row.iter_mut().zip(wide) {
                            *y = T::narrow(*v);
                        }
                    }
                }
            }
        },
    );
}

/// `g weight` with the sum over output columns accumulated in the wide type, panel by panel.
fn input_gradient<T: Element>(g: &[T], w: &[T], n: usize, k: usize) -> Vec<T> {
    let m = g.len() / n.max(1);
    let g = widen_all(g);
    let mut dx = vec![T::Acc::ZERO; m * k];
    for first in (0..n).step_by(PANEL) {
        let rows = PANEL.min(n - first);
        let wide = widen_all(&w[first * k..(first + rows) * k]);
        let part = Mat::strided(&g[first..], m, rows, n);
        product(part, Mat::new(&wide, rows, k), &mut dx, k, true, true);
    }
    let mut out = zeros::<T>(m * k);
    host::for_rows(
        &mut out,
        1,
        #[inline(always)]
        |first, out| {
            for (o, v) in out.iter_mut().zip(&dx[first..]) {
                *o = T::narrow(*v);
            }
        },
    );
    out
}
