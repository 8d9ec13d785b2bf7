//! Layers one after the other, as one node of the graph: what goes from one to the next stays in the form that suits them.

use candle_core::{Result, Tensor, bail};

use super::{Buffer, Context, Mat, ops};
use crate::node::{self, Delivery, Node};

/// What a layer's forward pass leaves for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    /// What is dear to make again.
    Dear,
    /// All of it, which is used at once.
    All,
}

/// A layer of a [`Stack`].
pub(super) trait Layer: Send + Sync + 'static {
    /// What the backward pass reads beside the input.
    type Kept: Send;

    /// How many trained tensors it has.
    fn trained(&self) -> usize;

    /// Columns of its input: those of a position, and room for more that the layer writes itself.
    fn width(&self) -> usize;

    /// Whether the next layer, which is alike, makes do in its backward pass with an input of `rows` rows from [`Layer::value`], whose other
    /// columns mean nothing, so that the value need not be kept.
    fn is_remade(&self, _rows: usize) -> bool {
        false
    }

    /// Writes the value to `y` once more.
    fn value(&self, _ctx: &Context, _kept: &Self::Kept, _y: Mat) -> Result<()> {
        bail!("this layer's value was to be kept")
    }

    /// Writes the value for `x` to `y`; returns what the backward pass needs if anything is to be kept.
    fn forward(
        &self,
        ctx: &Context,
        x: Mat,
        trained: &[Tensor],
        y: Mat,
        keep: Keep,
    ) -> Result<Option<Self::Kept>>;

    /// The gradients of `x` and of the trained tensors, given that of the value. Behind its columns there may be room.
    fn backward(
        &self,
        ctx: &Context,
        x: Mat,
        trained: &[Tensor],
        kept: Self::Kept,
        g: Sum,
    ) -> Result<(Sum, Vec<Option<Tensor>>)>;
}

/// A gradient, or two that have not been added up, with what holds their memory.
pub(super) struct Sum {
    pub(super) first: Mat,
    pub(super) second: Option<Mat>,
    held: Vec<Held>,
}

#[allow(dead_code)]
enum Held {
    Tensor(Tensor),
    Buffer(Buffer),
}

impl Sum {
    pub(super) fn new(first: Buffer, second: Option<Buffer>) -> Self {
        let (a, b) = (first.mat, second.as_ref().map(|b| b.mat));
        let held = std::iter::once(first).chain(second).map(Held::Buffer).collect();
        Self { first: a, second: b, held }
    }

    /// Added up.
    pub(super) fn dense(self, ctx: &Context) -> Result<Self> {
        let Some(second) = self.second else { return Ok(self) };
        let sum = ctx.buffer(second.rows, second.cols)?;
        ops::add(ctx, self.first.columns(0, second.cols), Some(second), sum.mat)?;
        Ok(Self::new(sum, None))
    }

    fn into_tensor(self, shape: &[usize], ctx: &Context) -> Result<Tensor> {
        let width = shape.last().copied().unwrap_or(0);
        let mut dense = self.dense(ctx)?;
        match dense.held.pop() {
            Some(Held::Buffer(b)) if b.mat.stride == width => Ok(b.into_tensor(shape, ctx)),
            Some(Held::Tensor(t)) => t.reshape(shape),
            // Held until the copy is queued.
            _held => {
                let copy = ctx.buffer(dense.first.rows, width)?;
                ops::add(ctx, dense.first.columns(0, width), None, copy.mat)?;
                Ok(copy.into_tensor(shape, ctx))
            }
        }
    }
}

/// All positions of `x` (`[.., D]`) through `layers`, of which `trained` are the trained tensors in order. Unless `keep`, the
/// backward pass computes each layer again.
pub(super) fn forward<L: Layer>(
    layers: Vec<L>,
    x: &Tensor,
    trained: Vec<&Tensor>,
    keep: bool,
) -> Result<Tensor> {
    if layers.iter().map(Layer::trained).sum::<usize>() != trained.len() {
        bail!("{} trained tensors are not those of the layers", trained.len());
    }
    let x = x.contiguous()?;
    let inputs: Vec<&Tensor> = std::iter::once(&x).chain(trained).collect();
    // What is kept of each layer is decided there.
    node::apply(&inputs, Stack { layers, keep }, true, Delivery::Direct)
}

