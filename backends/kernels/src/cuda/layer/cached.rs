//! A decoder that reads new positions behind remembered ones: all of a pass in one matrix of activations, in place.
//!
//! Up to [`FEW`] positions take five launches a layer and up to [`SOME`] eight, whose time is that of reading the weights once;
//! more of them go through cuBLAS. A kernel of ours starts while the one ahead of it ends and asks for its weights then.

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::attention::{Cached, CachedAttention};
use super::ops::{self, Activation};
use super::{Buffer, Context, Mat, PACK};
use crate::cache::RowLengths;
use crate::cuda::{Early, Kernel, Module, blocks, function, grid, int, launch, over};

pub(super) const CACHED: Module =
    Module { name: "cached", source: concat!(include_str!("cached.cuh"), include_str!("cached.cu")) };
const FEW_ROWS: Module =
    Module { name: "few", source: concat!(include_str!("cached.cuh"), include_str!("few.cu")) };
pub(super) const TILES: Module =
    Module { name: "tiles", source: concat!(include_str!("cached.cuh"), include_str!("tiles.cu")) };
/// Positions up to which the products are sums of our own.
const FEW: usize = 4;
/// Bytes of their inputs in shared memory, of which two blocks find room in a processor.
const FEW_SHARED: usize = 96 * 1024;
/// Positions up to which they are our own, on tensor cores, and elements of all of them: a block reads them once for every
/// 16 or 32 rows of weights, which is too often where they are many and wide (4096 wide, 32 took 12 ms and cuBLAS 10).
const SOME: usize = 64;
const SOME_WIDE: usize = 64 * 1024;
const THREADS: u32 = 256;
/// Blocks of tiles with which a large GPU is busy: with fewer, tiles are small.
const BUSY: usize = 132;
/// Positions that the longest sequence is taken to have are a multiple of this where each has one new one, so that work is
/// split in the same way while it grows.
pub(super) const ROUND: usize = 256;
pub(super) const NULL: u64 = 0;

/// A linear's weight `[out, in]` and bias `[out]`, bf16.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
}

/// A pre-norm decoder layer (Llama) without low-rank updates.
#[derive(Clone, Copy, Debug)]
pub struct CachedLayer<'a> {
    /// Weight `[D]` of the norm before attention.
    pub input_norm: &'a Tensor,
    /// Weight `[D]` of the norm before the feed-forward block.
    pub post_norm: &'a Tensor,
    /// Projections q, k, v, o, gate, up, down.
    pub linears: [Plain<'a>; 7],
    /// Of the norms.
    pub eps: f64,
}

/// Where the positions of a pass stand.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// One sequence's next ones, behind as many as are remembered.
    Behind(usize),
    /// The last of each row, whose lengths count it.
    Last(&'a RowLengths),
}

/// `Place` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Place {
    lengths: u64,
    sequence: i64,
    head: i64,
    offset: i32,
    t: i32,
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Place {}

/// `Projections` of the kernel source: addresses of q, k, v and their biases.
#[repr(C)]
#[derive(Clone, Copy)]
struct Projections([u64; 6]);

// SAFETY: as above.
unsafe impl DeviceRepr for Projections {}

/// Where the new positions of some sequences stand, as the kernels need it.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub(super) sequences: usize,
    /// Positions of the longest sequence at most, the new ones included.
    pub(super) longest: usize,
    /// Positions ahead of the new ones, if there are no lengths.
    pub(super) offset: usize,
    /// Address of the sequences' lengths, or 0.
    pub(super) lengths: u64,
}

/// A decoder's activations on their way through its layers.
pub struct CachedPass {
    ctx: Context,
    standing: Standing,
    /// What the address in it is that of.
    _lengths: Option<Tensor>,
    /// Of q, and of k and v.
    heads: (usize, usize),
    d: usize,
    x: Buffer,
    normal: Buffer,
    qkv: Buffer,
    attended: Buffer,
    gates: Buffer,
    active: Buffer,
    /// Own copies of the tables, which every layer reads.
    angles: (Tensor, Tensor),
    attention: CachedAttention,
    products: Products,
}

