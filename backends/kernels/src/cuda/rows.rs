//! Norms, rotary embedding, activations, and bias.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CudaStorage, Layout, Result, Tensor, backend::BackendStorage, bail};

use super::{
    GpuElement, Module, alloc, for_gpu_dtype, gpu, grid, int, kernel, launch, over, storage, strided, tensor,
    view,
};
use crate::cache::RowLengths;

const ROWS: Module = Module { name: "rows", source: include_str!("rows.cu") };
/// Stands for an argument that is not there.
const NULL: u64 = 0;

/// A storage together with its layout.
type Input<'a> = (&'a CudaStorage, &'a Layout);

/// RMS norm, or layer norm if there is a bias.
pub(crate) fn norm(x: Input, w: Input, bias: Option<Input>, eps: f64) -> Result<CudaStorage> {
    for_gpu_dtype!("norm", x.0.dtype(), T => norm_of::<T>(x, w, bias, eps))
}

fn norm_of<T: GpuElement>(x: Input, w: Input, bias: Option<Input>, eps: f64) -> Result<CudaStorage> {
    let dev = x.0.device();
    let (n, d) = (x.1.shape().elem_count(), w.1.shape().elem_count());
    let (x, w) = (view::<T>(x.0, x.1)?, view::<T>(w.0, w.1)?);
    let bias = bias.map(|b| view::<T>(b.0, b.1)).transpose()?;
    let mut y = alloc::<T>(dev, n)?;
    let (rows, width, eps) = ((n / d.max(1)) as i64, int(d)?, eps as f32);
    let f = kernel::<T>(dev, ROWS, "norm")?;
    let mut args = f.builder();
    args.arg(&x).arg(&w);
    match &bias {
        Some(bias) => args.arg(bias),
        None => args.arg(&NULL),
    };
    args.arg(&mut y).arg(&rows).arg(&width).arg(&eps);
    launch(&mut args, over(n / d.max(1) * 32))?;
    Ok(storage(y, dev))
}

/// Gradients of input, weight and bias of a norm; the last two only if `trained`.
pub(crate) fn norm_gradients(
    x: &Tensor,
    w: &Tensor,
    g: &Tensor,
    eps: f64,
    centred: bool,
    trained: bool,
) -> Result<[Option<Tensor>; 3]> {
    for_gpu_dtype!("norm", x.dtype(), T => norm_gradients_of::<T>(x, w, g, eps, centred, trained))
}

fn norm_gradients_of<T: GpuElement>(
    x: &Tensor,
    w: &Tensor,
    g: &Tensor,
    eps: f64,
    centred: bool,
    trained: bool,
) -> Result<[Option<Tensor>; 3]> {
    /// Blocks of rows whose column sums are added up at the end.
    const PARTS: usize = 64;
    let ((xs, xl), (ws, wl), (gs, gl)) =
        (x.storage_and_layout(), w.storage_and_layout(), g.storage_and_layout());
    let dev = gpu(&xs)?.device();
    let (n, d) = (x.elem_count(), w.elem_count());
    let (xv, wv, gv) = (view::<T>(gpu(&xs)?, xl)?, view::<T>(gpu(&ws)?, wl)?, view::<T>(gpu(&gs)?, gl)?);
    let (count, width, eps) = (n / d.max(1), int(d)?, eps as f32);
    let (rows, centred) = (count as i64, i32::from(centred));
    let (mut dx, mut stats) = (alloc::<T>(dev, n)?, alloc::<f32>(dev, 2 * count)?);
    let f = kernel::<T>(dev, ROWS, "norm_backward")?;
    let mut args = f.builder();
    args.arg(&xv)
        .arg(&wv)
        .arg(&gv)
        .arg(&mut dx)
        .arg(&mut stats)
        .arg(&rows)
        .arg(&width)
        .arg(&eps)
        .arg(&centred);
    launch(&mut args, over(count * 32))?;
    let dx = x.track_op().then(|| tensor(dx, x.shape(), dev));
    if !trained {
        return Ok([dx, None, None]);
    }
    let (mut sums, mut parts) = (alloc::<T>(dev, 2 * d)?, alloc::<f32>(dev, PARTS * 2 * d)?);
    let f = kernel::<T>(dev, ROWS, "norm_parameters")?;
    let mut args = f.builder();
    args.arg(&xv).arg(&gv).arg(&stats).arg(&mut parts).arg(&rows).arg(&width);
    launch(&mut args, grid((d.div_ceil(32), PARTS, 1), (32, 8), 0))?;
    let f = kernel::<T>(dev, ROWS, "norm_parameters_sum")?;
    let (count, mut args) = (int(PARTS)?, f.builder());
    args.arg(&parts).arg(&mut sums).arg(&count).arg(&width);
    launch(&mut args, over(2 * d))?;
    let sums = tensor(sums, (2, d), dev);
    Ok([dx, Some(sums.get(0)?), Some(sums.get(1)?)])
}

