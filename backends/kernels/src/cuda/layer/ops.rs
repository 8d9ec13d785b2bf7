//! Starts of the kernels in `layer.cu`.

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, PushKernelArg};
use candle_core::{Result, bail};

use super::{Context, LAYER, Mat};
use crate::cuda::{Early, Kernel, blocks, function, int, launch, over};

const NULL: u64 = 0;
/// Widest row that the norms keep in registers.
pub(super) const WIDEST: usize = 4096;

fn kernel(ctx: &Context, name: &str) -> Result<Kernel> {
    function(&ctx.dev, LAYER, "", "", name)
}

/// One linear's rows of a widened weight, its A and its bias as [`assemble`] makes them: addresses and sizes, as in the kernel's
/// source.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Assembling {
    pub(super) weight: u64,
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) bias: u64,
    pub(super) wide: u64,
    pub(super) low: u64,
    pub(super) to_bias: u64,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Columns of the weight that are copied.
    pub(super) copied: usize,
    pub(super) r: usize,
    pub(super) stride: usize,
    /// From a row of A to the next.
    pub(super) low_stride: usize,
    /// Where B goes behind them.
    pub(super) column: usize,
    pub(super) scaling: f32,
}

/// Linears of a layer at most.
const LINEARS: usize = 8;

/// `Assembling` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Entry {
    addresses: [u64; 7],
    sizes: [i32; 7],
    scaling: f32,
    first: i32,
    padding: i32,
}

/// `Assemblings` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Entries {
    parts: [Entry; LINEARS],
    count: i32,
    padding: i32,
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Entries {}

/// The weights of a layer's linears, in one launch.
pub(super) fn assemble(ctx: &Context, linears: &[Assembling]) -> Result<()> {
    if linears.is_empty() {
        return Ok(());
    }
    if linears.len() > LINEARS {
        bail!("a layer of {} linears", linears.len());
    }
    let (mut all, mut rows) = (Entries { count: int(linears.len())?, ..Entries::default() }, 0);
    for (entry, l) in all.parts.iter_mut().zip(linears) {
        let mut sizes = [0; 7];
        for (to, size) in sizes.iter_mut().zip([l.n, l.k, l.copied, l.r, l.stride, l.low_stride, l.column]) {
            *to = int(size)?;
        }
        *entry = Entry {
            addresses: [l.weight, l.a, l.b, l.bias, l.wide, l.low, l.to_bias],
            sizes,
            scaling: l.scaling,
            first: int(rows)?,
            padding: 0,
        };
        rows += l.n + l.r;
    }
    let f = kernel(ctx, "assemble")?;
    let mut args = f.builder();
    args.arg(&all);
    launch(&mut args, blocks(rows.div_ceil(4), 128))
}

/// Columns of any number, side by side in memory or not, to others.
pub(super) fn copy_columns(ctx: &Context, x: Mat, y: Mat) -> Result<()> {
    let (rows, d, xs, ys) = (x.rows as i64, int(x.cols)?, int(x.stride)?, int(y.stride)?);
    let f = kernel(ctx, "copy_columns")?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&y.address).arg(&rows).arg(&d).arg(&xs).arg(&ys);
    launch(&mut args, over(x.rows * x.cols))
}

/// `out = x + y`, or a copy of `x`.
pub(super) fn add(ctx: &Context, x: Mat, y: Option<Mat>, out: Mat) -> Result<()> {
    let (rows, d, xs, os) = (x.rows as i64, int(x.cols)?, int(x.stride)?, int(out.stride)?);
    let (y, ys) = (y.map_or(NULL, |y| y.address), int(y.map_or(0, |y| y.stride))?);
    let f = kernel(ctx, "add_rows")?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&y).arg(&out.address).arg(&rows).arg(&d).arg(&xs).arg(&ys).arg(&os);
    launch(&mut args, over(x.rows * x.cols / 8))
}

/// Multiplies the dense matrix `x` by the number at the address `factor`.
pub(super) fn scale(ctx: &Context, x: Mat, factor: u64) -> Result<()> {
    let packs = x.rows * x.cols / 8;
    let f = kernel(ctx, "scale_rows")?;
    let (count, mut args) = (packs as i64, f.builder());
    args.arg(&x.address).arg(&factor).arg(&count);
    launch(&mut args, over(packs))
}

/// Weight and, for a layer norm, bias (addresses), and epsilon.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub(super) weight: u64,
    pub(super) bias: Option<u64>,
    pub(super) eps: f32,
}

/// The form of a kernel for rows of a width that stay in registers.
pub(super) fn of_width(name: &str, width: usize) -> String {
    let packs = match width.div_ceil(256) {
        packs @ ..=4 => packs,
        packs => packs.next_power_of_two(),
    };
    format!("{name}_{packs}")
}

pub(super) fn norm_kernel(ctx: &Context, name: &str, width: usize) -> Result<Kernel> {
    kernel(ctx, &of_width(name, width))
}

/// `y = norm(x + add)`; the sum goes to its own matrix.
pub(super) fn norm(ctx: &Context, x: Mat, add: Option<(Mat, Mat)>, norm: Norm, y: Mat) -> Result<()> {
    let (rows, d, xs, ys) = (x.rows as i64, int(x.cols)?, int(x.stride)?, int(y.stride)?);
    let (a, sum) = add.map_or((NULL, NULL), |(a, sum)| (a.address, sum.address));
    let (as_, ss) = add.map_or((0, 0), |(a, sum)| (a.stride, sum.stride));
    let (as_, ss, bias) = (int(as_)?, int(ss)?, norm.bias.unwrap_or(NULL));
    let f = norm_kernel(ctx, "norm", x.cols)?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&a).arg(&sum).arg(&norm.weight).arg(&bias).arg(&y.address);
    args.arg(&rows).arg(&d).arg(&xs).arg(&as_).arg(&ss).arg(&ys).arg(&norm.eps);
    launch(&mut args, blocks(x.rows.div_ceil(4), 128))
}