struct Stack<L> {
    layers: Vec<L>,
    keep: bool,
}

/// A layer's input, the first of which may be the node's own.
struct Input {
    mat: Mat,
    _own: Option<Buffer>,
}

impl Input {
    fn room<L: Layer>(ctx: &Context, rows: usize, layer: &L) -> Result<Self> {
        let own = ctx.buffer(rows, layer.width().next_multiple_of(super::PACK))?;
        Ok(Self { mat: own.mat, _own: Some(own) })
    }
}

impl<L: Layer> Node for Stack<L> {
    /// Of each layer the input, unless that is made again, and what it kept itself.
    type Kept = Vec<(Option<Input>, Option<L::Kept>)>;

    fn forward(&self, inputs: &[Tensor], keep: bool) -> Result<(Tensor, Option<Self::Kept>)> {
        let ctx = &Context::new(inputs[0].device())?;
        let (x, mut trained) = (ctx.matrix(&inputs[0])?, &inputs[1..]);
        let mut input = match self.layers.first() {
            Some(first) if first.width() > x.cols => {
                let own = Input::room(ctx, x.rows, first)?;
                ops::add(ctx, x, None, Mat { cols: x.cols, ..own.mat })?;
                own
            }
            _ => Input { mat: x, _own: None },
        };
        let how = match (keep, self.keep) {
            (true, true) => Keep::Dear,
            _ => Keep::Nothing,
        };
        let (mut kept, mut is_remade) = (Vec::new(), false);
        for (i, layer) in self.layers.iter().enumerate() {
            let y = match self.layers.get(i + 1) {
                Some(next) => Input::room(ctx, x.rows, next)?,
                None => {
                    let own = ctx.buffer(x.rows, x.cols)?;
                    Input { mat: own.mat, _own: Some(own) }
                }
            };
            let (own, others) = trained.split_at(layer.trained());
            trained = others;
            let of_layer = layer.forward(ctx, input.mat, own, Mat { cols: x.cols, ..y.mat }, how)?;
            let before = std::mem::replace(&mut input, y);
            if keep {
                let before = (!is_remade).then_some(before);
                is_remade = of_layer.is_some() && layer.is_remade(x.rows);
                kept.push((before, of_layer));
            }
        }
        let y = match input._own {
            Some(y) => y.into_tensor(inputs[0].shape(), ctx),
            None => inputs[0].clone(),
        };
        Ok((y, keep.then_some(kept)))
    }

    fn backward(&self, inputs: &[Tensor], mut kept: Self::Kept, g: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let ctx = &Context::new(g.device())?;
        let g = g.contiguous()?;
        let g_width = g.dim(candle_core::D::Minus1)?;
        let rows = g.elem_count() / g_width.max(1);
        let mut sum = Sum { first: ctx.matrix(&g)?, second: None, held: vec![Held::Tensor(g)] };
        let (mut gradients, mut trained) = (Vec::new(), &inputs[1..]);
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let Some((x, of_layer)) = kept.pop() else { bail!("what a layer kept is missing") };
            let x = match (x, kept.last()) {
                (Some(x), _) => x,
                (None, Some((_, Some(before)))) => {
                    let x = Input::room(ctx, rows, layer)?;
                    self.layers[i - 1].value(ctx, before, Mat { cols: g_width, ..x.mat })?;
                    x
                }
                (None, _) => bail!("a layer's input was not kept"),
            };
            let (others, own) = trained.split_at(trained.len() - layer.trained());
            trained = others;
            let of_layer = match of_layer {
                Some(of_layer) => of_layer,
                None => {
                    let y = ctx.buffer(x.mat.rows, g_width)?;
                    match layer.forward(ctx, x.mat, own, y.mat, Keep::All)? {
                        Some(of_layer) => of_layer,
                        None => bail!("a layer kept nothing"),
                    }
                }
            };
            let (dx, of_trained) = layer.backward(ctx, x.mat, own, of_layer, sum)?;
            sum = dx;
            gradients.push(of_trained);
        }
        let dx = sum.into_tensor(inputs[0].dims(), ctx)?;
        Ok(std::iter::once(Some(dx)).chain(gradients.into_iter().rev().flatten()).collect())
    }
}
