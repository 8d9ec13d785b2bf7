//! Layers one after the other, as one node of the graph.

use candle_core::{Result, Tensor, bail};

use super::linears::lent;
use crate::element::{Element, for_dtype};
use crate::node::{self, Delivery, Node};
use std::marker::PhantomData;
use std::ops::Range;

/// Gradients of an input, where it was wanted, and of trained tensors.
pub(super) type Gradients<T> = (Option<Vec<T>>, Vec<Option<Tensor>>);

/// A layer of a [`Stack`].
pub(super) trait Layer: Send + Sync + 'static {
    /// What the backward pass reads beside the input.
    type Kept<T: Element>: Send;

    /// How many trained tensors it has.
    fn trained(&self) -> usize;

    /// The value for rows `x`; what the backward pass needs.
    fn forward<T: Element>(&self, x: &[T], trained: &[Tensor]) -> Result<(Vec<T>, Self::Kept<T>)>;

    /// The gradients of `x`, if it is `wanted`, and of the trained tensors, given that of the value.
    fn backward<T: Element>(
        &self,
        x: &[T],
        kept: Self::Kept<T>,
        g: Vec<T>,
        wanted: bool,
    ) -> Result<Gradients<T>>;
}

/// `x` (`[B, ..]`) through `layers`, of which `trained` are the trained tensors in order. They are made once for each of the
/// `pieces` of the batch, which come one after the other. Unless `keep`, the backward pass computes each layer again.
pub(super) fn forward<L: Layer>(
    x: &Tensor,
    pieces: Vec<Range<usize>>,
    layers: impl Fn(&Tensor, Range<usize>) -> Result<Vec<L>>,
    trained: Vec<&Tensor>,
    keep: bool,
) -> Result<Tensor> {
    let mut all = Vec::with_capacity(pieces.len());
    for rows in pieces {
        let x = x.narrow(0, rows.start, rows.len())?;
        let layers = layers(&x, rows)?;
        if layers.iter().map(Layer::trained).sum::<usize>() != trained.len() {
            bail!("{} trained tensors are not those of the layers", trained.len());
        }
        all.push(Piece { elements: x.elem_count(), layers });
    }
    let (wanted, x) = (x.track_op(), x.contiguous()?);
    let inputs: Vec<&Tensor> = std::iter::once(&x).chain(trained).collect();
    for_dtype!("whole layers", x.dtype(), T => {
        let stack = Stack { pieces: all, keep, wanted, element: PhantomData::<fn() -> T> };
        // What is kept of each layer is decided there.
        node::apply(&inputs, stack, true, Delivery::Direct)
    })
}

/// Layers for some rows of the batch.
struct Piece<L> {
    /// Of its input.
    elements: usize,
    layers: Vec<L>,
}

struct Stack<L, T> {
    pieces: Vec<Piece<L>>,
    keep: bool,
    /// Whether the first input takes a gradient.
    wanted: bool,
    element: PhantomData<fn() -> T>,
}

/// Of a layer its input, unless that is the piece's own, and what it kept itself.
type Kept<L, T> = (Option<Vec<T>>, Option<<L as Layer>::Kept<T>>);

type KeptOfAll<L, T> = Vec<Kept<L, T>>;

impl<L: Layer> Piece<L> {
    /// The value, and if `keep` what there is to be kept, of each layer itself if `dear`.
    fn forward<T: Element>(
        &self,
        first: &[T],
        mut trained: &[Tensor],
        keep: bool,
        dear: bool,
    ) -> Result<(Vec<T>, KeptOfAll<L, T>)> {
        let (mut kept, mut x) = (Vec::new(), None);
        for layer in &self.layers {
            let (own, others) = trained.split_at(layer.trained());
            trained = others;
            let (y, of_layer) = layer.forward(x.as_deref().unwrap_or(first), own)?;
            let before = x.replace(y);
            if keep {
                kept.push((before, dear.then_some(of_layer)));
            }
        }
        Ok((x.unwrap_or_else(|| first.to_vec()), kept))
    }

    /// The gradients of the input, if it is `wanted`, and of all trained tensors in order, given that of the value.
    fn backward<T: Element>(
        &self,
        first: &[T],
        mut trained: &[Tensor],
        mut kept: KeptOfAll<L, T>,
        g: &[T],
        wanted: bool,
    ) -> Result<Gradients<T>> {
        let (mut gradients, mut g) = (Vec::new(), Some(g.to_vec()));
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let (Some((x, of_layer)), Some(of_value)) = (kept.pop(), g.take()) else {
                bail!("what a layer kept is missing")
            };
            let (others, own) = trained.split_at(trained.len() - layer.trained());
            trained = others;
            let x = x.as_deref().unwrap_or(first);
            let of_layer = match of_layer {
                Some(of_layer) => of_layer,
                None => layer.forward(x, own)?.1,
            };
            let (dx, of_trained) = layer.backward(x, of_layer, of_value, i > 0 || wanted)?;
            g = dx;
            gradients.push(of_trained);
        }
        Ok((g.filter(|_| wanted), gradients.into_iter().rev().flatten().collect()))
    }
}

impl<L: Layer, T: Element> Node for Stack<L, T> {
    /// Of each piece.
    type Kept = Vec<KeptOfAll<L, T>>;

    fn forward(&self, inputs: &[Tensor], keep: bool) -> Result<(Tensor, Option<Self::Kept>)> {
        let [x, trained @ ..] = inputs else { bail!("whole layers: no input") };
        let (mut value, mut kept) = (Vec::new(), Vec::new());
        lent::<T, _>(x, |mut x| {
            for piece in &self.pieces {
                let (own, others) = x.split_at(piece.elements);
                x = others;
                let (y, of_piece) = piece.forward(own, trained, keep, self.keep)?;
                append(&mut value, y);
                kept.push(of_piece);
            }
            Ok(())
        })?;
        Ok((Tensor::from_vec(value, x.shape(), x.device())?, keep.then_some(kept)))
    }

    fn backward(&self, inputs: &[Tensor], kept: Self::Kept, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [x, trained @ ..] = inputs else { bail!("whole layers: no input") };
        let (mut dx, mut gradients) = (Vec::new(), vec![None; trained.len()]);
        let g = g.contiguous()?;
        let all = |mut x: &[T], mut g: &[T]| -> Result<()> {
            for (piece, kept) in self.pieces.iter().zip(kept) {
                let ((own, others), (of_own, of_others)) =
                    (x.split_at(piece.elements), g.split_at(piece.elements));
                (x, g) = (others, of_others);
                let (of_piece, of_trained) = piece.backward(own, trained, kept, of_own, self.wanted)?;
                append(&mut dx, of_piece.unwrap_or_default());
                for (sum, gradient) in gradients.iter_mut().zip(of_trained) {
                    *sum = match (sum.take(), gradient) {
                        (Some(before), Some(own)) => Some((before + own)?),
                        (before, own) => before.or(own),
                    };
                }
            }
            Ok(())
        };
        lent(x, |x| lent(&g, |g| all(x, g)))?;
        let dx = self.wanted.then(|| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok(std::iter::once(dx).chain(gradients).collect())
    }
}

/// Puts elements behind others, without a copy of the first.
fn append<T: Element>(all: &mut Vec<T>, more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.extend(more);
    }
}