/// The kernels for a few positions.
struct Few {
    attend_in: Kernel,
    add_product: Kernel,
    gate_up: Kernel,
}

/// What makes the products.
enum Products {
    Few(Few),
    Tiles(Tiles),
    Library,
}

/// A kernel of tiles: its blocks, and the shared memory of one.
pub(super) struct Tile {
    pub(super) kernel: Kernel,
    blocks: usize,
    shared: usize,
}

/// The kernels of tiles.
struct Tiles {
    attend_in: Tile,
    attended: Tile,
    gate_up: Tile,
    down: Tile,
}

impl Tile {
    /// For `rows` positions and `pairs` of weight rows.
    pub(super) fn new(ctx: &Context, name: &str, rows: usize, pairs: usize) -> Result<Self> {
        let eights = rows.div_ceil(8).next_power_of_two();
        let groups = if pairs.div_ceil(16) >= BUSY { 2 } else { 1 };
        let definitions = format!("constexpr int NB = {eights}, G = {groups};\n");
        let kernel = function(&ctx.dev, TILES, &format!("_{eights}_{groups}"), &definitions, name)?;
        // Sums of 16 rows a group, of each of 8 warps and of all.
        let shared = 9 * 16 * groups * 8 * eights * size_of::<f32>();
        kernel.allow_shared(shared)?;
        Ok(Self { kernel, blocks: pairs.div_ceil(8 * groups), shared })
    }

    pub(super) fn config(&self) -> LaunchConfig {
        grid((self.blocks, 1, 1), (THREADS, 1), self.shared)
    }
}

/// Whether `rows` positions `width` wide are read by kernels of tiles.
pub(super) fn fits_tiles(rows: usize, width: usize) -> bool {
    rows <= SOME && rows * width <= SOME_WIDE
}

/// Whether they are few: what they read has room in shared memory.
pub(super) fn is_few(rows: usize, widest: usize) -> bool {
    rows <= FEW && 2 * rows * widest <= FEW_SHARED
}

impl CachedPass {
    /// Whether the layers of a decoder with heads of `d` can be read this way; its linears must be plain, in bf16.
    pub fn is_supported(x: &Tensor, d: usize, layer: &CachedLayer<'_>) -> bool {
        let dense = |t: &Tensor| {
            t.device().is_cuda()
                && t.dtype() == DType::BF16
                && t.is_contiguous()
                && t.dims().iter().all(|n| n % PACK == 0)
        };
        let plain = |l: &Plain<'_>| dense(l.weight) && l.bias.is_none_or(dense);
        let tensors = [layer.input_norm, layer.post_norm];
        x.device().is_cuda()
            && x.dtype() == DType::BF16
            && !x.track_op()
            && d.is_multiple_of(16)
            && d <= 128
            && tensors.into_iter().all(dense)
            && layer.linears.iter().all(plain)
    }

    /// Begins with the embeddings `x` (`[.., D]`, one row for each position). `cos` and `sin` are `[rows, d / 2]`, `first`
    /// is any of the layers.
    ///
    /// # Errors
    /// Tensors that do not fit together or are not on a GPU.
    pub fn new(
        x: &Tensor,
        d: usize,
        first: &CachedLayer<'_>,
        (cos, sin): (&Tensor, &Tensor),
        positions: Positions<'_>,
    ) -> Result<Self> {
        if !Self::is_supported(x, d, first) {
            bail!("x {:?} {:?} cannot be read by the layers of the gpu", x.dtype(), x.shape());
        }
        let ctx = Context::new(x.device())?;
        let x = x.contiguous()?;
        let from = ctx.matrix(&x)?;
        let (standing, lengths) = match positions {
            Positions::Behind(offset) => {
                (Standing { sequences: 1, longest: offset + from.rows, offset, lengths: NULL }, None)
            }
            Positions::Last(rows) => {
                let lengths = rows.device.as_ref().map_or(Ok(NULL), |l| ctx.input::<u32>(l))?;
                let (sequences, longest) = (rows.rows().len(), rows.longest());
                (Standing { sequences, longest, offset: 0, lengths }, rows.device.clone())
            }
        };
        let angle = |t: &Tensor| t.to_dtype(DType::BF16)?.contiguous();
        let copy = ctx.buffer(from.rows, from.cols)?;
        ops::add(&ctx, from, None, copy.mat)?;
        let pass = Self::of(ctx, copy, d, first, (angle(cos)?, angle(sin)?), standing)?;
        Ok(Self { _lengths: lengths, ..pass })
    }

