//! A decoder that reads new positions behind remembered ones: all of a pass in one matrix of activations, in place.
//!
//! Up to 4 positions take five launches a layer and up to 64 eight, whose time is that of reading the weights once;
//! more of them go through cuBLAS. A kernel of ours starts while the one ahead of it ends and asks for its weights then.

mod cross;
mod kernels;
mod positions;
mod reading;
mod rolling;

pub use cross::Cross;
pub use positions::{Positions, Span};
pub use rolling::Rolling;

pub(super) use kernels::{CACHED, NULL, ROUND, Tile, few_kernel, fits_tiles, is_few, norm_rows, warps};
pub(super) use positions::Standing;

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use super::attention::{Cached, CachedAttention};
use super::ops;
use super::{Buffer, Context, Mat, PACK};
use crate::cuda::int;
use cross::CrossAttention;
use kernels::{Few, Products, Tiles};
use reading::Place;

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
    /// Attention to another model's states, between self-attention and feed-forward.
    pub cross: Option<Cross<'a>>,
    /// Of the norms.
    pub eps: f64,
}

/// Rows that attend together.
struct Part {
    first: usize,
    rows: usize,
    /// The first one's.
    sequence: usize,
    offset: usize,
    attention: CachedAttention,
}

/// A decoder's activations on their way through its layers.
pub struct CachedPass {
    ctx: Context,
    standing: Standing,
    /// What the address in it is that of.
    _lengths: Option<Tensor>,
    /// Sequence and position of each row, where the sequences have different numbers of new positions.
    rows: Option<CudaSlice<u32>>,
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
    parts: Vec<Part>,
    cross: Option<CrossAttention>,
    products: Products,
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
            && layer.cross.is_none_or(|cross| cross.tensors().into_iter().all(dense))
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
        let (standing, lengths, spans) = match positions {
            Positions::Behind(offset) => (Standing::alone(0, offset, from.rows), None, &[][..]),
            Positions::Beyond { first, offset } => (Standing::alone(first, offset, from.rows), None, &[][..]),
            Positions::Last(rows) => {
                let lengths = rows.device.as_ref().map_or(Ok(NULL), |l| ctx.input::<u32>(l))?;
                let (sequences, longest) = (rows.rows().len(), rows.longest());
                (Standing { lengths, ..Standing::several(sequences, longest) }, rows.device.clone(), &[][..])
            }
            Positions::Spans(spans) => {
                let most = |of: fn(&Span) -> usize| spans.iter().map(of).max().unwrap_or(0);
                let (sequences, longest) = (most(|s| s.sequence + 1), most(|s| s.offset + s.positions));
                (Standing::several(sequences, longest), None, spans)
            }
        };
        let angle = |t: &Tensor| t.to_dtype(DType::BF16)?.contiguous();
        let copy = ctx.buffer(from.rows, from.cols)?;
        ops::add(&ctx, from, None, copy.mat)?;
        let pass = Self::of(ctx, copy, d, first, (angle(cos)?, angle(sin)?), (standing, spans))?;
        Ok(Self { _lengths: lengths, ..pass })
    }

    /// As [`CachedPass::new`], with the matrix `x` itself.
    pub(super) fn of(
        ctx: Context,
        x: Buffer,
        d: usize,
        first: &CachedLayer<'_>,
        angles: (Tensor, Tensor),
        (standing, spans): (Standing, &[Span]),
    ) -> Result<Self> {
        let [q, k, _, _, gate, ..] = &first.linears;
        let (h, hkv, m) = (q.weight.dim(0)? / d, k.weight.dim(0)? / d, gate.weight.dim(0)?);
        let (rows, width, sequences) = (x.mat.rows, x.mat.cols, standing.sequences);
        let tables = [rows, d / 2];
        let fit = if spans.is_empty() {
            sequences > 0 && rows % sequences == 0
        } else {
            spans.iter().map(|s| s.positions).sum::<usize>() == rows && spans.iter().all(|s| s.positions > 0)
        };
        if !fit || angles.0.dims() != tables || angles.1.dims() != tables {
            let (cos, sin) = (angles.0.shape(), angles.1.shape());
            bail!("{rows} positions of {sequences} sequences, angles {cos:?} and {sin:?}, {spans:?}");
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
        let attention = |sequences, t, longest: usize| {
            let longest = if t == 1 { longest.next_multiple_of(ROUND) } else { longest };
            let window = standing.window;
            CachedAttention::new(&ctx, Cached { sequences, t, longest, h, hkv, d, window })
        };
        let (mut parts, mut row_table) = (Vec::new(), Vec::new());
        if spans.is_empty() {
            let attention = attention(sequences, rows / sequences, standing.longest)?;
            parts.push(Part { first: 0, rows, sequence: 0, offset: standing.offset, attention });
        }
        for &Span { sequence, offset, positions } in spans {
            let (first, attention) = (row_table.len() / 2, attention(1, positions, offset + positions)?);
            parts.push(Part { first, rows: positions, sequence, offset, attention });
            row_table.extend((offset..offset + positions).flat_map(|at| [sequence as u32, at as u32]));
        }
        let cross = first.cross.as_ref();
        let cross = cross.map(|cross| CrossAttention::new(&ctx, cross, (rows, h, hkv, d), &products));
        let cross = cross.transpose()?;
        if cross.is_some() && (sequences > 1 || !spans.is_empty()) {
            bail!("states of another model, for {sequences} sequences in one pass");
        }
        let row_table = if spans.is_empty() { None } else { Some(ctx.dev.clone_htod(&row_table)?) };
        Ok(Self {
            standing,
            _lengths: None,
            rows: row_table,
            heads: (h, hkv),
            d,
            x,
            normal: ctx.buffer(normal.0, normal.1)?,
            qkv: ctx.buffer(rows, (h + 2 * hkv) * d)?,
            attended: ctx.buffer(rows, h * d)?,
            gates: ctx.buffer(gates.0, gates.1)?,
            active: ctx.buffer(rows, m)?,
            angles,
            parts,
            cross,
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
        let (memory, place) = self.place(layer, keys, values)?;
        match &self.products {
            Products::Few(kernels) => self.few(kernels, layer, memory, place),
            Products::Tiles(kernels) => self.some(kernels, layer, memory, place),
            Products::Library => self.many(layer, memory, place),
        }
    }

    /// As [`CachedPass::layer`], of more than 64 positions whose keys and values are all that is asked for: the pass
    /// [finishes](CachedPass::finish) with what they were.
    ///
    /// # Errors
    /// The same; fewer positions.
    pub fn remember(&self, layer: &CachedLayer<'_>, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (memory, place) = self.place(layer, keys, values)?;
        if !self.uses_library() {
            bail!("{} positions are remembered by whole layers alone", self.x.mat.rows);
        }
        self.many_in(layer, memory, place)
    }

    /// Addresses of a layer's memory, and where the new positions stand in it.
    fn place(&self, layer: &CachedLayer<'_>, keys: &Tensor, values: &Tensor) -> Result<((u64, u64), Place)> {
        let (h, hkv) = self.heads;
        let (d, width, m) = (self.d, self.x.mat.cols, self.active.mat.cols);
        let (q, kv) = (h * d, hkv * d);
        let sizes = [[q, width], [kv, width], [kv, width], [width, q], [m, width], [m, width], [width, m]];
        let fits = layer.linears.iter().zip(sizes).all(|(l, size)| l.weight.dims() == size);
        let (sequences, heads, room, wide) = keys.dims4()?;
        let Standing { longest, first, offset, lengths, .. } = self.standing;
        let own = self.standing.sequences;
        if !fits
            || keys.dims() != values.dims()
            || (heads, wide) != (hkv, d)
            || sequences < own
            || (sequences > own && self.rows.is_none())
            || room < first + longest
            || !(Self::is_supported(keys, d, layer) && values.is_contiguous())
        {
            bail!("a layer or memory {:?} that {longest} positions do not fit", keys.shape());
        }
        let start = (2 * first * d) as u64;
        let memory = (self.ctx.input::<bf16>(keys)? + start, self.ctx.input::<bf16>(values)? + start);
        let place = Place {
            lengths,
            rows: self.rows.as_ref().map_or(NULL, |rows| self.ctx.address(rows)),
            sequence: (heads * room * d) as i64,
            head: (room * d) as i64,
            offset: int(offset)?,
            t: int(self.x.mat.rows / own)?.max(1),
        };
        Ok((memory, place))
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
}