/// What the gradient of a norm's input is made of.
pub(super) struct NormGradient {
    pub(super) x: Mat,
    /// The gradient of the value, or two to be added up.
    pub(super) g: (Mat, Option<Mat>),
    /// What is added to the result.
    pub(super) add: Option<Mat>,
    pub(super) dx: Mat,
    /// Where the value goes once more; may be the first `g`.
    pub(super) y: Option<Mat>,
}

/// Writes the gradient of a norm's input.
pub(super) fn norm_backward(ctx: &Context, norm: Norm, of: &NormGradient) -> Result<()> {
    let NormGradient { x, g: (g, g2), add, dx, y } = of;
    let (rows, d, bias) = (x.rows as i64, int(x.cols)?, norm.bias.unwrap_or(NULL));
    let address = |m: &Option<Mat>| m.map_or(NULL, |m| m.address);
    let stride = |m: &Option<Mat>| int(m.map_or(0, |m| m.stride));
    let (second, added, value) = (address(g2), address(add), address(y));
    let (xs, gs, ds) = (int(x.stride)?, int(g.stride)?, int(dx.stride)?);
    let (seconds, adds, values) = (stride(g2)?, stride(add)?, stride(y)?);
    let name = if g2.is_some() || y.is_some() { "norm_backward_more" } else { "norm_backward" };
    let f = norm_kernel(ctx, name, x.cols)?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&norm.weight).arg(&bias).arg(&g.address).arg(&second).arg(&added);
    args.arg(&dx.address).arg(&value).arg(&rows).arg(&d).arg(&xs).arg(&gs).arg(&seconds).arg(&adds);
    args.arg(&ds).arg(&values).arg(&norm.eps);
    launch(&mut args, blocks(x.rows.div_ceil(4), 128))
}

/// Angles of the rotary embedding: addresses of cos and sin, `[t, d / 2]` in float32.
#[derive(Clone, Copy)]
pub(super) struct Angles {
    pub(super) cos: u64,
    pub(super) sin: u64,
    pub(super) t: usize,
}

/// Rotates the first `heads` heads, `d` wide, of every row in place; back if `inverse`.
pub(super) fn rope(
    ctx: &Context,
    x: Mat,
    angles: Angles,
    heads: usize,
    d: usize,
    inverse: bool,
) -> Result<()> {
    let (rows, stride, t) = (x.rows as i64, int(x.stride)?, int(angles.t)?);
    let (count, width, sign) = (int(heads)?, int(d)?, if inverse { -1f32 } else { 1.0 });
    let f = kernel(ctx, "rope_rows")?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&angles.cos).arg(&angles.sin).arg(&rows).arg(&stride).arg(&t);
    args.arg(&count).arg(&width).arg(&sign);
    launch(&mut args, over(x.rows * heads * d / 16))
}

/// An activation: what it is called in the kernels, and whether its input is twice as wide as its output.
#[derive(Clone, Copy)]
pub(super) enum Activation {
    /// `silu(gate) up` of `[gate | up]`.
    Gated,
    /// `x Phi(x)`.
    Gelu,
}

/// `y` of the dense matrix `x`.
pub(super) fn activate(ctx: &Context, kind: Activation, x: Mat, y: Mat) -> Result<()> {
    let (rows, m, ys) = (x.rows as i64, int(y.cols)?, int(y.stride)?);
    let name = match kind {
        Activation::Gated => "gated",
        Activation::Gelu => "gelu_rows",
    };
    let f = kernel(ctx, name)?;
    let mut args = Early::new(&f);
    args.arg(&x.address).arg(&y.address).arg(&rows).arg(&m).arg(&ys);
    args.launch(over(y.rows * y.cols / 8))
}

/// The gradient of `[gate | up]` in its place, given that of `silu(gate) up`, `g`; where `y` is given, which may be `g`, the
/// value goes there once more.
pub(super) fn gated_backward(ctx: &Context, x: Mat, g: Mat, y: Option<Mat>) -> Result<()> {
    let (rows, m, gs) = (x.rows as i64, int(g.cols)?, int(g.stride)?);
    let (value, ys) = y.map_or((NULL, 0), |y| (y.address, y.stride));
    let ys = int(ys)?;
    let f = kernel(ctx, "gated_backward")?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&g.address).arg(&value).arg(&rows).arg(&m).arg(&gs).arg(&ys);
    launch(&mut args, over(g.rows * g.cols / 8))
}

/// The gradient of `x` in the place of that of its value, `g`, and the value in the place of the dense matrix `x`.
pub(super) fn gelu_backward(ctx: &Context, x: Mat, g: Mat) -> Result<()> {
    let (rows, m, gs) = (x.rows as i64, int(g.cols)?, int(g.stride)?);
    let f = kernel(ctx, "gelu_rows_backward")?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&g.address).arg(&g.address).arg(&rows).arg(&m).arg(&gs).arg(&gs);
    launch(&mut args, over(g.rows * g.cols / 8))
}
