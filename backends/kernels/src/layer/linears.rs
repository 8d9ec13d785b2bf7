//! Linears that read the same rows, frozen, with low-rank updates that are trained.
//!
//! An update is a second term of the same sum as the weight, in both directions, and the gradient of the input is one sum over
//! all of the linears.

use candle_core::{DType, Result, Tensor, WithDType, bail};

use super::Adapted;
use crate::element::Element;
use crate::host;
use crate::host_product::{Term, columns_times_rows, narrow_all, rows_times_columns, rows_times_rows};
use crate::lora::scale;
use crate::profile::{Kind, timer};

/// What is known of one linear.
struct Part {
    weight: Tensor,
    bias: Option<Tensor>,
    outputs: usize,
    /// Rank and factor of the update.
    update: Option<(usize, f64)>,
}

/// Linears of one input.
pub(super) struct Linears {
    parts: Vec<Part>,
    inputs: usize,
}

/// A and B of each linear's update, in the type of the activations, and the type of their masters.
pub(super) struct Updates(Vec<Option<([Tensor; 2], DType)>>);

/// `scaling x A^T` or its gradient, for each linear with an update.
pub(super) type Lows<T> = Vec<Option<Vec<T>>>;

impl Linears {
    pub(super) fn new(linears: &[&Adapted]) -> Result<Self> {
        let inputs = linears.first().map_or(Ok(0), |l| l.weight.dim(1))?;
        let mut parts = Vec::with_capacity(linears.len());
        for l in linears {
            let (outputs, own) = l.weight.dims2()?;
            let update = match &l.lora {
                Some((a, b, scaling)) => {
                    let rank = a.dim(0)?;
                    if a.dims() != [rank, inputs] || b.dims() != [outputs, rank] {
                        bail!("an update {:?}, {:?} of a weight {:?}", a.dims(), b.dims(), l.weight.dims());
                    }
                    Some((rank, *scaling))
                }
                None => None,
            };
            let is_biased = l.bias.as_ref().is_none_or(|b| b.dims() == [outputs]);
            if own != inputs || !is_biased || !l.is_supported() {
                bail!("a linear of shape {:?} does not fit a layer", l.weight.dims());
            }
            let (weight, bias) = (l.weight.detach(), l.bias.as_ref().map(Tensor::detach));
            parts.push(Part { weight, bias, outputs, update });
        }
        Ok(Self { parts, inputs })
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Of the linear at a place.
    pub(super) fn outputs(&self, part: usize) -> usize {
        self.parts.get(part).map_or(0, |p| p.outputs)
    }

    pub(super) fn dtype_is(&self, dtype: DType) -> bool {
        self.parts.iter().all(|p| p.weight.dtype() == dtype)
    }

    /// How many trained tensors there are.
    pub(super) fn trained(&self) -> usize {
        2 * self.parts.iter().filter(|p| p.update.is_some()).count()
    }

    /// The updates, taken from the front of `trained`.
    pub(super) fn updates<T: Element>(&self, trained: &mut &[Tensor]) -> Result<Updates> {
        let mut updates = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let own = match (part.update, *trained) {
                (None, _) => None,
                (Some(_), [a, b, rest @ ..]) => {
                    *trained = rest;
                    Some(([cast::<T>(a)?, cast::<T>(b)?], a.dtype()))
                }
                _ => bail!("too few trained tensors for a layer"),
            };
            updates.push(own);
        }
        Ok(Updates(updates))
    }

