//! Rows of a matrix in another order.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};

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
    RowMap::new(rows, n, x.device())?.gather(x)
}

/// [`gather_rows`] of `x` added to `onto` (`[M, D]`), which on a GPU is one pass where nothing is trained in `onto`.
///
/// # Errors
/// A row that is not there or used twice.
pub fn gather_rows_onto(onto: &Tensor, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let ((n, d), size) = (x.dims2()?, onto.dims2()?);
    if size != (rows.len(), d) || onto.dtype() != x.dtype() {
        bail!("gather_rows: {} rows of {:?} onto {:?}", rows.len(), x.shape(), onto.shape());
    }
    let map = RowMap::new(rows, n, x.device())?;
    if onto.track_op() || !onto.device().is_cuda() || !is_fast(x.dtype()) {
        return onto + map.gather(x)?;
    }
    let onto = Some(onto.contiguous()?);
    x.contiguous()?.apply_op1(GatherRows { rows: map.rows, back: map.back, onto })
}

/// Whether the GPU has a kernel of our own.
fn is_fast(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16)
}

/// Which rows [`gather_rows`] takes, sent to the device once for many matrices.
#[derive(Clone, Debug)]
pub struct RowMap {
    rows: Tensor,
    /// For each row of the input, which row of the output it becomes.
    back: Tensor,
}

impl RowMap {
    /// A map of matrices of `n` rows.
    ///
    /// # Errors
    /// A row that is not there or used twice.
    pub fn new(rows: &[u32], n: usize, device: &Device) -> Result<Self> {
        let mut back = vec![IGNORED; n];
        for (i, &row) in rows.iter().enumerate().filter(|(_, row)| **row != IGNORED) {
            match back.get_mut(row as usize) {
                Some(place) if *place == IGNORED => *place = i as u32,
                Some(_) => bail!("gather_rows: row {row} is used twice"),
                None => bail!("gather_rows: row {row} of {n}"),
            }
        }
        Ok(Self { rows: Tensor::new(rows, device)?, back: Tensor::from_vec(back, n, device)? })
    }

    /// The rows of `x` `[N, D]`: `[M, D]`.
    ///
    /// # Errors
    /// A matrix of another number of rows.
    pub fn gather(&self, x: &Tensor) -> Result<Tensor> {
        let ((n, _), own) = (x.dims2()?, self.back.elem_count());
        if n != own {
            bail!("gather_rows: a map of {own} rows for a matrix of {n}");
        }
        x.contiguous()?.apply_op1(GatherRows { rows: self.rows.clone(), back: self.back.clone(), onto: None })
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn rows(&self) -> &Tensor {
        &self.rows
    }

    /// The map that puts the rows back where they were, and zeros where none was taken.
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self { rows: self.back.clone(), back: self.rows.clone() }
    }
}

struct GatherRows {
    rows: Tensor,
    /// For each row of the input, which row of the output it became.
    back: Tensor,
    /// What is added, on a GPU.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    onto: Option<Tensor>,
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
        #[cfg(feature = "cuda")]
        if is_fast(x.dtype()) {
            let y = crate::cuda::rows::gather((x, layout), &self.rows, self.onto.as_ref())?;
            return Ok((y, self.shape(layout)?));
        }
        let (rows, rows_layout) = self.rows.storage_and_layout();
        match &*rows {
            Storage::Cuda(rows) => Ok((x.index_select(rows, layout, rows_layout, 0)?, self.shape(layout)?)),
            _ => bail!("gather_rows: the rows are on another device"),
        }
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let back = Self { rows: self.back.clone(), back: self.rows.clone(), onto: None };
        Ok(Some(g.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

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
    fn rows_are_added_to_others() -> Result<()> {
        let x = Var::from_tensor(&Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?)?;
        let onto = Tensor::new(&[[10f32, 20.], [30., 40.], [50., 60.]], &Device::Cpu)?;
        let y = gather_rows_onto(&onto, &x, &[1, IGNORED, 0])?;
        assert_eq!(y.to_vec2::<f32>()?, [[13., 24.], [30., 40.], [51., 62.]]);
        let gradient = (y * &onto)?.sum_all()?.backward()?;
        let gradient = gradient.get(&x).map(Tensor::to_vec2::<f32>).transpose()?;
        assert_eq!(gradient, Some(vec![vec![50., 60.], vec![10., 20.]]));
        assert!(gather_rows_onto(&onto, &x, &[1]).is_err());
        Ok(())
    }

    #[test]
    fn a_map_takes_rows_back_to_where_they_were() -> Result<()> {
        let x = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &Device::Cpu)?;
        let map = RowMap::new(&[2, IGNORED, 0], 3, &Device::Cpu)?;
        let back = map.inverse().gather(&map.gather(&x)?)?;
        assert_eq!(back.to_vec2::<f32>()?, [[1., 2.], [0., 0.], [5., 6.]]);
        assert!(map.gather(&x.narrow(0, 0, 2)?).is_err());
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
