//! One layer's launches.

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, PushKernelArg};
use candle_core::{DType, Result, Tensor};
use half::bf16;

use super::super::Mat;
use super::super::ops::{self, Activation};
use super::kernels::{CACHED, Few, Tile, Tiles, norm_rows, warps};
use super::{CachedLayer, CachedPass, NULL, Part, Plain};
use crate::cuda::{Early, function, int, launch, over};

/// `Place` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) lengths: u64,
    pub(super) rows: u64,
    pub(super) sequence: i64,
    pub(super) head: i64,
    pub(super) offset: i32,
    pub(super) t: i32,
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Place {}

impl Place {
    /// Of positions that are not remembered.
    pub(super) fn nowhere() -> Self {
        Self { lengths: NULL, rows: NULL, sequence: 0, head: 0, offset: 0, t: 1 }
    }
}

/// `Projections` of the kernel source: addresses of q, k, v and their biases.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Projections([u64; 6]);

// SAFETY: as above.
unsafe impl DeviceRepr for Projections {}

/// What goes into attention: the norm of the positions, and the products of it.
pub(super) struct Input<'a> {
    pub(super) norm: &'a Tensor,
    pub(super) eps: f32,
    pub(super) projections: Projections,
    /// Of q, and of k and v.
    pub(super) heads: (usize, usize),
    /// Addresses of cos and sin.
    pub(super) angles: (u64, u64),
}

impl CachedPass {
    fn attend(&self, memory: (u64, u64), place: Place) -> Result<()> {
        let (q, o) = (Mat { cols: self.heads.0 * self.d, ..self.qkv.mat }, self.attended.mat);
        let strides = (place.sequence, place.head);
        for Part { first, rows, sequence, offset, attention } in &self.parts {
            let (q, o) = (q.part(*first, *rows), o.part(*first, *rows));
            let start = 2 * *sequence as u64 * place.sequence as u64;
            let causal = (self.standing.lengths == NULL).then_some(int(*offset)?);
            let memory = (memory.0 + start, memory.1 + start);
            attention.run(&self.ctx, q, memory, strides, o, causal, place.lengths)?;
        }
        Ok(())
    }

    pub(super) fn address(&self, t: &Tensor) -> Result<u64> {
        self.ctx.input::<bf16>(t)
    }

    fn bias(&self, l: &Plain<'_>) -> Result<u64> {
        l.bias.map_or(Ok(NULL), |b| self.address(b))
    }

    pub(super) fn few(
        &self,
        own: &Few,
        layer: &CachedLayer<'_>,
        memory: (u64, u64),
        place: Place,
    ) -> Result<()> {
        let [q, k, v, o, gate, up, down] = &layer.linears;
        let (x, eps) = (self.x.mat, layer.eps as f32);
        let projections = self.projections([q, k, v])?;
        let (norm, angles) = (layer.input_norm, self.angles()?);
        let input = Input { norm, eps, projections, heads: self.heads, angles };
        self.attend_in(own, &input, memory, place)?;
        self.attend(memory, place)?;
        self.add_product(own, self.attended.mat, o)?;
        self.cross(layer)?;

        let (width, norm, m) = (int(x.cols)?, self.address(layer.post_norm)?, self.active.mat.cols);
        let (g, u, gb, ub) =
            (self.address(gate.weight)?, self.address(up.weight)?, self.bias(gate)?, self.bias(up)?);
        let mi = int(m)?;
        let mut args = Early::new(&own.gate_up);
        args.arg(&x.address).arg(&norm).arg(&g).arg(&u).arg(&gb).arg(&ub).arg(&self.active.mat.address);
        args.arg(&width).arg(&mi).arg(&eps);
        args.launch(warps(m, x.rows * x.cols))?;
        self.add_product(own, self.active.mat, down)
    }

