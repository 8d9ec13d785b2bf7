//! Rows of a matrix in another order.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use crate::loss::IGNORED;

/// `[M, D]`, whose row `i` is row `rows[i]` of `x` (`[N, D]`), or zeros where that is [`IGNORED`].
///
/// A row may be used once at most. That makes the backward pass a gather as well, where that of an indexed selection adds
/// up rows one after the other on a GPU.
///
/// # Errors
/// A row that is not there or used twice.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (n, _) = x.dims2()?;
    let mut back = vec![IGNORED; n];
    for (i, &row) in rows.iter().enumerate().filter(|(_, row)| **row != IGNORED) {
        match back.get_mut(row as usize) {
            Some(place) if *place == IGNORED => *place = i as u32,
            Some(_) => bail!("gather_rows: row {row} is used twice"),
            None => bail!("gather_rows: row {row} of {n}"),
        }
    }
    let op =
        GatherRows { rows: Tensor::new(rows, x.device())?, back: Tensor::from_vec(back, n, x.device())? };
    x.contiguous()?.apply_op1(op)
}

struct GatherRows {
    rows: Tensor,
    /// For each row of the input, which row of the output it became.
    back: Tensor,
}

impl GatherRows {
    fn shape(&self, layout: &Layout) -> Result<Shape> {
        Ok((self.rows.elem_count(), layout.shape().dims2()?.1).into())
    }
}

impl CustomOp1 for GatherRows {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, rows_layout) = self.rows.storage_and_layout();
        match &*rows {
            // candle takes the largest index for a row of zeros, which is IGNORED.
            Storage::Cpu(rows) => Ok((x.index_select(rows, layout, rows_layout, 0)?, self.shape(layout)?)),
            _ => bail!("gather_rows: the rows are on another device"),
        }
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, rows_layout) = self.rows.storage_and_layout();
        match &*rows {
            Storage::Cuda(rows) => Ok((x.index_select(rows, layout, rows_layout, 0)?, self.shape(layout)?)),
            _ => bail!("gather_rows: the rows are on another device"),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(g.contiguous()?.index_select(&self.back, 0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn rows_move_and_gradients_move_back() -> Result<()> {
        let x = Var::from_tensor(&Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?)?;
        let y = gather_rows(&x, &[2, IGNORED, 0, IGNORED])?;
        assert_eq!(y.to_vec2::<f32>()?, [[5., 6.], [0., 0.], [1., 2.], [0., 0.]]);
        let weights = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.], [7., 8.]], &Device::Cpu)?;
        let gradient = (y * weights)?.sum_all()?.backward()?;
        let gradient = gradient.get(&x).map(Tensor::to_vec2::<f32>).transpose()?;
        assert_eq!(gradient, Some(vec![vec![5., 6.], vec![0., 0.], vec![1., 2.]]));
        Ok(())
    }

    #[test]
    fn rows_that_cannot_be_are_errors() -> Result<()> {
        let x = Tensor::zeros((3, 2), candle_core::DType::F32, &Device::Cpu)?;
        for (rows, what) in [([0, 3], "row 3 of 3"), ([1, 1], "twice")] {
            let error = gather_rows(&x, &rows).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(what), "{error}");
        }
        Ok(())
    }
}
