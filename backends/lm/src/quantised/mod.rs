//! Products with block-quantised weights on the CPU: ggml's Q4_0, Q4_1 and Q8_0, in 32 weights a block.
//!
//! candle multiplies Q4_1 one weight at a time and hands work to a pool of its own that spins beside everybody
//! else's; this does the same arithmetic in vector registers on rayon's threads. Few rows (decoding) are quantised to
//! 8 bits and multiplied as integers, as ggml does; many rows (reading a prompt) are multiplied in float32 with
//! weights that are unpacked panel by panel.

mod dot;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
use dot::Activations;
use gemm::Parallelism;
use half::f16;
use rayon::prelude::*;

/// Weights of a block.
const BLOCK: usize = 32;
/// Up to this many rows of activations are multiplied as integers.
const FEW_ROWS: usize = 8;
/// Rows of weights that are unpacked at a time: their panel stays in the second-level cache.
const PANEL: usize = 96;
/// Weights a task multiplies at least: below this, handing work over costs more than it saves.
const GRAIN: usize = 64 * 1024;

/// How a block is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Scale, 16 bytes of half-byte integers less 8.
    Q4_0,
    /// Scale, least value, 16 bytes of half-byte integers.
    Q4_1,
    /// Scale, 32 signed bytes.
    Q8_0,
}

impl Kind {
    fn of(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Bytes of a block.
    const fn size(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }
}

/// A matrix `[out, in]` in blocks along its rows.
#[derive(Debug)]
pub(crate) struct QuantisedMatrix {
    kind: Kind,
    rows: usize,
    columns: usize,
    data: Vec<u8>,
}

impl QuantisedMatrix {
    /// Takes over a matrix of one of the kinds above that lies in the CPU's memory; `None` for any other.
    pub(crate) fn new(tensor: &QTensor) -> Result<Option<Self>> {
        let (Some(kind), &[rows, columns]) = (Kind::of(tensor.dtype()), tensor.shape().dims()) else {
            return Ok(None);
        };
        if !tensor.device().is_cpu()
            || columns % BLOCK != 0
            || columns == 0
            || !cfg!(target_endian = "little")
        {
            return Ok(None);
        }
        let data = tensor.data()?.into_owned();
        if data.len() != rows * columns / BLOCK * kind.size() {
            bail!("a {:?} matrix {rows} x {columns} of {} bytes", tensor.dtype(), data.len());
        }
        Ok(Some(Self { kind, rows, columns, data }))
    }

    /// `x W^T`: `[.., in]` to `[.., out]`, in float32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(self)
    }