    /// q, k and v of the normalised positions, see the kernel.
    pub(super) fn attend_in(
        &self,
        own: &Few,
        input: &Input<'_>,
        memory: (u64, u64),
        place: Place,
    ) -> Result<()> {
        let (x, d, (h, hkv)) = (self.x.mat, self.d, input.heads);
        let (width, stride, hi, hkvi, di) =
            (int(x.cols)?, int(self.qkv.mat.stride)?, int(h)?, int(hkv)?, int(d)?);
        let (norm, (cos, sin)) = (self.address(input.norm)?, input.angles);
        let mut args = Early::new(&own.attend_in);
        args.arg(&x.address).arg(&norm).arg(&input.projections).arg(&self.qkv.mat.address);
        args.arg(&memory.0).arg(&memory.1).arg(&cos).arg(&sin).arg(&place).arg(&width).arg(&stride);
        args.arg(&hi).arg(&hkvi).arg(&di).arg(&input.eps);
        args.launch(warps((h + 2 * hkv) * d / 2, x.rows * x.cols))
    }

    /// `x += y W^T + bias`.
    pub(super) fn add_product(&self, own: &Few, y: Mat, l: &Plain<'_>) -> Result<()> {
        let (weight, bias) = (self.address(l.weight)?, self.bias(l)?);
        let (n, k) = (int(self.x.mat.cols)?, int(y.cols)?);
        let mut args = Early::new(&own.add_product);
        args.arg(&self.x.mat.address).arg(&y.address).arg(&weight).arg(&bias).arg(&n).arg(&k);
        args.launch(warps(self.x.mat.cols / 2, y.rows * y.cols))
    }