    /// As [`CachedPass::new`], with the matrix `x` itself.
    pub(super) fn of(
        ctx: Context,
        x: Buffer,
        d: usize,
        first: &CachedLayer<'_>,
        angles: (Tensor, Tensor),
        standing: Standing,
    ) -> Result<Self> {
        let [q, k, _, _, gate, ..] = &first.linears;
        let (h, hkv, m) = (q.weight.dim(0)? / d, k.weight.dim(0)? / d, gate.weight.dim(0)?);
        let (rows, width, sequences) = (x.mat.rows, x.mat.cols, standing.sequences);
        let tables = [rows, d / 2];
        if sequences == 0 || rows % sequences != 0 || angles.0.dims() != tables || angles.1.dims() != tables {
            let (cos, sin) = (angles.0.shape(), angles.1.shape());
            bail!("{rows} positions of {sequences} sequences, angles {cos:?} and {sin:?}");
        }
        let few = |name: &str| few_kernel(&ctx, name, rows);
        let tile = |name: &str, pairs: usize| Tile::new(&ctx, name, rows, pairs);
        let products = if is_few(rows, width.max(m).max(h * d)) {
            Products::Few(Few {
                attend_in: few("attend_in")?,
                add_product: few("add_product")?,
                gate_up: few("gate_up")?,
            })
        } else if fits_tiles(rows, width) {
            Products::Tiles(Tiles {
                attend_in: tile("attend_in_tile", (h + 2 * hkv) * d / 2)?,
                attended: tile("add_product_tile", width / 2)?,
                gate_up: tile("gate_up_tile", m)?,
                down: tile("add_product_tile", width / 2)?,
            })
        } else {
            Products::Library
        };
        // What only some of them need.
        let (normal, gates) = match products {
            Products::Few(_) => ((1, PACK), (1, PACK)),
            Products::Tiles(_) => ((rows, width), (1, PACK)),
            Products::Library => ((rows, width), (rows, 2 * m)),
        };
        let (t, longest) = (rows / sequences, standing.longest);
        let longest = if t == 1 { longest.next_multiple_of(ROUND) } else { longest };
        let attention = CachedAttention::new(&ctx, Cached { sequences, t, longest, h, hkv, d })?;
        Ok(Self {
            standing,
            _lengths: None,
            heads: (h, hkv),
            d,
            x,
            normal: ctx.buffer(normal.0, normal.1)?,
            qkv: ctx.buffer(rows, (h + 2 * hkv) * d)?,
            attended: ctx.buffer(rows, h * d)?,
            gates: ctx.buffer(gates.0, gates.1)?,
            active: ctx.buffer(rows, m)?,
            angles,
            attention,
            products,
            ctx,
        })
    }

    pub(super) fn context(&self) -> &Context {
        &self.ctx
    }

    /// Whether cuBLAS makes its products.
    pub(super) fn uses_library(&self) -> bool {
        matches!(self.products, Products::Library)
    }

    /// The positions as they are now.
    pub(super) fn x(&self) -> Mat {
        self.x.mat
    }

    /// Addresses of the angles' cos and sin.
    pub(super) fn angles(&self) -> Result<(u64, u64)> {
        Ok((self.address(&self.angles.0)?, self.address(&self.angles.1)?))
    }

