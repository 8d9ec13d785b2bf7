//! Products with block-quantised weights on the CPU: ggml's Q4_0, Q4_1 and Q8_0, in 32 weights a block.
//!
//! candle multiplies Q4_1 one weight at a time and hands work to a pool of its own that spins beside everybody
//! else's. Here activations are rounded to 8 bits block by block, as ggml does, weights lie in [`tiles`] of 16 rows,
//! and a vector register multiplies all 16 at once, on rayon's threads.

mod activations;
mod kernels;
mod tiles;

use activations::Activations;
use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use tiles::{BLOCK, LANES, Tiles};

/// Products a task computes at least: below this, handing work over costs more than it saves.
const GRAIN: usize = 128 * 1024;

/// A matrix `[out, in]` in blocks along its rows.
#[derive(Debug)]
pub(crate) struct QuantisedMatrix {
    rows: usize,
    columns: usize,
    tiles: Tiles,
}

impl QuantisedMatrix {
    /// Takes over a matrix of one of the kinds above that lies in the CPU's memory; `None` for any other.
    pub(crate) fn new(tensor: &QTensor) -> Result<Option<Self>> {
        let &[rows, columns] = tensor.shape().dims() else {
            return Ok(None);
        };
        if !tensor.device().is_cpu() || !columns.is_multiple_of(BLOCK) || columns == 0 {
            return Ok(None);
        }
        let tiles = Tiles::pack(tensor.dtype(), &tensor.data()?, rows, columns)?;
        Ok(tiles.map(|tiles| Self { rows, columns, tiles }))
    }

    /// `x W^T`: `[.., in]` to `[.., out]`, in float32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(self)
    }

    /// Rows by index, unpacked: `[n]` to `[n, in]`.
    pub(crate) fn select(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = ids.to_vec1::<u32>()?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.rows) {
            bail!("row {id} of a matrix with {}", self.rows);
        }
        let mut out = vec![0f32; ids.len() * self.columns];
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.columns)) {
            self.tiles.unpack(*id as usize, out);
        }
        Tensor::from_vec(out, (ids.len(), self.columns), &Device::Cpu)
    }

    /// The whole matrix, unpacked.
    pub(crate) fn dequantise(&self) -> Result<Tensor> {
        let mut out = vec![0f32; self.rows * self.columns];
        out.par_chunks_mut(self.columns).enumerate().for_each(|(row, out)| self.tiles.unpack(row, out));
        Tensor::from_vec(out, (self.rows, self.columns), &Device::Cpu)
    }

    /// Products of all rows of `x` `[m, in]`: `[m, out]`.
    fn product(&self, x: &[f32]) -> Vec<f32> {
        let (k, n) = (self.columns, self.rows);
        let m = x.len() / k;
        let x: Vec<Activations> =
            x.par_chunks_exact(k).with_min_len((GRAIN / 8).div_ceil(k)).map(Activations::new).collect();
        let mut y = vec![0f32; m * n];
        let tiles_per_task = self.tiles.len().div_ceil(tasks(LANES * self.tiles.len() * k * m)).max(1);
        if m == 1 {
            y.par_chunks_mut(tiles_per_task * LANES).enumerate().for_each(|(task, y)| {
                for (i, y) in y.chunks_mut(LANES).enumerate() {
                    let mut out = [[0f32; LANES]];
                    kernels::tile(self.tiles.get(task * tiles_per_task + i), &x, &mut out);
                    y.copy_from_slice(&out[0][..y.len()]);
                }
            });
            return y;
        }
        // A tile's products lie apart in `y`: tasks fill tiles of their own, which are then put in order.
        let mut products = vec![[0f32; LANES]; self.tiles.len() * m];
        products.par_chunks_mut(tiles_per_task * m).enumerate().for_each(|(task, out)| {
            for (i, out) in out.chunks_exact_mut(m).enumerate() {
                kernels::tile(self.tiles.get(task * tiles_per_task + i), &x, out);
            }
        });
        y.par_chunks_mut(n).with_min_len((GRAIN / 8).div_ceil(n)).enumerate().for_each(|(row, y)| {
            for (tile, y) in y.chunks_mut(LANES).enumerate() {
                y.copy_from_slice(&products[tile * m + row][..y.len()]);
            }
        });
        y
    }
}

/// Tasks of equal size that some products are dealt to: as many for each thread, or one.
fn tasks(products: usize) -> usize {
    let threads = rayon::current_num_threads();
    if products < 2 * GRAIN { 1 } else { (products / GRAIN).next_multiple_of(threads).min(8 * threads) }
}

impl CustomOp1 for QuantisedMatrix {
    fn name(&self) -> &'static str {
        "quantised_product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("a quantised product with a tensor that is not contiguous");
        };
        let x = &x.as_slice::<f32>()?[start..end];
        let mut shape = layout.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.columns => *last = self.rows,
            _ => bail!("{shape:?} times a quantised matrix {} x {}", self.rows, self.columns),
        }
        Ok((CpuStorage::F32(self.product(x)), shape.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::quantized::GgmlDType;

    /// Numbers between -1 and 1.
    fn noise(n: usize, shape: (usize, usize)) -> Tensor {
        let values: Vec<f32> =
            (0..shape.0 * shape.1).map(|i| ((i * n + i * i % 7919) as f32 * 0.37).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn products_are_those_of_the_unpacked_weights() {
        for dtype in [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0] {
            // No multiple of a tile's rows.
            let quantised = QTensor::quantize(&noise(13, (131, 96)), dtype).unwrap();
            let dense = quantised.dequantize(&Device::Cpu).unwrap();
            let matrix = QuantisedMatrix::new(&quantised).unwrap().unwrap();
            assert_eq!(worst(&matrix.dequantise().unwrap(), &dense), 0.0);
            for m in [1, 3, 8, 29, 200] {
                let x = noise(29, (m, 96));
                let want = x.matmul(&dense.t().unwrap()).unwrap();
                let gap = worst(&matrix.forward(&x).unwrap(), &want);
                // 96 products, each off by at most 1/254 of the weight.
                assert!(gap < 0.1, "{dtype:?} with {m} rows: {gap}");
            }
            let ids = Tensor::new(&[130u32, 0, 7], &Device::Cpu).unwrap();
            assert_eq!(worst(&matrix.select(&ids).unwrap(), &dense.index_select(&ids, 0).unwrap()), 0.0);
            assert!(matrix.select(&Tensor::new(&[131u32], &Device::Cpu).unwrap()).is_err());
        }
    }

    #[test]
    fn a_row_does_not_depend_on_those_beside_it() {
        let quantised = QTensor::quantize(&noise(13, (40, 64)), GgmlDType::Q4_1).unwrap();
        let matrix = QuantisedMatrix::new(&quantised).unwrap().unwrap();
        let x = noise(29, (31, 64));
        let all = matrix.forward(&x).unwrap();
        for row in [0, 17, 30] {
            let alone = matrix.forward(&x.narrow(0, row, 1).unwrap()).unwrap();
            assert_eq!(worst(&alone, &all.narrow(0, row, 1).unwrap()), 0.0);
        }
    }

    #[test]
    fn other_kinds_are_left_to_candle() {
        let quantised = QTensor::quantize(&noise(13, (4, 256)), GgmlDType::Q4K).unwrap();
        assert!(QuantisedMatrix::new(&quantised).unwrap().is_none());
    }
}
