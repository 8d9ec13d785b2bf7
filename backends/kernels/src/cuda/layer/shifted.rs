//! Attention within groups of positions that are others for the first half of the heads and the second (LongLoRA's S2-Attn), and
//! the gradient of norms' weights, which that method trains.
//!
//! Rows of the groups are gathered, key heads once for each query head of theirs, attended to as a batch of sequences, and put
//! back: bytes of `[q | k | v]` a few times, beside products that read them as often.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::{Result, Tensor, bail};

use super::attention::{self, Heads};
use super::ops;
use super::{Buffer, Context, Mat};
use crate::HeadGroups;
use crate::cuda::{Kernel, Module, alloc, blocks, function, int, launch, over, tensor};

const SHIFTED: Module = Module { name: "shifted", source: include_str!("shifted.cu") };

/// What the two halves of the heads attend in.
pub(super) struct Halves<'a> {
    pub(super) groups: &'a [HeadGroups; 2],
    /// Of the layer's rows.
    pub(super) heads: Heads,
}

/// What the backward pass reads: log-sum-exp of each half that has heads.
pub(super) type Kept = [Option<CudaSlice<f32>>; 2];

fn kernel(ctx: &Context, name: &str) -> Result<Kernel> {
    function(&ctx.dev, SHIFTED, "", "", name)
}

/// Rows `rows` of `x` to `y`, zeros where there is none.
fn gather_columns(ctx: &Context, x: Mat, rows: &Tensor, y: Mat) -> Result<()> {
    let (f, rows) = (kernel(ctx, "gather_columns")?, ctx.input::<u32>(rows)?);
    let (count, d, xs, ys) = (y.rows as i64, int(y.cols)?, int(x.stride)?, int(y.stride)?);
    let mut args = f.builder();
    args.arg(&x.address).arg(&rows).arg(&y.address).arg(&count).arg(&d).arg(&xs).arg(&ys);
    launch(&mut args, over(y.rows * y.cols / 8))
}

