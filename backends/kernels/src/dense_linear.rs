//! Linear layer with a trained weight.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::element::{Element, Real, for_dtype, storage};
use crate::host;
use crate::host_product::{Term, columns_times_rows, rows_times_columns, rows_times_rows};

/// `x weight^T + bias`, with gradients to all three.
///
/// `x` is `[.., in]`, `weight` `[out, in]`, `bias` `[out]`, of one element type; the result is `[.., out]`. A frozen
/// weight goes through [`linear`](crate::linear()).
///
/// # Errors
/// If sizes, element types or devices do not fit together.
pub fn dense_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, inner) = weight.dims2()?;
    let Some((&last, leading)) = x.dims().split_last() else { bail!("dense_linear: x is a scalar") };
    if last != inner || weight.dtype() != x.dtype() {
        bail!(
            "dense_linear: x {:?} {:?} does not fit weight {:?} {:?}",
            x.dtype(),
            x.shape(),
            weight.dtype(),
            weight.shape()
        );
    }
    let mut shape = leading.to_vec();
    shape.push(out);
    // One product of two matrices: a batched one would have to sum the weight's gradient over the batch.
    let rows = x.contiguous()?.reshape((x.elem_count() / inner.max(1), inner))?;
    let y = if x.device().is_cpu() {
        rows.apply_op2(&weight.contiguous()?, DenseLinear)?
    } else {
        rows.matmul(&weight.t()?)?
    };
    let y = match bias {
        Some(bias) if x.device().is_cpu() => y.apply_op2(&bias.contiguous()?, AddBias)?,
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(shape)
}

struct DenseLinear;

impl CustomOp2 for DenseLinear {
    fn name(&self) -> &'static str {
        "dense_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, k) = wl.shape().dims2()?;
        let m = xl.dims()[0];
        for_dtype!("dense_linear", x.dtype(), T => {
            let (x, w) = (host::slice::<T>(x, xl)?, host::slice::<T>(w, wl)?);
            let y = rows_times_columns(&[Term::new(x, w, k)], None, n);
            Ok((storage(y), (m, n).into()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, k) = w.dims2()?;
        let g = g.contiguous()?;
        let ((xs, xl), (ws, wl), (gs, gl)) =
            (x.storage_and_layout(), w.storage_and_layout(), g.storage_and_layout());
        for_dtype!("dense_linear", x.dtype(), T => {
            let xd = host::slice::<T>(host::cpu(&xs)?, xl)?;
            let wd = host::slice::<T>(host::cpu(&ws)?, wl)?;
            let gd = host::slice::<T>(host::cpu(&gs)?, gl)?;
            let tensor = |v: Vec<T>, like: &Tensor| Tensor::from_vec(v, like.shape(), like.device());
            let dx = x.track_op().then(|| tensor(rows_times_rows(&[Term::new(gd, wd, n)], k), x));
            let dw = w.track_op().then(|| tensor(columns_times_rows(gd, xd, n, k), w));
            Ok((dx.transpose()?, dw.transpose()?))
        })
    }
}

/// Adds a bias `[n]` to rows `[m, n]`.
struct AddBias;

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        yl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let n = yl.shape().dims2()?.1;
        for_dtype!("add_bias", y.dtype(), T => {
            let (y, b) = (host::slice::<T>(y, yl)?, host::slice::<T>(b, bl)?);
            if b.len() != n {
                bail!("add_bias: {} elements for rows of {n}", b.len());
            }
            let mut out = y.to_vec();
            host::for_rows(&mut out, n, #[inline(always)] |_, rows| {
                for row in rows.chunks_exact_mut(n) {
                    for (y, b) in row.iter_mut().zip(b) {
                        *y = T::narrow(y.widen() + b.widen());
                    }
                }
            });
            Ok((storage(out), yl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        y: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (gs, gl) = g.storage_and_layout();
        for_dtype!("add_bias", y.dtype(), T => {
            let gd = host::slice::<T>(host::cpu(&gs)?, gl)?;
            let mut sums = vec![<T as Element>::Acc::ZERO; b.elem_count()];
            for row in gd.chunks_exact(sums.len().max(1)) {
                for (sum, g) in sums.iter_mut().zip(row) {
                    *sum += g.widen();
                }
            }
            let sums: Vec<T> = sums.into_iter().map(T::narrow).collect();
            Ok((Some(g.clone()), Some(Tensor::from_vec(sums, b.shape(), b.device())?)))
        })
    }
}
