//! Rows of a trained matrix by id, of which any may be asked for many times.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use crate::loss::IGNORED;

/// `[N, D]`, whose row `i` is row `ids[i]` of `weight` (`[V, D]`), with the gradient of `weight`.
///
/// The gradients of an id's places are added up pair by pair, in the same order every time: as many passes over ever fewer
/// rows as the commonest id has binary digits, where candle's own backward pass takes the places of all ids one after
/// the other on a GPU.
///
/// # Errors
/// An id that is not there.
pub fn embedding(weight: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (v, _) = weight.dims2()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= v) {
        bail!("embedding: id {id} of {v}");
    }
    let op = Embedding { ids: ids.to_vec(), index: Tensor::new(ids, weight.device())? };
    weight.contiguous()?.apply_op1(op)
}

struct Embedding {
    ids: Vec<u32>,
    /// The same on the device.
    index: Tensor,
}

impl Embedding {
    fn shape(&self, layout: &Layout) -> Result<Shape> {
        Ok((self.ids.len(), layout.shape().dims2()?.1).into())
    }
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, weight: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (ids, ids_layout) = self.index.storage_and_layout();
        match &*ids {
            Storage::Cpu(ids) => Ok((weight.index_select(ids, layout, ids_layout, 0)?, self.shape(layout)?)),
            _ => bail!("embedding: the ids are on another device"),
        }
    }

    fn cuda_fwd(&self, weight: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (ids, ids_layout) = self.index.storage_and_layout();
        match &*ids {
            Storage::Cuda(ids) => Ok((weight.index_select(ids, layout, ids_layout, 0)?, self.shape(layout)?)),
            _ => bail!("embedding: the ids are on another device"),
        }
    }

    fn bwd(&self, weight: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let mut sums = g.contiguous()?;
        let (passes, back) = plan(&self.ids, weight.dim(0)?);
        for [left, right] in passes {
            let rows = |index: Vec<u32>| {
                let n = index.len();
                sums.index_select(&Tensor::from_vec(index, n, g.device())?, 0)
            };
            sums = (rows(left)? + rows(right)?)?;
        }
        let n = back.len();
        sums.index_select(&Tensor::from_vec(back, n, g.device())?, 0).map(Some)
    }
}

/// The rows to be added in each pass, a second one being [`IGNORED`] where a first one is alone, and the row of each of
/// `v` ids at last, [`IGNORED`] where it has none.
fn plan(ids: &[u32], v: usize) -> (Vec<[Vec<u32>; 2]>, Vec<u32>) {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|place| ids[*place as usize]); // stable
    let mut rows: Vec<(u32, u32)> = order.into_iter().map(|place| (ids[place as usize], place)).collect();
    let mut passes = Vec::new();
    while rows.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        let (mut left, mut right, mut next) = (Vec::new(), Vec::new(), Vec::new());
        for run in rows.chunk_by(|a, b| a.0 == b.0) {
            for pair in run.chunks(2) {
                next.push((pair[0].0, left.len() as u32));
                left.push(pair[0].1);
                right.push(pair.get(1).map_or(IGNORED, |(_, row)| *row));
            }
        }
        passes.push([left, right]);
        rows = next;
    }
    let mut back = vec![IGNORED; v];
    for (id, row) in rows {
        back[id as usize] = row;
    }
    (passes, back)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn rows_are_taken_and_gradients_added_up_as_candle_does() -> Result<()> {
        let weight = Var::randn(0f64, 1.0, (7, 3), &Device::Cpu)?;
        for ids in [&[2u32, 5, 2, 2, 0, 5, 2, 6, 2][..], &[4], &[1, 0, 3]] {
            let factor = Tensor::randn(0f64, 1.0, (ids.len(), 3), &Device::Cpu)?;
            let ours = embedding(&weight, ids)?;
            let theirs = weight.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
            assert_eq!(ours.to_vec2::<f64>()?, theirs.to_vec2::<f64>()?);
            let gradient = |y: &Tensor| -> Result<Option<Tensor>> {
                Ok((y * &factor)?.sum_all()?.backward()?.remove(&weight))
            };
            let (Some(ours), Some(theirs)) = (gradient(&ours)?, gradient(&theirs)?) else {
                bail!("no gradient");
            };
            let gap = (ours - theirs)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(gap < 1e-12, "{ids:?}: {gap}");
        }
        assert!(embedding(&weight, &[7]).is_err());
        Ok(())
    }

    #[test]
    fn passes_halve_the_rows_of_an_id() {
        let (passes, back) = plan(&[3, 1, 3, 3, 3, 3], 5);
        assert_eq!(passes.len(), 3);
        assert_eq!(passes[0], [vec![1, 0, 3, 5], vec![IGNORED, 2, 4, IGNORED]]);
        assert_eq!(back, [IGNORED, 0, IGNORED, 1, IGNORED]);
    }
}