    /// Reads the positions through a layer; `keys` and `values` (`[sequences, Hkv, room, d]`, contiguous) take theirs in.
    ///
    /// # Errors
    /// A memory without room for them, a layer of other sizes than the first.
    pub fn layer(&self, layer: &CachedLayer<'_>, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (h, hkv) = self.heads;
        let (d, width, m) = (self.d, self.x.mat.cols, self.active.mat.cols);
        let (q, kv) = (h * d, hkv * d);
        let sizes = [[q, width], [kv, width], [kv, width], [width, q], [m, width], [m, width], [width, m]];
        let fits = layer.linears.iter().zip(sizes).all(|(l, size)| l.weight.dims() == size);
        let (sequences, heads, room, wide) = keys.dims4()?;
        let Standing { longest, offset, lengths, .. } = self.standing;
        if !fits
            || keys.dims() != values.dims()
            || (sequences, heads, wide) != (self.standing.sequences, hkv, d)
            || room.min(self.attention.longest()) < longest
            || !(Self::is_supported(keys, d, layer) && values.is_contiguous())
        {
            bail!("a layer or memory {:?} that {longest} positions do not fit", keys.shape());
        }
        let memory = (self.ctx.input::<bf16>(keys)?, self.ctx.input::<bf16>(values)?);
        let place = Place {
            lengths,
            sequence: (heads * room * d) as i64,
            head: (room * d) as i64,
            offset: int(offset)?,
            t: int(self.x.mat.rows / sequences)?,
        };
        match &self.products {
            Products::Few(kernels) => self.few(kernels, layer, memory, place),
            Products::Tiles(kernels) => self.some(kernels, layer, memory, place),
            Products::Library => self.many(layer, memory, place),
        }
    }

    /// The last layer's output, in the shape of the first one's input.
    ///
    /// # Errors
    /// None of its own.
    pub fn finish(self, shape: &[usize]) -> Result<Tensor> {
        Ok(self.x.into_tensor(shape, &self.ctx))
    }

    /// As [`CachedPass::finish`], as an RMS norm of weight `[D]` leaves it.
    ///
    /// # Errors
    /// A norm of another width.
    pub fn finish_normal(self, norm: &Tensor, eps: f64, shape: &[usize]) -> Result<Tensor> {
        let normal = self.ctx.buffer(self.x.mat.rows, self.x.mat.cols)?;
        norm_rows(&self.ctx, self.x.mat, norm, eps, normal.mat)?;
        Ok(normal.into_tensor(shape, &self.ctx))
    }

    fn attend(&self, memory: (u64, u64), place: Place) -> Result<()> {
        let (q, o) = (Mat { cols: self.heads.0 * self.d, ..self.qkv.mat }, self.attended.mat);
        let causal = (self.standing.lengths == NULL).then_some(place.offset);
        self.attention.run(&self.ctx, q, memory, (place.sequence, place.head), o, causal, place.lengths)
    }

    fn address(&self, t: &Tensor) -> Result<u64> {
        self.ctx.input::<bf16>(t)
    }

    fn bias(&self, l: &Plain<'_>) -> Result<u64> {
        l.bias.map_or(Ok(NULL), |b| self.address(b))
    }

    fn few(&self, own: &Few, layer: &CachedLayer<'_>, memory: (u64, u64), place: Place) -> Result<()> {
        let [q, k, v, o, gate, up, down] = &layer.linears;
        let (h, hkv) = self.heads;
        let (x, d, eps) = (self.x.mat, self.d, layer.eps as f32);
        let (cos, sin) = self.angles()?;
        let projections = self.projections([q, k, v])?;
        let (width, stride, hi, hkvi, di) =
            (int(x.cols)?, int(self.qkv.mat.stride)?, int(h)?, int(hkv)?, int(d)?);
        let norm = self.address(layer.input_norm)?;
        let mut args = Early::new(&own.attend_in);
        args.arg(&x.address)
            .arg(&norm)
            .arg(&projections)
            .arg(&self.qkv.mat.address)
            .arg(&memory.0)
            .arg(&memory.1);
        args.arg(&cos).arg(&sin).arg(&place).arg(&width).arg(&stride).arg(&hi).arg(&hkvi).arg(&di).arg(&eps);
        args.launch(warps((h + 2 * hkv) * d / 2, x.rows * x.cols))?;

        self.attend(memory, place)?;
        self.add_product(own, self.attended.mat, o)?;

        let (norm, m) = (self.address(layer.post_norm)?, self.active.mat.cols);
        let (g, u, gb, ub) =
            (self.address(gate.weight)?, self.address(up.weight)?, self.bias(gate)?, self.bias(up)?);
        let mi = int(m)?;
        let mut args = Early::new(&own.gate_up);
        args.arg(&x.address).arg(&norm).arg(&g).arg(&u).arg(&gb).arg(&ub).arg(&self.active.mat.address);
        args.arg(&width).arg(&mi).arg(&eps);
        args.launch(warps(m, x.rows * x.cols))?;
        self.add_product(own, self.active.mat, down)
    }

