//! Weights of linears that read the same input, one below the other in memory, so that a GPU multiplies with all of them at once.

use candle_core::{Result, Tensor};

/// A matrix that is filled linear by linear; its memory is taken with the first of them.
pub(crate) struct Stack {
    rows: usize,
    all: Option<Tensor>,
}

impl Stack {
    /// Room for linears of `rows` outputs together.
    pub(crate) fn new(rows: usize) -> Self {
        Self { rows, all: None }
    }

    /// The same weight `[n, in]` in the rows from `row` on, frozen.
    ///
    /// # Errors
    /// Rows that there are not, a weight of another width, type or place than the first.
    pub(crate) fn put(&mut self, own: &Tensor, row: usize) -> Result<Tensor> {
        let (n, inputs) = own.dims2()?;
        let all = match &self.all {
            Some(all) => all,
            None => self.all.insert(Tensor::zeros((self.rows, inputs), own.dtype(), own.device())?),
        };
        all.slice_set(&own.contiguous()?, 0, row)?;
        all.narrow(0, row, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn linears_stand_one_below_the_other() {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let numbers = |from: u8, n: u8| (from..from + n).map(f32::from).collect::<Vec<_>>();
        let tensor = |from, n, rows| Tensor::from_vec(numbers(from, n), (rows, 2), &Device::Cpu).unwrap();
        let mut stack = Stack::new(4);
        let last = stack.put(&tensor(6, 2, 1), 3).unwrap();
        let first = stack.put(&tensor(0, 6, 3), 0).unwrap();
        assert_eq!([&first, &last].map(values), [numbers(0, 6), numbers(6, 2)]);
        let starts = [&first, &last].map(|t| t.storage_and_layout().1.start_offset());
        assert_eq!(starts, [0, 6]);
        assert!(first.is_contiguous() && last.is_contiguous());
        assert!(stack.put(&tensor(0, 4, 2), 3).is_err(), "it has four rows");
    }
}
