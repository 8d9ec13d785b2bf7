//! Attention of new positions to the states of another model, whose keys and values were made once (CEPE): by the kernels of
//! self-attention, with q alone and without rotation.

use candle_core::{DType, Result, Tensor, bail};

use super::super::Context;
use super::super::attention::{Cached, CachedAttention};
use super::kernels::{Products, Tile};
use super::reading::{Input, Place};
use super::{CachedLayer, CachedPass, NULL, Plain};

/// `x + O softmax(q k^T / sqrt(d)) v`, `q = Q norm(x)`, in the heads of the layer's own attention; bf16.
#[derive(Clone, Copy, Debug)]
pub struct Cross<'a> {
    /// Weight `[D]` of the norm, whose epsilon is the layer's.
    pub norm: &'a Tensor,
    /// Q, `[H d, D]`.
    pub q: &'a Tensor,
    /// O, `[D, H d]`.
    pub o: &'a Tensor,
    /// `[1, Hkv, L, d]`, contiguous.
    pub keys: &'a Tensor,
    /// As the keys.
    pub values: &'a Tensor,
}

impl<'a> Cross<'a> {
    /// What the products read.
    pub(super) fn tensors(&self) -> [&'a Tensor; 3] {
        [self.norm, self.q, self.o]
    }
}

/// What all layers of a pass attend to the states with.
pub(super) struct CrossAttention {
    attention: CachedAttention,
    /// The product of q, where tiles make it.
    tile: Option<Tile>,
    /// cos and sin of no rotation, a row for each position.
    angles: (Tensor, Tensor),
    /// How many states there are.
    states: usize,
}

impl CrossAttention {
    /// For as many states as `cross` has, and `rows` positions with h, hkv and d as given.
    pub(super) fn new(
        ctx: &Context,
        cross: &Cross<'_>,
        (rows, h, hkv, d): (usize, usize, usize, usize),
        products: &Products,
    ) -> Result<Self> {
        let states = cross.keys.dims4()?.2;
        if states == 0 {
            bail!("attention to no states");
        }
        let size = Cached { sequences: 1, t: rows, longest: states, h, hkv, d, window: 0 };
        let tile = match products {
            Products::Tiles(_) => Some(Tile::new(ctx, "attend_in_tile", rows, h * d / 2)?),
            _ => None,
        };
        let (shape, device) = ((rows, d / 2), cross.keys.device());
        let angles = (Tensor::ones(shape, DType::BF16, device)?, Tensor::zeros(shape, DType::BF16, device)?);
        Ok(Self { attention: CachedAttention::new(ctx, size)?, tile, angles, states })
    }
}

impl CachedPass {
    /// Adds to the positions what they see of the states, where the layer has any.
    pub(super) fn cross(&self, layer: &CachedLayer<'_>) -> Result<()> {
        let (Some(cross), Some(own)) = (&layer.cross, &self.cross) else {
            if layer.cross.is_some() != self.cross.is_some() {
                bail!(
                    "a layer attends to states of another model, and the first one does not, or the other way round"
                );
            }
            return Ok(());
        };
        let ((h, hkv), d, x) = (self.heads, self.d, self.x.mat);
        let dense = |t: &Tensor| t.dims() == [1, hkv, own.states, d] && t.dtype() == DType::BF16;
        if cross.q.dims() != [h * d, x.cols]
            || cross.o.dims() != [x.cols, h * d]
            || !(dense(cross.keys) && dense(cross.values))
        {
            let (keys, values) = (cross.keys.shape(), cross.values.shape());
            bail!("keys {keys:?} and values {values:?} of {} states for {h} heads of {d}", own.states);
        }
        let plain = |weight| Plain { weight, bias: None };
        let (q, o) = (plain(cross.q), plain(cross.o));
        let input = Input {
            norm: cross.norm,
            eps: layer.eps as f32,
            // Nothing is made by those of k and v, of which there are no heads.
            projections: self.projections([&q, &q, &q])?,
            heads: (h, 0),
            angles: (self.address(&own.angles.0)?, self.address(&own.angles.1)?),
        };
        let (nowhere, place) = ((NULL, NULL), Place::nowhere());
        match &self.products {
            Products::Few(kernels) => self.attend_in(kernels, &input, nowhere, place)?,
            Products::Tiles(_) => {
                let Some(tile) = &own.tile else { bail!("no kernel for the queries of {} rows", x.rows) };
                self.attend_in_tiles(tile, &input, nowhere, place)?;
            }
            Products::Library => {
                self.norm(cross.norm, layer.eps as f32)?;
                self.side_by_side(self.normal.mat, &[&q], self.qkv.mat.columns(0, h * d))?;
            }
        }
        let (keys, values) = (self.address(cross.keys)?, self.address(cross.values)?);
        let strides = ((hkv * own.states * d) as i64, (own.states * d) as i64);
        let (queries, to) = (self.qkv.mat.columns(0, h * d), self.attended.mat);
        own.attention.run(&self.ctx, queries, (keys, values), strides, to, None, NULL)?;
        match &self.products {
            Products::Few(kernels) => self.add_product(kernels, to, &o),
            Products::Tiles(kernels) => self.add_tiles(&kernels.attended, to, &o),
            Products::Library => self.add(to, &o),
        }
    }
}