    /// `x += y W^T + bias`.
    fn add_product(&self, own: &Few, y: Mat, l: &Plain<'_>) -> Result<()> {
        let (weight, bias) = (self.address(l.weight)?, self.bias(l)?);
        let (n, k) = (int(self.x.mat.cols)?, int(y.cols)?);
        let mut args = Early::new(&own.add_product);
        args.arg(&self.x.mat.address).arg(&y.address).arg(&weight).arg(&bias).arg(&n).arg(&k);
        args.launch(warps(self.x.mat.cols / 2, y.rows * y.cols))
    }

    fn projections(&self, linears: [&Plain<'_>; 3]) -> Result<Projections> {
        let mut all = Projections([NULL; 6]);
        for (i, l) in linears.into_iter().enumerate() {
            (all.0[i], all.0[3 + i]) = (self.address(l.weight)?, self.bias(l)?);
        }
        Ok(all)
    }

    fn some(&self, own: &Tiles, layer: &CachedLayer<'_>, memory: (u64, u64), place: Place) -> Result<()> {
        let [q, k, v, o, gate, up, down] = &layer.linears;
        let (h, hkv) = self.heads;
        let (x, normal) = (self.x.mat, self.normal.mat.address);
        self.norm(layer.input_norm, layer.eps)?;
        let (cos, sin) = self.angles()?;
        let projections = self.projections([q, k, v])?;
        let (rows, width, stride) = (int(x.rows)?, int(x.cols)?, int(self.qkv.mat.stride)?);
        let (hi, hkvi, di) = (int(h)?, int(hkv)?, int(self.d)?);
        let mut args = Early::new(&own.attend_in.kernel);
        args.arg(&normal).arg(&projections).arg(&self.qkv.mat.address).arg(&memory.0).arg(&memory.1);
        args.arg(&cos).arg(&sin).arg(&place).arg(&rows).arg(&width).arg(&stride).arg(&hi).arg(&hkvi).arg(&di);
        args.launch(own.attend_in.config())?;

        self.attend(memory, place)?;
        self.add_tiles(&own.attended, self.attended.mat, o)?;
        self.norm(layer.post_norm, layer.eps)?;
        let (g, u, gb, ub) =
            (self.address(gate.weight)?, self.address(up.weight)?, self.bias(gate)?, self.bias(up)?);
        let m = int(self.active.mat.cols)?;
        let mut args = Early::new(&own.gate_up.kernel);
        args.arg(&normal).arg(&g).arg(&u).arg(&gb).arg(&ub).arg(&self.active.mat.address);
        args.arg(&rows).arg(&width).arg(&m);
        args.launch(own.gate_up.config())?;
        self.add_tiles(&own.down, self.active.mat, down)
    }

    /// `x += y W^T + bias`.
    fn add_tiles(&self, own: &Tile, y: Mat, l: &Plain<'_>) -> Result<()> {
        let (weight, bias, x) = (self.address(l.weight)?, self.bias(l)?, self.x.mat);
        let (rows, n, k) = (int(x.rows)?, int(x.cols)?, int(y.cols)?);
        let mut args = Early::new(&own.kernel);
        args.arg(&x.address).arg(&y.address).arg(&weight).arg(&bias).arg(&rows).arg(&n).arg(&k);
        args.launch(own.config())
    }

    fn many(&self, layer: &CachedLayer<'_>, memory: (u64, u64), place: Place) -> Result<()> {
        let ctx = &self.ctx;
        let [q, k, v, o, gate, up, down] = &layer.linears;
        let (h, hkv) = self.heads;
        let (x, d, m) = (self.x.mat, self.d, self.active.mat.cols);
        self.norm(layer.input_norm, layer.eps)?;
        let mut column = 0;
        for (l, heads) in [(q, h), (k, hkv), (v, hkv)] {
            self.product(self.normal.mat, l, self.qkv.mat.columns(column, heads * d), 0.0)?;
            column += heads * d;
        }
        let (cos, sin) = self.angles()?;
        let (rows, hi, hkvi, di) = (int(x.rows)?, int(h)?, int(hkv)?, int(d)?);
        let f = function(&ctx.dev, CACHED, "", "", "remember")?;
        let mut args = f.builder();
        args.arg(&self.qkv.mat.address).arg(&memory.0).arg(&memory.1).arg(&cos).arg(&sin).arg(&place);
        args.arg(&rows).arg(&hi).arg(&hkvi).arg(&di);
        launch(&mut args, over(x.rows * (h + 2 * hkv) * d / 16))?;

        self.attend(memory, place)?;
        self.product(self.attended.mat, o, x, 1.0)?;
        self.norm(layer.post_norm, layer.eps)?;
        for (i, l) in [gate, up].into_iter().enumerate() {
            self.product(self.normal.mat, l, self.gates.mat.columns(i * m, m), 0.0)?;
        }
        ops::activate(ctx, Activation::Gated, self.gates.mat, self.active.mat)?;
        self.product(self.active.mat, down, x, 1.0)
    }

    fn norm(&self, weight: &Tensor, eps: f64) -> Result<()> {
        norm_rows(&self.ctx, self.x.mat, weight, eps, self.normal.mat)
    }

    /// `to = y W^T + bias + keep to`.
    fn product(&self, y: Mat, l: &Plain<'_>, to: Mat, keep: f32) -> Result<()> {
        let weight = self.ctx.matrix(l.weight)?;
        self.ctx.product((to, DType::BF16), (y, false), (weight, true), 1.0, keep)?;
        let bias = self.bias(l)?;
        if bias == NULL {
            return Ok(());
        }
        let (rows, n, stride) = (to.rows as i64, int(to.cols)?, int(to.stride)?);
        let f = function(&self.ctx.dev, CACHED, "", "", "add_bias")?;
        let mut args = f.builder();
        args.arg(&to.address).arg(&bias).arg(&rows).arg(&n).arg(&stride);
        launch(&mut args, over(to.rows * to.cols))
    }
}

/// A kernel for `rows` positions, which are few.
pub(super) fn few_kernel(ctx: &Context, name: &str, rows: usize) -> Result<Kernel> {
    let definitions = format!("constexpr int R = {rows};\n");
    let kernel = function(&ctx.dev, FEW_ROWS, &format!("_{rows}"), &definitions, name)?;
    kernel.allow_shared(FEW_SHARED)?;
    Ok(kernel)
}

/// `y`, dense, is the RMS norm of the dense matrix `x`.
pub(super) fn norm_rows(ctx: &Context, x: Mat, weight: &Tensor, eps: f64, y: Mat) -> Result<()> {
    if weight.elem_count() != x.cols || (x.rows, x.cols) != (y.rows, y.cols) || x.stride != x.cols {
        bail!("norm of {}x{} by {:?} into {}x{}", x.rows, x.cols, weight.shape(), y.rows, y.cols);
    }
    let (d, weight, eps) = (int(x.cols)?, ctx.input::<bf16>(weight)?, eps as f32);
    let f = function(&ctx.dev, CACHED, "", "", "norm_rows")?;
    let mut args = Early::new(&f);
    args.arg(&x.address).arg(&weight).arg(&y.address).arg(&d).arg(&eps);
    args.launch(blocks(x.rows, (x.cols / PACK).next_multiple_of(32).clamp(32, 512) as u32))
}

/// A launch with warps for `n` pairs of rows of weights and `inputs` elements in shared memory: of as many blocks as find room
/// at once, and of smaller ones where there would be fewer than processors.
pub(super) fn warps(n: usize, inputs: usize) -> LaunchConfig {
    let largest = THREADS as usize / 32;
    let each = (n / BUSY).clamp(1, largest);
    let each = if each.is_power_of_two() { each } else { each.next_power_of_two() / 2 };
    grid((n.div_ceil(each).min(2 * BUSY * largest / each), 1, 1), (32 * each as u32, 1), 2 * inputs)
}
