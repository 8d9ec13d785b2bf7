//! Linear layer with a trained weight.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::element::{Element, Real, for_dtype, storage};
use crate::host;
use crate::host_product::{Term, columns_times_rows, narrow_all, rows_times_columns, rows_times_rows};

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
    let y = match (x.device().is_cpu(), bias) {
        (true, Some(bias)) => rows.apply_op3(&weight.contiguous()?, &bias.contiguous()?, DenseLinear)?,
        (true, None) => rows.apply_op2(&weight.contiguous()?, DenseLinear)?,
        (false, Some(bias)) => rows.matmul(&weight.t()?)?.broadcast_add(bias)?,
        (false, None) => rows.matmul(&weight.t()?)?,
    };
    y.reshape(shape)
}

struct DenseLinear;

fn forward(
    (x, xl): (&CpuStorage, &Layout),
    (w, wl): (&CpuStorage, &Layout),
    bias: Option<(&CpuStorage, &Layout)>,
) -> Result<(CpuStorage, Shape)> {
    let (n, k) = wl.shape().dims2()?;
    let m = xl.dims()[0];
    for_dtype!("dense_linear", x.dtype(), T => {
        let (x, w) = (host::slice::<T>(x, xl)?, host::slice::<T>(w, wl)?);
        let bias = bias.map(|(b, bl)| host::slice::<T>(b, bl)).transpose()?;
        if let Some(bias) = bias && bias.len() != n {
            bail!("dense_linear: a bias of {} elements for {n} outputs", bias.len());
        }
        Ok((storage(rows_times_columns(&[Term::new(x, w, k)], bias, n)), (m, n).into()))
    })
}

/// Gradients of `x` and the weight, where they take one, given that of the rows of the result.
fn backward(x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (n, k) = w.dims2()?;
    let ((xs, xl), (ws, wl), (gs, gl)) =
        (x.storage_and_layout(), w.storage_and_layout(), g.storage_and_layout());
    for_dtype!("dense_linear", x.dtype(), T => {
        let xd = host::slice::<T>(host::cpu(&xs)?, xl)?;
        let wd = host::slice::<T>(host::cpu(&ws)?, wl)?;
        let gd = host::slice::<T>(host::cpu(&gs)?, gl)?;
        let tensor = |v: Vec<T>, like: &Tensor| Tensor::from_vec(v, like.shape(), like.device());
        let dx = x.track_op().then(|| tensor(rows_times_rows(&[Term::new(gd, wd, n)], k), x));
        let dw = w.track_op().then(|| tensor(narrow_all(columns_times_rows(gd, xd, n, k)), w));
        Ok((dx.transpose()?, dw.transpose()?))
    })
}

/// The sum of rows `[m, n]`: the gradient of a bias.
fn sum_of_rows(g: &Tensor) -> Result<Tensor> {
    let n = g.dims2()?.1;
    let (gs, gl) = g.storage_and_layout();
    for_dtype!("dense_linear", g.dtype(), T => {
        let gd = host::slice::<T>(host::cpu(&gs)?, gl)?;
        let mut sums = vec![<T as Element>::Acc::ZERO; n];
        for row in gd.chunks_exact(n.max(1)) {
            for (sum, g) in sums.iter_mut().zip(row) {
                *sum += g.widen();
            }
        }
        let sums: Vec<T> = sums.into_iter().map(T::narrow).collect();
        Tensor::from_vec(sums, n, g.device())
    })
}

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
        forward((x, xl), (w, wl), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(x, w, &g.contiguous()?)
    }
}

impl CustomOp3 for DenseLinear {
    fn name(&self) -> &'static str {
        "dense_linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((x, xl), (w, wl), Some((b, bl)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dx, dw) = backward(x, w, &g)?;
        Ok((dx, dw, b.track_op().then(|| sum_of_rows(&g)).transpose()?))
    }
}