impl Halves<'_> {
    /// The first of a half's heads, and how many they are.
    fn part(&self, half: usize) -> (usize, usize) {
        let (h, first) = (self.heads.h, self.heads.h / 2);
        if half == 0 { (0, first) } else { (first, h - first) }
    }

    fn of_groups(&self, half: usize) -> Heads {
        let (groups, (_, n)) = (&self.groups[half], self.part(half));
        let Heads { d, .. } = self.heads;
        Heads { b: groups.count, t: groups.longest, h: n, hkv: n, d, causal: true, lengths: 0 }
    }

    /// Whether the groups are of these rows.
    pub(super) fn check(groups: &[HeadGroups; 2], rows: usize) -> Result<()> {
        for g in groups {
            let (places, positions) = (g.map.rows().elem_count(), g.map.inverse().rows().elem_count());
            if (places, positions) != (g.count * g.longest, rows) {
                bail!("shifted groups: {places} places of {positions} positions for {rows}");
            }
        }
        Ok(())
    }

    /// `[q | k | v]` of a half's heads in its groups.
    fn gather(&self, ctx: &Context, half: usize, qkv: Mat) -> Result<Buffer> {
        let (groups, (first, n)) = (&self.groups[half], self.part(half));
        let Heads { h, hkv, d, .. } = self.heads;
        let y = ctx.buffer(groups.count * groups.longest, 3 * n * d)?;
        let (f, rows) = (kernel(ctx, "gather_heads")?, ctx.input::<u32>(groups.map.rows())?);
        let (count, xs, sizes) = (y.mat.rows as i64, int(qkv.stride)?, [h, hkv, d, first, n]);
        let [h, hkv, d, first, heads] =
            [int(sizes[0])?, int(sizes[1])?, int(sizes[2])?, int(first)?, int(n)?];
        let mut args = f.builder();
        args.arg(&qkv.address).arg(&rows).arg(&y.mat.address).arg(&count).arg(&xs).arg(&h).arg(&hkv);
        args.arg(&d).arg(&first).arg(&heads);
        launch(&mut args, over(y.mat.rows * y.mat.cols / 8))?;
        Ok(y)
    }

    /// A half's columns of heads side by side.
    fn columns(&self, half: usize, x: Mat) -> Mat {
        let (first, n) = self.part(half);
        x.columns(first * self.heads.d, n * self.heads.d)
    }

    /// The heads' outputs side by side to `o`, zeros behind a sequence's end.
    pub(super) fn forward(&self, ctx: &Context, qkv: Mat, o: Mat) -> Result<Kept> {
        let mut kept = [None, None];
        for (half, kept) in kept.iter_mut().enumerate() {
            let heads = self.of_groups(half);
            if heads.h == 0 {
                continue;
            }
            let grouped = self.gather(ctx, half, qkv)?;
            let of_groups = ctx.buffer(grouped.mat.rows, heads.h * heads.d)?;
            *kept = Some(attention::forward(ctx, heads, grouped.mat, of_groups.mat)?);
            let back = self.groups[half].map.inverse();
            gather_columns(ctx, of_groups.mat, back.rows(), self.columns(half, o))?;
        }
        Ok(kept)
    }

    /// As [`attention::backward`].
    pub(super) fn backward(
        &self,
        ctx: &Context,
        (qkv, o, g): (Mat, Mat, Mat),
        kept: &Kept,
        dqkv: Mat,
    ) -> Result<()> {
        let mut gradients = [None, None];
        for (half, (lse, gradient)) in kept.iter().zip(&mut gradients).enumerate() {
            let heads = self.of_groups(half);
            let Some(lse) = lse else { continue };
            let grouped = self.gather(ctx, half, qkv)?;
            let rows = grouped.mat.rows;
            let (of_o, of_g) = (ctx.buffer(rows, heads.h * heads.d)?, ctx.buffer(rows, heads.h * heads.d)?);
            for (from, to) in [(o, &of_o), (g, &of_g)] {
                let from = self.columns(half, from);
                gather_columns(ctx, from, self.groups[half].map.rows(), to.mat)?;
            }
            let to = ctx.buffer(rows, grouped.mat.cols)?;
            attention::backward(ctx, heads, (grouped.mat, of_o.mat, of_g.mat), lse, to.mat)?;
            *gradient = Some(to);
        }
        let Heads { h, hkv, d, .. } = self.heads;
        let address = |half: usize| gradients[half].as_ref().map_or(0, |g: &Buffer| g.mat.address);
        let to = [0, 1].map(|half: usize| self.groups[half].map.inverse());
        let (early, late) = (address(0), address(1));
        let (to_early, to_late) = (ctx.input::<u32>(to[0].rows())?, ctx.input::<u32>(to[1].rows())?);
        let (f, rows, ys) = (kernel(ctx, "scatter_heads")?, dqkv.rows as i64, int(dqkv.stride)?);
        let (heads, key_heads, width, first) = (int(h)?, int(hkv)?, int(d)?, int(h / 2)?);
        let mut args = f.builder();
        args.arg(&early).arg(&late).arg(&to_early).arg(&to_late).arg(&dqkv.address).arg(&rows).arg(&ys);
        args.arg(&heads).arg(&key_heads).arg(&width).arg(&first);
        launch(&mut args, over(dqkv.rows * (h + 2 * hkv) * d / 8))
    }
}

/// Warps that add up a norm's rows.
const WARPS: usize = 1024;

/// The gradient `[D]`, in float32, of the weight of an RMS norm of `x`, given that of its value.
pub(super) fn norm_weight_gradient(ctx: &Context, x: Mat, g: Mat, eps: f32) -> Result<Tensor> {
    let warps = WARPS.min(x.rows.next_multiple_of(4));
    let mut sums = alloc::<f32>(&ctx.dev, warps * x.cols)?;
    let f = kernel(ctx, &ops::of_width("norm_weight_sums", x.cols))?;
    let (rows, d, xs, gs) = (x.rows as i64, int(x.cols)?, int(x.stride)?, int(g.stride)?);
    let mut args = f.builder();
    args.arg(&x.address).arg(&g.address).arg(&mut sums).arg(&rows).arg(&d).arg(&xs).arg(&gs).arg(&eps);
    launch(&mut args, blocks(warps / 4, 128))?;
    let mut y = alloc::<f32>(&ctx.dev, x.cols)?;
    let (f, parts) = (kernel(ctx, "column_sums")?, int(warps)?);
    let mut args = f.builder();
    args.arg(&sums).arg(&mut y).arg(&parts).arg(&d);
    launch(&mut args, over(x.cols))?;
    Ok(tensor(y, x.cols, &ctx.dev))
}
