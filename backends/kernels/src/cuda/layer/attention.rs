//! Attention over the heads of `[q | k | v]` rows, in place on both sides, and of such rows over remembered keys.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, PushKernelArg};
use candle_core::{Result, bail};
use half::bf16;

use super::{Context, Mat};
use crate::cuda::attention::{Params, Tiles, splits};
use crate::cuda::{Kernel, alloc, grid, int, launch, over};

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
        })
    }

    /// Tiles of query rows, and batch rows with their key heads.
    fn grid(&self, rows: usize) -> (usize, usize, usize) {
        ((self.h / self.hkv * self.t).div_ceil(rows), self.b * self.hkv, 1)
    }
}

/// Writes the heads' outputs side by side to `o`; log-sum-exp `[b, h, t]`.
pub(super) fn forward(ctx: &Context, heads: Heads, qkv: Mat, o: Mat) -> Result<CudaSlice<f32>> {
    let p = heads.parameters(qkv, o, o, qkv)?;
    let tiles = Tiles::new::<bf16>(heads.d)?;
    let mut lse = alloc::<f32>(&ctx.dev, heads.b * heads.h * heads.t)?;
    let f = tiles.function::<bf16>(&ctx.dev, "attention_forward")?;
    let shared = tiles.shared(tiles.rows + 2 * tiles.keys, tiles.keys);
    f.allow_shared(shared)?;
    let (q, k, v) = (heads.q(qkv).address, heads.k(qkv).address, heads.v(qkv).address);
    // Scratch for splits, of which there is one.
    let none = 0u64;
    let mut args = f.builder();
    args.arg(&q).arg(&k).arg(&v).arg(&o.address).arg(&mut lse).arg(&none).arg(&none).arg(&none);
    args.arg(&heads.lengths).arg(&p);
    launch(&mut args, grid(heads.grid(tiles.rows), (tiles.threads(), 1), shared))?;
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
    let tiles = Tiles::new::<bf16>(heads.d)?;
    let rows = heads.b * heads.h * heads.t;
    let mut delta = alloc::<f32>(&ctx.dev, rows)?;
    let f = tiles.function::<bf16>(&ctx.dev, "attention_delta")?;
    let (count, mut args) = (rows as i64, f.builder());
    args.arg(&o.address).arg(&g.address).arg(&mut delta).arg(&count).arg(&p);
    launch(&mut args, over(rows * 8))?;

    let (q, k, v) = (heads.q(qkv).address, heads.k(qkv).address, heads.v(qkv).address);
    let (dq, dk, dv) = (heads.q(dqkv).address, heads.k(dqkv).address, heads.v(dqkv).address);
    let f = tiles.function::<bf16>(&ctx.dev, "attention_queries")?;
    let shared = tiles.shared(2 * tiles.rows + 2 * tiles.keys, tiles.keys);
    f.allow_shared(shared)?;
    let mut args = f.builder();
    args.arg(&q).arg(&k).arg(&v).arg(&g.address).arg(lse).arg(&delta).arg(&dq).arg(&heads.lengths).arg(&p);
    launch(&mut args, grid(heads.grid(tiles.rows), (tiles.threads(), 1), shared))?;

    let f = tiles.function::<bf16>(&ctx.dev, "attention_keys")?;
    let shared = tiles.shared(2 * tiles.rows + 2 * tiles.queries, tiles.queries);
    f.allow_shared(shared)?;
    let mut args = f.builder();
    args.arg(&q).arg(&k).arg(&v).arg(&g.address).arg(lse).arg(&delta).arg(&dk).arg(&dv);
    args.arg(&heads.lengths).arg(&p);
    let blocks = (heads.t.div_ceil(tiles.rows), heads.b * heads.hkv, 1);
    launch(&mut args, grid(blocks, (tiles.threads(), 1), shared))
}

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
}

/// What all layers of a pass attend with.
pub(super) struct CachedAttention {
    size: Cached,
    tiles: Tiles,
    forward: Kernel,
    merge: Option<Kernel>,
    splits: usize,
    lse: CudaSlice<f32>,
    acc: CudaSlice<f32>,
    tops: CudaSlice<f32>,
    totals: CudaSlice<f32>,
}

impl CachedAttention {
    pub(super) fn new(ctx: &Context, size: Cached) -> Result<Self> {
        let Cached { sequences, t, longest, h, hkv, d } = size;
        let tiles = Tiles::new::<bf16>(d)?;
        let row_tiles = (h / hkv * t).div_ceil(tiles.rows);
        let splits = splits(row_tiles * sequences * hkv, longest);
        let forward = tiles.function::<bf16>(&ctx.dev, "attention_forward")?;
        forward.allow_shared(tiles.shared(tiles.rows + 2 * tiles.keys, tiles.keys))?;
        let merge =
            if splits > 1 { Some(tiles.function::<bf16>(&ctx.dev, "attention_merge")?) } else { None };
        let rows = sequences * t * h;
        let partial = if splits > 1 { splits * rows } else { 1 };
        Ok(Self {
            size,
            tiles,
            forward,
            merge,
            splits,
            lse: alloc(&ctx.dev, rows)?,
            acc: alloc(&ctx.dev, partial * d)?,
            tops: alloc(&ctx.dev, partial)?,
            totals: alloc(&ctx.dev, partial)?,
        })
    }

    pub(super) fn longest(&self) -> usize {
        self.size.longest
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
        let Cached { sequences, t, longest, h, hkv, d } = self.size;
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
            splits: int(self.splits)?,
            split_keys: int(longest.div_ceil(self.splits))?,
            scale: 1.0 / (d as f32).sqrt(),
        };
        let shared = self.tiles.shared(self.tiles.rows + 2 * self.tiles.keys, self.tiles.keys);
        let addresses = [&self.lse, &self.acc, &self.tops, &self.totals].map(|data| ctx.address(data));
        let [lse, acc, tops, totals] = &addresses;
        let mut args = self.forward.builder();
        args.arg(&q.address)
            .arg(&memory.0)
            .arg(&memory.1)
            .arg(&o.address)
            .arg(lse)
            .arg(acc)
            .arg(tops)
            .arg(totals);
        args.arg(&lengths).arg(&p);
        let row_tiles = (h / hkv * t).div_ceil(self.tiles.rows);
        launch(
            &mut args,
            grid((row_tiles, sequences * hkv, self.splits), (self.tiles.threads(), 1), shared),
        )?;
        let Some(merge) = &self.merge else { return Ok(()) };
        let count = sequences * t * h;
        let (rows, mut args) = (count as i64, merge.builder());
        args.arg(acc).arg(tops).arg(totals).arg(&o.address).arg(lse).arg(&rows).arg(&p);
        launch(&mut args, over(count * 32))
    }
}