    /// Rows by index, unpacked: `[n]` to `[n, in]`.
    pub(crate) fn select(&self, ids: &Tensor) -> Result<Tensor> {
        let ids = ids.to_vec1::<u32>()?;
        let mut out = vec![0f32; ids.len() * self.columns];
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(self.columns)) {
            let row = *id as usize;
            if row >= self.rows {
                bail!("row {row} of a matrix with {}", self.rows);
            }
            self.unpack(row..row + 1, out);
        }
        Tensor::from_vec(out, (ids.len(), self.columns), &Device::Cpu)
    }

    /// The whole matrix, unpacked.
    pub(crate) fn dequantise(&self) -> Result<Tensor> {
        let mut out = vec![0f32; self.rows * self.columns];
        out.par_chunks_mut(PANEL * self.columns).enumerate().for_each(|(i, out)| {
            self.unpack(i * PANEL..i * PANEL + out.len() / self.columns, out);
        });
        Tensor::from_vec(out, (self.rows, self.columns), &Device::Cpu)
    }

    /// The bytes of some rows.
    fn bytes(&self, rows: std::ops::Range<usize>) -> &[u8] {
        let row = self.columns / BLOCK * self.kind.size();
        &self.data[rows.start * row..rows.end * row]
    }

    fn unpack(&self, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let kind = self.kind;
        let half = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        for (block, out) in self.bytes(rows).chunks_exact(kind.size()).zip(out.chunks_exact_mut(BLOCK)) {
            let scale = half(block, 0);
            let nibbles = |bytes: &[u8], least: f32, out: &mut [f32]| {
                let (low, high) = out.split_at_mut(BLOCK / 2);
                for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
                    *low = f32::from(byte & 15) * scale + least;
                    *high = f32::from(byte >> 4) * scale + least;
                }
            };
            match kind {
                Kind::Q4_0 => nibbles(&block[2..18], -8.0 * scale, out),
                Kind::Q4_1 => nibbles(&block[4..20], half(block, 2), out),
                Kind::Q8_0 => {
                    for (byte, out) in block[2..34].iter().zip(out) {
                        *out = f32::from(*byte as i8) * scale;
                    }
                }
            }
        }
    }

    /// Each weight is read once and multiplied as an integer.
    fn few_rows(&self, x: &[f32], m: usize) -> Vec<f32> {
        let x: Vec<Activations> = x.chunks_exact(self.columns).map(Activations::new).collect();
        let rows = (GRAIN / (self.columns * m)).max(16);
        // Column by column, so that tasks write to separate places.
        let mut columns = vec![0f32; self.rows * m];
        columns.par_chunks_mut(rows * m).enumerate().for_each(|(i, out)| {
            let n = out.len() / m;
            let bytes = self.bytes(i * rows..i * rows + n);
            for (j, x) in x.iter().enumerate() {
                dot::rows(self.kind, bytes, x, out, m, j);
            }
        });
        if m == 1 {
            return columns;
        }
        let mut y = vec![0f32; self.rows * m];
        for (row, y) in y.chunks_exact_mut(self.rows).enumerate() {
            for (y, column) in y.iter_mut().zip(columns.chunks_exact(m)) {
                *y = column[row];
            }
        }
        y
    }

    /// Panels of weights are unpacked and multiplied in float32.
    fn many_rows(&self, x: &[f32], m: usize) -> Vec<f32> {
        let (n, k) = (self.rows, self.columns);
        let panels: Vec<(usize, Vec<f32>)> = (0..n)
            .into_par_iter()
            .step_by(PANEL)
            .with_max_len(1)
            .map_init(
                || vec![0f32; PANEL * k],
                |panel, start| {
                    let width = PANEL.min(n - start);
                    self.unpack(start..start + width, panel);
                    (start, product(x, &panel[..width * k], m, width, k))
                },
            )
            .collect();
        let mut y = vec![0f32; m * n];
        y.par_chunks_mut(n).with_min_len(16).enumerate().for_each(|(row, y)| {
            for (start, panel) in &panels {
                let width = PANEL.min(n - start);
                y[*start..start + width].copy_from_slice(&panel[row * width..(row + 1) * width]);
            }
        });
        y
    }
}

/// `x w^T` of row-major `x` `[m, k]` and `w` `[n, k]`, on this thread.
fn product(x: &[f32], w: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    assert!(x.len() >= m * k && w.len() >= n * k, "matrix out of bounds");
    let mut y = vec![0f32; m * n];
    let (n_stride, k_stride) = (n as isize, k as isize);
    // SAFETY: the assertion above and the size of `y` keep every element that is read or written inside its slice;
    // `y` is new, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n_stride,
            false,
            x.as_ptr(),
            1,
            k_stride,
            w.as_ptr(),
            k_stride,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    y
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
        let m = x.len() / self.columns;
        let y = if m <= FEW_ROWS { self.few_rows(x, m) } else { self.many_rows(x, m) };
        Ok((CpuStorage::F32(y), shape.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            // More rows than a panel, and no multiple of one.
            let quantised = QTensor::quantize(&noise(13, (131, 96)), dtype).unwrap();
            let dense = quantised.dequantize(&Device::Cpu).unwrap();
            let matrix = QuantisedMatrix::new(&quantised).unwrap().unwrap();
            assert_eq!(worst(&matrix.dequantise().unwrap(), &dense), 0.0);
            for m in [1, 3, FEW_ROWS, FEW_ROWS + 1, 200] {
                let x = noise(29, (m, 96));
                let want = x.matmul(&dense.t().unwrap()).unwrap();
                let gap = worst(&matrix.forward(&x).unwrap(), &want);
                // Few rows are rounded to 8 bits: 96 products, each off by at most 1/254 of the weight.
                let most = if m <= FEW_ROWS { 0.05 } else { 1e-4 };
                assert!(gap < most, "{dtype:?} with {m} rows: {gap}");
            }
            let ids = Tensor::new(&[130u32, 0, 7], &Device::Cpu).unwrap();
            assert_eq!(worst(&matrix.select(&ids).unwrap(), &dense.index_select(&ids, 0).unwrap()), 0.0);
            assert!(matrix.select(&Tensor::new(&[131u32], &Device::Cpu).unwrap()).is_err());
        }
    }

    #[test]
    fn other_kinds_are_left_to_candle() {
        let quantised = QTensor::quantize(&noise(13, (4, 256)), GgmlDType::Q4K).unwrap();
        assert!(QuantisedMatrix::new(&quantised).unwrap().is_none());
    }
}