/// Rotates pairs, by the negative angle if `inverse`; `x` may be strided.
pub(crate) fn rope(x: Input, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<CudaStorage> {
    for_gpu_dtype!("rope", x.0.dtype(), T => rope_of::<T>(x, cos, sin, inverse))
}

fn rope_of<T: GpuElement>(x: Input, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<CudaStorage> {
    let dev = x.0.device();
    let (b, h, t, d) = x.1.shape().dims4()?;
    let [sb, sh, st] = [0, 1, 2].map(|i| x.1.stride()[i] as i64);
    let ((cs, cl), (ss, sl)) = (cos.storage_and_layout(), sin.storage_and_layout());
    let (cos, sin) = (view::<f32>(gpu(&cs)?, cl)?, view::<f32>(gpu(&ss)?, sl)?);
    let x = strided::<T>(x.0, x.1)?;
    let mut y = alloc::<T>(dev, b * h * t * d)?;
    let (rows, sign) = ((b * h * t) as i64, if inverse { -1f32 } else { 1. });
    let (heads, times, width) = (int(h)?, int(t)?, int(d)?);
    let f = kernel::<T>(dev, ROWS, "rope")?;
    let mut args = f.builder();
    args.arg(&x).arg(&cos).arg(&sin).arg(&mut y).arg(&sb).arg(&sh).arg(&st);
    args.arg(&rows).arg(&heads).arg(&times).arg(&width).arg(&sign);
    launch(&mut args, over(b * h * t * d / 8))?;
    Ok(storage(y, dev))
}

/// The new positions of rows of different lengths into their cache.
pub(crate) fn store_last(
    (cache, cl): (&mut CudaStorage, &Layout),
    x: Input,
    lengths: &RowLengths,
) -> Result<()> {
    for_gpu_dtype!("store_last", x.0.dtype(), T => {
        let (dev, (b, h, room, d)) = (x.0.device(), cl.shape().dims4()?);
        let (Some((start, end)), Some(lengths)) = (cl.contiguous_offsets(), &lengths.device) else {
            bail!("store_last: a cache that is not contiguous, or lengths of another device");
        };
        let (ls, ll) = lengths.storage_and_layout();
        let (lengths, xs) = (view::<u32>(gpu(&ls)?, ll)?, strided::<T>(x.0, x.1)?);
        let [sb, sh] = [0, 1].map(|i| x.1.stride()[i] as i64);
        let mut to = cache.as_cuda_slice_mut::<T>()?.slice_mut(start..end);
        let (count, heads, room, width) = ((b * h * d) as i64, int(h)?, int(room)?, int(d)?);
        let f = kernel::<T>(dev, ROWS, "store_last")?;
        let mut args = f.builder();
        args.arg(&mut to).arg(&xs).arg(&lengths).arg(&sb).arg(&sh).arg(&count);
        args.arg(&heads).arg(&room).arg(&width);
        launch(&mut args, over(b * h * d))
    })
}

/// `gate * sigmoid(gate) * up`.
pub(crate) fn silu_mul(gate: Input, up: Input) -> Result<CudaStorage> {
    for_gpu_dtype!("silu_mul", gate.0.dtype(), T => {
        let (dev, n) = (gate.0.device(), gate.1.shape().elem_count());
        let (z, u) = (view::<T>(gate.0, gate.1)?, view::<T>(up.0, up.1)?);
        let (mut y, count) = (alloc::<T>(dev, n)?, n as i64);
        let f = kernel::<T>(dev, ROWS, "silu_mul")?;
        let mut args = f.builder();
        args.arg(&z).arg(&u).arg(&mut y).arg(&count);
        launch(&mut args, over(n / 4))?;
        Ok(storage(y, dev))
    })
}

/// Gradients of gate and up.
pub(crate) fn silu_mul_gradients(gate: &Tensor, up: &Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
    let ((zs, zl), (us, ul), (gs, gl)) =
        (gate.storage_and_layout(), up.storage_and_layout(), g.storage_and_layout());
    let (dev, n) = (gpu(&zs)?.device(), gate.elem_count());
    for_gpu_dtype!("silu_mul", gate.dtype(), T => {
        let (z, u, g) = (view::<T>(gpu(&zs)?, zl)?, view::<T>(gpu(&us)?, ul)?, view::<T>(gpu(&gs)?, gl)?);
        let (mut dz, mut du, count) = (alloc::<T>(dev, n)?, alloc::<T>(dev, n)?, n as i64);
        let f = kernel::<T>(dev, ROWS, "silu_mul_backward")?;
        let mut args = f.builder();
        args.arg(&z).arg(&u).arg(&g).arg(&mut dz).arg(&mut du).arg(&count);
        launch(&mut args, over(n / 4))?;
        Ok((tensor(dz, gate.shape(), dev), tensor(du, gate.shape(), dev)))
    })
}

/// `x * Phi(x)`.
pub(crate) fn gelu(x: Input) -> Result<CudaStorage> {
    for_gpu_dtype!("gelu", x.0.dtype(), T => {
        let (dev, n) = (x.0.device(), x.1.shape().elem_count());
        let x = view::<T>(x.0, x.1)?;
        let (mut y, count) = (alloc::<T>(dev, n)?, n as i64);
        let f = kernel::<T>(dev, ROWS, "gelu")?;
        let mut args = f.builder();
        args.arg(&x).arg(&mut y).arg(&count);
        launch(&mut args, over(n / 4))?;
        Ok(storage(y, dev))
    })
}

/// Gradient of `x`.
pub(crate) fn gelu_gradient(x: &Tensor, g: &Tensor) -> Result<Tensor> {
    let ((xs, xl), (gs, gl)) = (x.storage_and_layout(), g.storage_and_layout());
    let (dev, n) = (gpu(&xs)?.device(), x.elem_count());
    for_gpu_dtype!("gelu", x.dtype(), T => {
        let (xv, gv) = (view::<T>(gpu(&xs)?, xl)?, view::<T>(gpu(&gs)?, gl)?);
        let (mut dx, count) = (alloc::<T>(dev, n)?, n as i64);
        let f = kernel::<T>(dev, ROWS, "gelu_backward")?;
        let mut args = f.builder();
        args.arg(&xv).arg(&gv).arg(&mut dx).arg(&count);
        launch(&mut args, over(n / 4))?;
        Ok(tensor(dx, x.shape(), dev))
    })
}

/// Adds `bias` to every row of a product, in place.
pub(crate) fn add_bias(y: &mut CudaStorage, bias: &Tensor) -> Result<()> {
    let dev = y.device().clone();
    let (bs, bl) = bias.storage_and_layout();
    let d = bias.elem_count();
    for_gpu_dtype!("linear", bias.dtype(), T => {
        let bias = view::<T>(gpu(&bs)?, bl)?;
        let y = y.as_cuda_slice_mut::<T>()?;
        let count = y.len() / d.max(1);
        let (rows, width) = (count as i64, int(d)?);
        let f = kernel::<T>(&dev, ROWS, "add_bias")?;
        let mut args = f.builder();
        args.arg(y).arg(&bias).arg(&rows).arg(&width);
        launch(&mut args, grid((d.div_ceil(512), count.min(4096), 1), (128, 1), 0))
    })
}

/// Rows of `x` (`[N, D]`) by index, zeros where that is the largest number, added to `onto`.
pub(crate) fn gather(x: Input, rows: &Tensor, onto: Option<&Tensor>) -> Result<CudaStorage> {
    let (dev, (_, d), m) = (x.0.device(), x.1.shape().dims2()?, rows.elem_count());
    let (rs, rl) = rows.storage_and_layout();
    let rows = view::<u32>(gpu(&rs)?, rl)?;
    let onto = onto.map(Tensor::storage_and_layout);
    for_gpu_dtype!("gather_rows", x.0.dtype(), T => {
        let x = view::<T>(x.0, x.1)?;
        let (mut y, count, width) = (alloc::<T>(dev, m * d)?, m as i64, int(d)?);
        let onto = onto.as_ref().map(|(s, l)| view::<T>(gpu(s)?, l)).transpose()?;
        let f = kernel::<T>(dev, ROWS, "gather_rows")?;
        let mut args = f.builder();
        args.arg(&x).arg(&rows);
        match &onto {
            Some(onto) => args.arg(onto),
            None => args.arg(&NULL),
        };
        args.arg(&mut y).arg(&count).arg(&width);
        launch(&mut args, over(m * d / 8))?;
        Ok(storage(y, dev))
    })
}