    pub(super) fn projections(&self, linears: [&Plain<'_>; 3]) -> Result<Projections> {
        let mut all = Projections([NULL; 6]);
        for (i, l) in linears.into_iter().enumerate() {
            (all.0[i], all.0[3 + i]) = (self.address(l.weight)?, self.bias(l)?);
        }
        Ok(all)
    }

    pub(super) fn some(
        &self,
        own: &Tiles,
        layer: &CachedLayer<'_>,
        memory: (u64, u64),
        place: Place,
    ) -> Result<()> {
        let [q, k, v, o, gate, up, down] = &layer.linears;
        let (x, normal) = (self.x.mat, self.normal.mat.address);
        let projections = self.projections([q, k, v])?;
        let (norm, eps, angles) = (layer.input_norm, layer.eps as f32, self.angles()?);
        let input = Input { norm, eps, projections, heads: self.heads, angles };
        self.attend_in_tiles(&own.attend_in, &input, memory, place)?;
        self.attend(memory, place)?;
        self.add_tiles(&own.attended, self.attended.mat, o)?;
        self.cross(layer)?;
        self.norm(layer.post_norm, layer.eps as f32)?;
        let (g, u, gb, ub) =
            (self.address(gate.weight)?, self.address(up.weight)?, self.bias(gate)?, self.bias(up)?);
        let (rows, width, m) = (int(x.rows)?, int(x.cols)?, int(self.active.mat.cols)?);
        let mut args = Early::new(&own.gate_up.kernel);
        args.arg(&normal).arg(&g).arg(&u).arg(&gb).arg(&ub).arg(&self.active.mat.address);
        args.arg(&rows).arg(&width).arg(&m);
        args.launch(own.gate_up.config())?;
        self.add_tiles(&own.down, self.active.mat, down)
    }

    /// As [`CachedPass::attend_in`], by a kernel of tiles.
    pub(super) fn attend_in_tiles(
        &self,
        own: &Tile,
        input: &Input<'_>,
        memory: (u64, u64),
        place: Place,
    ) -> Result<()> {
        self.norm(input.norm, input.eps)?;
        let (x, normal, (cos, sin)) = (self.x.mat, self.normal.mat.address, input.angles);
        let (rows, width, stride) = (int(x.rows)?, int(x.cols)?, int(self.qkv.mat.stride)?);
        let (hi, hkvi, di) = (int(input.heads.0)?, int(input.heads.1)?, int(self.d)?);
        let mut args = Early::new(&own.kernel);
        args.arg(&normal).arg(&input.projections).arg(&self.qkv.mat.address).arg(&memory.0).arg(&memory.1);
        args.arg(&cos).arg(&sin).arg(&place).arg(&rows).arg(&width).arg(&stride).arg(&hi).arg(&hkvi).arg(&di);
        args.launch(own.config())
    }

    /// `x += y W^T + bias`.
    pub(super) fn add_tiles(&self, own: &Tile, y: Mat, l: &Plain<'_>) -> Result<()> {
        let (weight, bias, x) = (self.address(l.weight)?, self.bias(l)?, self.x.mat);
        let (rows, n, k) = (int(x.rows)?, int(x.cols)?, int(y.cols)?);
        let mut args = Early::new(&own.kernel);
        args.arg(&x.address).arg(&y.address).arg(&weight).arg(&bias).arg(&rows).arg(&n).arg(&k);
        args.launch(own.config())
    }

    pub(super) fn many(&self, layer: &CachedLayer<'_>, memory: (u64, u64), place: Place) -> Result<()> {
        let [_, _, _, o, gate, up, down] = &layer.linears;
        self.many_in(layer, memory, place)?;
        self.attend(memory, place)?;
        self.add(self.attended.mat, o)?;
        self.cross(layer)?;
        self.norm(layer.post_norm, layer.eps as f32)?;
        self.side_by_side(self.normal.mat, &[gate, up], self.gates.mat)?;
        ops::activate(&self.ctx, Activation::Gated, self.gates.mat, self.active.mat)?;
        self.add(self.active.mat, down)
    }

    /// q of the normalised positions, and k and v in the memory.
    pub(super) fn many_in(&self, layer: &CachedLayer<'_>, memory: (u64, u64), place: Place) -> Result<()> {
        let [q, k, v, ..] = &layer.linears;
        let ((h, hkv), x, d) = (self.heads, self.x.mat, self.d);
        self.norm(layer.input_norm, layer.eps as f32)?;
        self.side_by_side(self.normal.mat, &[q, k, v], self.qkv.mat)?;
        let (cos, sin) = self.angles()?;
        let (rows, hi, hkvi, di) = (int(x.rows)?, int(h)?, int(hkv)?, int(d)?);
        let f = function(&self.ctx.dev, CACHED, "", "", "remember")?;
        let mut args = Early::new(&f);
        args.arg(&self.qkv.mat.address).arg(&memory.0).arg(&memory.1).arg(&cos).arg(&sin).arg(&place);
        args.arg(&rows).arg(&hi).arg(&hkvi).arg(&di);
        args.launch(over(x.rows * (h + 2 * hkv) * d / 16))
    }

    pub(super) fn norm(&self, weight: &Tensor, eps: f32) -> Result<()> {
        norm_rows(&self.ctx, self.x.mat, weight, eps.into(), self.normal.mat)
    }

    /// `to = [y W^T + bias ..]` for the weights of all `linears`: one product where those stand one below the other.
    pub(super) fn side_by_side(&self, y: Mat, linears: &[&Plain<'_>], to: Mat) -> Result<()> {
        let weights = linears.iter().map(|l| self.ctx.matrix(l.weight)).collect::<Result<Vec<_>>>()?;
        let all = stacked(&weights);
        if let Some(all) = all {
            self.ctx.product((to, DType::BF16), (y, false), (all, true), 1.0, 0.0)?;
        }
        let mut column = 0;
        for (l, weight) in linears.iter().zip(weights) {
            let own = to.columns(column, weight.rows);
            if all.is_none() {
                self.ctx.product((own, DType::BF16), (y, false), (weight, true), 1.0, 0.0)?;
            }
            self.add_bias(l, own)?;
            column += weight.rows;
        }
        Ok(())
    }

    /// `x += y W^T + bias`.
    pub(super) fn add(&self, y: Mat, l: &Plain<'_>) -> Result<()> {
        let x = self.x.mat;
        self.ctx.product((x, DType::BF16), (y, false), (self.ctx.matrix(l.weight)?, true), 1.0, 1.0)?;
        self.add_bias(l, x)
    }

    fn add_bias(&self, l: &Plain<'_>, to: Mat) -> Result<()> {
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

/// Matrices that stand one below the other in memory, as one; nothing where they do not.
fn stacked(parts: &[Mat]) -> Option<Mat> {
    let follows = |pair: &[Mat]| {
        let [above, below] = pair else { return false };
        let next = above.address + 2 * (above.rows * above.stride) as u64;
        (below.address, below.cols, below.stride) == (next, above.cols, above.stride)
    };
    let rows = parts.iter().map(|part| part.rows).sum();
    parts.windows(2).all(follows).then_some(Mat { rows, ..*parts.first()? })
}
