//! Attention over the heads of `[q | k | v]` rows, in place on both sides, and of such rows over remembered keys.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::{Result, bail};
use half::bf16;

use super::cached::ROUND;
use super::{Context, Mat};
use crate::cuda::attention::{
    Decode, Gradients, Inputs, Params, Positions, Sizes, Tiles, Warpgroups, splits,
};
use crate::cuda::{Kernel, alloc, int, launch, over};

/// Sizes and mask of a layer's attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) b: usize,
    pub(super) t: usize,
    pub(super) h: usize,
    pub(super) hkv: usize,
    pub(super) d: usize,
    pub(super) causal: bool,
    /// Address of the valid keys of each batch row, or 0 where all are.
    pub(super) lengths: u64,
}

impl Heads {
    fn q(&self, x: Mat) -> Mat {
        x.columns(0, self.h * self.d)
    }

    fn k(&self, x: Mat) -> Mat {
        x.columns(self.h * self.d, self.hkv * self.d)
    }

    fn v(&self, x: Mat) -> Mat {
        x.columns((self.h + self.hkv) * self.d, self.hkv * self.d)
    }

    fn parameters(&self, x: Mat, o: Mat, g: Mat, dx: Mat) -> Result<Params> {
        if x.cols != (self.h + 2 * self.hkv) * self.d || x.rows != self.b * self.t {
            bail!("attention: rows of {} for {self:?}", x.cols);
        }
        let strides = |m: Mat| [self.t * m.stride, self.d, m.stride].map(|n| n as i64);
        let (x, dx) = (strides(x), strides(dx));
        Ok(Params {
            q: x,
            k: x,
            v: x,
            o: strides(o),
            g: strides(g),
            dq: dx,
            dk: dx,
            dv: dx,
            h: int(self.h)?,
            hkv: int(self.hkv)?,
            tq: int(self.t)?,
            tk: int(self.t)?,
            d: int(self.d)?,
            causal: i32::from(self.causal),
            offset: 0,
            splits: 1,
            split_keys: int(self.t)?,
            scale: 1.0 / (self.d as f32).sqrt(),
            window: 0,
        })
    }

    /// The positions of all sequences in `x`, of which `columns` are read.
    fn positions(&self, x: Mat, columns: Mat) -> Positions {
        let (address, size) = (columns.address, [columns.cols, self.t, self.b]);
        Positions { address, size, strides: [x.stride, self.t * x.stride] }
    }

    /// Query rows of a key head, and key heads of all batch rows.
    fn rows(&self) -> (usize, usize) {
        (self.h / self.hkv * self.t, self.b * self.hkv)
    }
}

/// Writes the heads' outputs side by side to `o`; log-sum-exp `[b, h, t]`.
pub(super) fn forward(ctx: &Context, heads: Heads, qkv: Mat, o: Mat) -> Result<CudaSlice<f32>> {
    let p = heads.parameters(qkv, o, o, qkv)?;
    let (rows, key_heads) = heads.rows();
    let mut lse = alloc::<f32>(&ctx.dev, heads.b * heads.h * heads.t)?;
    if let Some(kernel) = Warpgroups::new(&ctx.dev, heads.d, heads.t)? {
        let inputs = [heads.q(qkv), heads.k(qkv)].map(|columns| heads.positions(qkv, columns));
        let sizes = Sizes {
            heads: (heads.h, heads.hkv),
            causal: heads.causal.then_some(0),
            of_head: (heads.d, 0),
            of_sequence: 1,
        };
        let inputs = (inputs[0], inputs[1], heads.v(qkv).address);
        kernel.run(inputs, (o.address, o.stride), ctx.address(&lse), heads.lengths, sizes)?;
        return Ok(lse);
    }
    let tiles = Tiles::forward::<bf16>(&ctx.dev, (heads.d, true))?;
    let (q, k, v) = (heads.q(qkv).address, heads.k(qkv).address, heads.v(qkv).address);
    // Scratch for splits, of which there is one.
    let none = 0u64;
    let mut args = tiles.kernel.builder();
    args.arg(&q).arg(&k).arg(&v).arg(&o.address).arg(&mut lse).arg(&none).arg(&none).arg(&none);
    args.arg(&heads.lengths).arg(&p);
    launch(&mut args, tiles.config(rows, key_heads, 1))?;
    Ok(lse)
}

