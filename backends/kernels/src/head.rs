//! The output layer together with its loss: logits exist for some rows at a time, and their gradient in their place.

use candle_core::{DType, Result, Tensor, bail};
use std::marker::PhantomData;

use crate::element::{Element, Real, for_dtype};
use crate::host_product::{Term, rows_times_columns, rows_times_rows};
use crate::layer::lent;
use crate::loss::{check_targets, gradient_in_place, loss_of};
use crate::node::{self, Delivery, Node};

/// Logits that exist at once.
const LOGITS: usize = 1 << 24;

/// Sum of the cross-entropies of `targets` (`[N]`, u32, [`IGNORED`](crate::IGNORED) drops a row) with logits
/// `hidden weight^T`, for `hidden` `[N, D]` and a frozen `weight` `[V, D]` of one element type, as a scalar `f32` (`f64` for
/// `f64`). `None` on a GPU where they are not bf16 or do not start and end on 16-byte boundaries.
///
/// The gradient of `hidden` is made in the forward pass, since it differs from the one that is asked for by a factor: neither
/// logits nor their gradient are kept.
///
/// # Errors
/// Sizes or types that do not fit together; on the CPU a target that is not below `V`, which on a GPU makes the loss NaN.
pub fn head_loss(hidden: &Tensor, weight: &Tensor, targets: &Tensor) -> Result<Option<Tensor>> {
    let ((n, d), (v, d2)) = (hidden.dims2()?, weight.dims2()?);
    if targets.dims() != [n] || targets.dtype() != DType::U32 || d != d2 {
        bail!(
            "head_loss: hidden {:?}, weight {:?} and targets {:?}",
            hidden.dims(),
            weight.dims(),
            targets.dims()
        );
    }
    #[cfg(feature = "cuda")]
    if hidden.device().is_cuda() {
        return crate::cuda::layer::head_loss(hidden, weight, targets);
    }
    if weight.dtype() != hidden.dtype() {
        bail!("head_loss: hidden is {:?} but the weight {:?}", hidden.dtype(), weight.dtype());
    }
    let targets = targets.to_vec1::<u32>()?;
    check_targets(&targets, v)?;
    let (weight, train) = (weight.detach().contiguous()?, hidden.track_op());
    for_dtype!("head_loss", hidden.dtype(), T => {
        let most = (LOGITS / v.max(1)).max(1);
        let head = Head { weight, targets, most, train, element: PhantomData::<fn() -> T> };
        node::apply(&[&hidden.contiguous()?], head, true, Delivery::Graph).map(Some)
    })
}

struct Head<T> {
    weight: Tensor,
    targets: Vec<u32>,
    /// Rows whose logits exist at once.
    most: usize,
    train: bool,
    element: PhantomData<fn() -> T>,
}

impl<T: Element> Node for Head<T> {
    /// The gradient of the hidden states for a gradient of 1.
    type Kept = Vec<T>;

    fn forward(&self, inputs: &[Tensor], _: bool) -> Result<(Tensor, Option<Vec<T>>)> {
        let (v, d) = self.weight.dims2()?;
        let most = self.most;
        let mut gradient = Vec::with_capacity(if self.train { inputs[0].elem_count() } else { 0 });
        let loss = lent::<T, _>(&inputs[0], |x| {
            lent::<T, _>(&self.weight, |w| {
                let mut loss = 0f64;
                for (x, targets) in x.chunks(most * d).zip(self.targets.chunks(most)) {
                    let mut logits = rows_times_columns(&[Term::new(x, w, d)], None, v);
                    let (of_rows, lse) = loss_of(&logits, targets, v);
                    loss += of_rows;
                    if self.train {
                        gradient_in_place(&mut logits, targets, &lse, T::Acc::ONE, v);
                        gradient.extend(rows_times_rows(&[Term::new(&logits, w, v)], d));
                    }
                }
                Ok(loss)
            })
        })?;
        let loss = Tensor::from_vec(vec![T::Acc::real(loss)], (), inputs[0].device())?;
        Ok((loss, Some(gradient)))
    }

    fn backward(&self, inputs: &[Tensor], mut gradient: Vec<T>, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        crate::lora::scale(&mut gradient, g.to_dtype(DType::F64)?.to_scalar::<f64>()?);
        Ok(vec![Some(Tensor::from_vec(gradient, inputs[0].shape(), inputs[0].device())?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_may_come_a_few_at_a_time() -> Result<()> {
        let (x, weight) = (
            Tensor::randn(0f64, 1.0, (8, 6), &Device::Cpu)?,
            Tensor::randn(0f64, 1.0, (19, 6), &Device::Cpu)?,
        );
        let run = |most: usize| -> Result<(f64, Vec<f64>)> {
            let (weight, targets) = (weight.clone(), vec![1, 0, 18, crate::IGNORED, 4, 4, 2, 9]);
            let head = Head { weight, targets, most, train: true, element: PhantomData::<fn() -> f64> };
            let (loss, gradient) = head.forward(std::slice::from_ref(&x), true)?;
            Ok((loss.to_scalar()?, gradient.unwrap_or_default()))
        };
        let (loss, gradient) = run(8)?;
        assert_eq!(gradient.len(), 48);
        for most in [1, 3, 100] {
            let (other, of_rows) = run(most)?;
            assert!((other - loss).abs() < 1e-12);
            assert!(of_rows.iter().zip(&gradient).all(|(a, b)| (a - b).abs() < 1e-12), "{most}");
        }
        Ok(())
    }
}
