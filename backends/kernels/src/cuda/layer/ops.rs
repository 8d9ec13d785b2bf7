//! Starts of the kernels in `layer.cu`.

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

use super::{Context, LAYER, Mat};
use crate::cuda::{Kernel, blocks, function, int, launch, over};

const NULL: u64 = 0;
/// Widest row that the norms keep in registers.
pub(super) const WIDEST: usize = 4096;

fn kernel(ctx: &Context, name: &str) -> Result<Kernel> {
    function(&ctx.dev, LAYER, "", "", name)
}

/// Where the parts of a linear stand in the widened weight of its group.
pub(super) struct Place {
    pub(super) column: usize,
    pub(super) bias_column: usize,
    pub(super) scaling: f32,
}

/// Rows `to` of a widened weight out of `weight`, A and B (addresses, and where A goes) and the bias.
pub(super) fn assemble(
    ctx: &Context,
    weight: Mat,
    lora: Option<(u64, u64, Mat)>,
    bias: Option<u64>,
    to: Mat,
    place: Place,
) -> Result<()> {
    let (a, b, low) = lora.map_or((NULL, NULL, None), |(a, b, low)| (a, b, Some(low)));
    let (low, rank) = low.map_or((NULL, 0), |low| (low.address, low.rows));
    let (n, k, r) = (int(weight.rows)?, int(weight.cols)?, int(rank)?);
    let (stride, column, bias_column) = (int(to.stride)?, int(place.column)?, int(place.bias_column)?);
    let bias = bias.unwrap_or(NULL);
    let f = kernel(ctx, "assemble")?;
    let mut args = f.builder();
    args.arg(&weight.address).arg(&a).arg(&b).arg(&bias).arg(&to.address).arg(&low);
    args.arg(&n).arg(&k).arg(&r).arg(&stride).arg(&column).arg(&bias_column).arg(&place.scaling);
    launch(&mut args, blocks(weight.rows + rank, 128))
}

/// Columns of `y` from `from` on become `first` and zeros.
pub(super) fn fill_tail(ctx: &Context, y: Mat, from: usize, first: f32) -> Result<()> {
    let (rows, stride, start) = (y.rows as i64, int(y.stride)?, int(from)?);
    let f = kernel(ctx, "fill_tail")?;
    let mut args = f.builder();
    args.arg(&y.address).arg(&rows).arg(&stride).arg(&start).arg(&first);
    launch(&mut args, over(y.rows * (y.stride - from)))
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

fn norm_kernel(ctx: &Context, name: &str, width: usize) -> Result<Kernel> {
    let packs = match width.div_ceil(256) {
        packs @ ..=4 => packs,
        packs => packs.next_power_of_two(),
    };
    kernel(ctx, &format!("{name}_{packs}"))
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

/// `dx` is the gradient of `x` for that of its norm, `g`, and `add`.
pub(super) fn norm_backward(
    ctx: &Context,
    x: Mat,
    norm: Norm,
    g: Mat,
    add: Option<Mat>,
    dx: Mat,
) -> Result<()> {
    let (rows, d, xs, gs, ds) =
        (x.rows as i64, int(x.cols)?, int(x.stride)?, int(g.stride)?, int(dx.stride)?);
    let (a, as_) = (add.map_or(NULL, |a| a.address), int(add.map_or(0, |a| a.stride))?);
    let centred = i32::from(norm.bias.is_some());
    let f = norm_kernel(ctx, "norm_backward", x.cols)?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&norm.weight).arg(&g.address).arg(&a).arg(&dx.address);
    args.arg(&rows).arg(&d).arg(&xs).arg(&gs).arg(&as_).arg(&ds).arg(&norm.eps).arg(&centred);
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

impl Activation {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Gated => ("gated", "gated_backward"),
            Self::Gelu => ("gelu_rows", "gelu_rows_backward"),
        }
    }
}

/// `y` of the dense matrix `x`.
pub(super) fn activate(ctx: &Context, kind: Activation, x: Mat, y: Mat) -> Result<()> {
    let (rows, m, ys) = (x.rows as i64, int(y.cols)?, int(y.stride)?);
    let f = kernel(ctx, kind.names().0)?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&y.address).arg(&rows).arg(&m).arg(&ys);
    launch(&mut args, over(y.rows * y.cols / 8))
}

/// The dense gradient `dx` of `x`, given that of `y`.
pub(super) fn activate_backward(ctx: &Context, kind: Activation, x: Mat, g: Mat, dx: Mat) -> Result<()> {
    let (rows, m, gs) = (x.rows as i64, int(g.cols)?, int(g.stride)?);
    let f = kernel(ctx, kind.names().1)?;
    let mut args = f.builder();
    args.arg(&x.address).arg(&g.address).arg(&dx.address).arg(&rows).arg(&m).arg(&gs);
    launch(&mut args, over(g.rows * g.cols / 8))
}