/// Writes the gradients of `[q | k | v]` to `dqkv`, given the output `o` and its gradient `g`.
pub(super) fn backward(
    ctx: &Context,
    heads: Heads,
    (qkv, o, g): (Mat, Mat, Mat),
    lse: &CudaSlice<f32>,
    dqkv: Mat,
) -> Result<()> {
    let p = heads.parameters(qkv, o, g, dqkv)?;
    let (rows, key_heads) = heads.rows();
    let (q, k, v) = (heads.q(qkv).address, heads.k(qkv).address, heads.v(qkv).address);
    let (dq, dk, dv) = (heads.q(dqkv).address, heads.k(dqkv).address, heads.v(dqkv).address);
    if let Some(kernels) = Gradients::new(&ctx.dev, heads.d, heads.t)? {
        let of = Inputs {
            q: heads.positions(qkv, heads.q(qkv)),
            k: heads.positions(qkv, heads.k(qkv)),
            v: heads.positions(qkv, heads.v(qkv)),
            g: heads.positions(g, g),
            o: (o.address, o.stride),
            lse: ctx.address(lse),
            lengths: heads.lengths,
            heads: (heads.h, heads.hkv),
            causal: heads.causal,
        };
        return kernels.run(&ctx.dev, &of, [dq, dk, dv], dqkv.stride);
    }
    let mut terms = alloc::<f32>(&ctx.dev, 2 * rows * key_heads)?;
    let tiles = Tiles::queries::<bf16>(&ctx.dev, (heads.d, true))?;
    let mut args = tiles.kernel.builder();
    args.arg(&q).arg(&k).arg(&v).arg(&o.address).arg(&g.address).arg(lse).arg(&mut terms).arg(&dq);
    args.arg(&heads.lengths).arg(&p);
    launch(&mut args, tiles.config(rows, key_heads, 1))?;

    let tiles = Tiles::keys::<bf16>(&ctx.dev, (heads.d, true), heads.t, key_heads)?;
    let mut args = tiles.kernel.builder();
    args.arg(&q).arg(&k).arg(&v).arg(&g.address).arg(&terms).arg(&dk).arg(&dv);
    args.arg(&heads.lengths).arg(&p);
    launch(&mut args, tiles.config(heads.t, key_heads, 1))
}

/// Blocks with which a large GPU is busy: with fewer, keys are rather split over more of them.
const ENOUGH_BLOCKS: usize = 96;

/// Sizes of attention to remembered keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    pub(super) sequences: usize,
    /// New positions of each sequence.
    pub(super) t: usize,
    /// Positions of the longest sequence.
    pub(super) longest: usize,
    pub(super) h: usize,
    pub(super) hkv: usize,
    pub(super) d: usize,
    /// Positions that the only new one of a sequence sees at most, itself among them; 0: all.
    pub(super) window: usize,
}

/// What all layers of a pass attend with.
pub(super) struct CachedAttention {
    size: Cached,
    way: Way,
}

enum Way {
    /// A few query rows, in one launch that leaves nothing behind.
    Few(Decode),
    /// Many rows of one sequence; where the log-sum-exp goes.
    Many(Warpgroups, CudaSlice<f32>),
    Tiles(Box<Split>),
}

/// Tiles of query rows, against parts of the keys where there are few of them.
struct Split {
    tiles: Tiles,
    merge: Option<Kernel>,
    splits: usize,
    lse: CudaSlice<f32>,
    acc: CudaSlice<f32>,
    tops: CudaSlice<f32>,
    totals: CudaSlice<f32>,
}

impl CachedAttention {
    pub(super) fn new(ctx: &Context, size: Cached) -> Result<Self> {
        let Cached { sequences, t, longest, h, hkv, d, window } = size;
        let (of_group, key_heads) = (h / hkv * t, sequences * hkv);
        let seen = if window > 0 { longest.min(window.next_multiple_of(ROUND)) } else { longest };
        if let Some(decode) = Decode::new(&ctx.dev, key_heads, of_group, d, seen)? {
            return Ok(Self { size, way: Way::Few(decode) });
        }
        if window > 0 {
            bail!("{of_group} query rows of a head of {d} in a window of {window}");
        }
        if sequences == 1
            && Warpgroups::blocks(t, h) >= ENOUGH_BLOCKS
            && let Some(kernel) = Warpgroups::new(&ctx.dev, d, t)?
        {
            return Ok(Self { size, way: Way::Many(kernel, alloc(&ctx.dev, t * h)?) });
        }
        let tiles = Tiles::forward::<bf16>(&ctx.dev, (d, true))?;
        let splits = splits(tiles.blocks(of_group) * key_heads, longest);
        let merge = if splits > 1 { Some(tiles.merge::<bf16>(&ctx.dev)?) } else { None };
        let rows = sequences * t * h;
        let partial = if splits > 1 { splits * rows } else { 1 };
        let split = Split {
            tiles,
            merge,
            splits,
            lse: alloc(&ctx.dev, rows)?,
            acc: alloc(&ctx.dev, partial * d)?,
            tops: alloc(&ctx.dev, partial)?,
            totals: alloc(&ctx.dev, partial)?,
        };
        Ok(Self { size, way: Way::Tiles(Box::new(split)) })
    }