    /// The outputs for rows `x`, and the updates' lows.
    pub(super) fn forward<T: Element>(&self, x: &[T], updates: &Updates) -> Result<(Vec<Vec<T>>, Lows<T>)> {
        let _timer = timer(Kind::Product);
        let (mut outputs, mut lows) = (Vec::new(), Vec::new());
        for (part, update) in self.parts.iter().zip(&updates.0) {
            let bias = part.bias.as_ref().map(host::to_vec::<T>).transpose()?;
            let low = match (part.update, update) {
                (Some((rank, scaling)), Some(([a, _], _))) => {
                    let mut low =
                        lent(a, |a| Ok(rows_times_columns(&[Term::new(x, a, self.inputs)], None, rank)))?;
                    scale(&mut low, scaling);
                    Some(low)
                }
                _ => None,
            };
            let y = lent(&part.weight, |w| {
                let own = Term::new(x, w, self.inputs);
                match (&low, part.update, update) {
                    (Some(low), Some((rank, _)), Some(([_, b], _))) => lent(b, |b| {
                        let terms = [own, Term::new(low, b, rank)];
                        Ok(rows_times_columns(&terms, bias.as_deref(), part.outputs))
                    }),
                    _ => Ok(rows_times_columns(&[own], bias.as_deref(), part.outputs)),
                }
            })?;
            outputs.push(y);
            lows.push(low);
        }
        Ok((outputs, lows))
    }

    /// Gradients of the lows, and of A and B of each update, for rows `x` and given those of the outputs.
    pub(super) fn gradients<T: Element>(
        &self,
        x: &[T],
        lows: &Lows<T>,
        g: &[&[T]],
        updates: &Updates,
    ) -> Result<(Lows<T>, Vec<Option<Tensor>>)> {
        let _timer = timer(Kind::Product);
        let (mut of_lows, mut of_updates) = (Vec::new(), Vec::new());
        for (((part, update), low), g) in self.parts.iter().zip(&updates.0).zip(lows).zip(g) {
            let (Some((rank, scaling)), Some(([a, b], master)), Some(low)) = (part.update, update, low)
            else {
                of_lows.push(None);
                continue;
            };
            let mut dlow = lent(b, |b| Ok(rows_times_rows(&[Term::new(g, b, part.outputs)], rank)))?;
            scale(&mut dlow, scaling);
            let tensor = |sums: Vec<T::Acc>, like: &Tensor| {
                Tensor::from_vec(sums, like.shape(), like.device())?.to_dtype(*master).map(Some)
            };
            of_updates.push(tensor(columns_times_rows(&dlow, x, rank, self.inputs), a)?);
            of_updates.push(tensor(columns_times_rows(g, low, part.outputs, rank), b)?);
            of_lows.push(Some(dlow));
        }
        Ok((of_lows, of_updates))
    }

    /// The gradient of the input, given those of outputs and lows.
    pub(super) fn input_gradient<T: Element>(
        &self,
        g: &[&[T]],
        lows: &Lows<T>,
        updates: &Updates,
    ) -> Result<Vec<T>> {
        let _timer = timer(Kind::Product);
        let mut factors = Vec::with_capacity(2 * g.len());
        for (((part, update), g), low) in self.parts.iter().zip(&updates.0).zip(g).zip(lows) {
            factors.push((*g, &part.weight, part.outputs));
            if let (Some((rank, _)), Some(([a, _], _)), Some(low)) = (part.update, update, low) {
                factors.push((low, a, rank));
            }
        }
        let stores: Vec<_> = factors.iter().map(|(_, matrix, _)| matrix.storage_and_layout()).collect();
        let mut terms = Vec::with_capacity(factors.len());
        for ((rows, _, inner), (storage, layout)) in factors.iter().zip(&stores) {
            terms.push(Term::new(rows, host::slice::<T>(host::cpu(storage)?, layout)?, *inner));
        }
        Ok(rows_times_rows(&terms, self.inputs))
    }
}

/// A master in the type of the activations, rounded on all threads where it is of the type of their sums.
fn cast<T: Element>(master: &Tensor) -> Result<Tensor> {
    if master.dtype() == T::DTYPE || master.dtype() != <T::Acc as WithDType>::DTYPE {
        return master.to_dtype(T::DTYPE);
    }
    let narrow = lent(master, |data| Ok(narrow_all::<T>(data.to_vec())))?;
    Tensor::from_vec(narrow, master.shape(), master.device())
}

/// Calls `f` with the elements of a contiguous tensor.
pub(crate) fn lent<T: WithDType, R>(t: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    f(host::slice::<T>(host::cpu(&storage)?, layout)?)
}