    /// The heads' outputs of the rows `q`, side by side in `o`. `memory` are the addresses of keys and values, with their
    /// strides of sequence and head; `causal` hides what is behind a position, when that many stand before the first one;
    /// `lengths` is the address of the keys of each sequence, or 0.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run(
        &self,
        ctx: &Context,
        q: Mat,
        memory: (u64, u64),
        strides: (i64, i64),
        o: Mat,
        causal: Option<i32>,
        lengths: u64,
    ) -> Result<()> {
        let Cached { t, longest, h, hkv, d, window, .. } = self.size;
        let remembered = [strides.0, strides.1, d as i64];
        let rows = |m: Mat| [t * m.stride, d, m.stride].map(|n| n as i64);
        let p = Params {
            q: rows(q),
            k: remembered,
            v: remembered,
            o: rows(o),
            g: [0; 3],
            dq: [0; 3],
            dk: [0; 3],
            dv: [0; 3],
            h: int(h)?,
            hkv: int(hkv)?,
            tq: int(t)?,
            tk: int(longest)?,
            d: int(d)?,
            causal: i32::from(causal.is_some()),
            offset: causal.unwrap_or(0),
            splits: 1,
            split_keys: int(longest)?,
            scale: 1.0 / (d as f32).sqrt(),
            window: int(window)?,
        };
        match &self.way {
            Way::Few(decode) => {
                let (p, none, mut args) = (decode.parameters(p)?, 0u64, decode.kernel.builder());
                args.arg(&q.address).arg(&memory.0).arg(&memory.1).arg(&o.address).arg(&none);
                args.arg(&lengths).arg(&p);
                launch(&mut args, decode.config())
            }
            Way::Many(kernel, lse) => {
                let q =
                    Positions { address: q.address, size: [h * d, t, 1], strides: [q.stride, t * q.stride] };
                // The keys of a head are a matrix.
                let (next, size) = (usize::try_from(strides.1).unwrap_or(0), [d, longest, hkv]);
                let keys = Positions { address: memory.0, size, strides: [d, next] };
                let causal = causal.map(|offset| usize::try_from(offset).unwrap_or(0));
                let sizes = Sizes { heads: (h, hkv), causal, of_head: (0, 1), of_sequence: 0 };
                let lse = ctx.address(lse);
                kernel.run((q, keys, memory.1), (o.address, o.stride), lse, lengths, sizes)
            }
            Way::Tiles(split) => {
                let p = Params {
                    splits: int(split.splits)?,
                    split_keys: int(longest.div_ceil(split.splits))?,
                    ..p
                };
                self.tiles(ctx, split, (q, o), memory, lengths, p)
            }
        }
    }

    fn tiles(
        &self,
        ctx: &Context,
        split: &Split,
        (q, o): (Mat, Mat),
        memory: (u64, u64),
        lengths: u64,
        p: Params,
    ) -> Result<()> {
        let Cached { sequences, t, h, hkv, .. } = self.size;
        let addresses = [&split.lse, &split.acc, &split.tops, &split.totals].map(|data| ctx.address(data));
        let [lse, acc, tops, totals] = &addresses;
        let mut args = split.tiles.kernel.builder();
        args.arg(&q.address).arg(&memory.0).arg(&memory.1).arg(&o.address);
        args.arg(lse).arg(acc).arg(tops).arg(totals).arg(&lengths).arg(&p);
        launch(&mut args, split.tiles.config(h / hkv * t, sequences * hkv, split.splits))?;
        let Some(merge) = &split.merge else { return Ok(()) };
        let count = sequences * t * h;
        let (rows, mut args) = (count as i64, merge.builder());
        args.arg(acc).arg(tops).arg(totals).arg(&o.address).arg(lse).arg(&rows).arg(&p);
        launch(&mut args, over(count * 32))
    }
}
