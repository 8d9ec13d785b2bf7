//! A post-norm encoder layer (BERT).

use candle_core::{Result, Tensor, bail};

use super::EncoderLayer;
use super::linears::{Linears, Lows, Updates, lent};
use super::stack::{Gradients, Layer};
use crate::activation::{gelu_gradient, gelu_of};
use crate::attention::Heads;
use crate::element::{Element, Real, zeros};
use crate::norm::{add_input_gradient, layer_rows};
use crate::residual::add;

pub(super) struct Encoder {
    /// Weight, bias and epsilon of the norms after attention and after the feed-forward block.
    norms: [(Tensor, Tensor, f64); 2],
    attend: Linears,
    output: Linears,
    inner: Linears,
    outer: Linears,
    attention: Heads,
}

/// What the backward pass reads; the sums are what the norms were given.
pub(super) struct Kept<T: Element> {
    qkv: [Vec<T>; 3],
    o: Vec<T>,
    lse: Vec<T::Acc>,
    attended_sum: Vec<T>,
    attended: Vec<T>,
    inner: Vec<T>,
    activated: Vec<T>,
    sum: Vec<T>,
    /// Of q, k and v; output; inner; outer.
    lows: [Lows<T>; 4],
    updates: [Updates; 4],
}

impl Encoder {
    pub(super) fn new(layer: &EncoderLayer<'_>, x: &Tensor, lengths: Option<Vec<usize>>) -> Result<Self> {
        let (b, t, width) = x.dims3()?;
        let [q, k, v, o, inner, outer] = &layer.linears;
        let (attend, output) = (Linears::new(&[q, k, v])?, Linears::new(&[o])?);
        let (inner, outer) = (Linears::new(&[inner])?, Linears::new(&[outer])?);
        let h = layer.heads;
        let d = output.inputs() / h.max(1);
        let norms = [layer.attention_norm, layer.norm];
        let fits_norm = |p: &Tensor| p.dims() == [width] && p.dtype() == x.dtype();
        let groups = [&attend, &output, &inner, &outer];
        let fits = [0, 1, 2].map(|part| attend.outputs(part)) == [h * d; 3]
            && output.inputs() == h * d
            && inner.outputs(0) == outer.inputs()
            && [attend.inputs(), output.outputs(0), inner.inputs(), outer.outputs(0)] == [width; 4]
            && norms.iter().all(|(w, b, _)| fits_norm(w) && fits_norm(b))
            && groups.iter().all(|group| group.dtype_is(x.dtype()));
        if !fits {
            bail!("encoder layer: x {:?} {:?} does not fit the layer", x.dtype(), x.shape());
        }
        Ok(Self {
            norms: norms.map(|(w, b, eps)| (w.detach(), b.detach(), eps)),
            attend,
            output,
            inner,
            outer,
            attention: Heads::new((b, t), (h, h, d), lengths, false)?,
        })
    }

    fn norm<T: Element>(&self, which: usize, x: &[T]) -> Result<Vec<T>> {
        let (w, b, eps) = &self.norms[which];
        lent(w, |w| lent(b, |b| Ok(layer_rows(x, w, b, T::Acc::real(*eps)))))
    }

    /// The gradient of a norm's input `x`, given that of its value.
    fn norm_gradient<T: Element>(&self, which: usize, x: &[T], g: &[T]) -> Result<Vec<T>> {
        let (w, _, eps) = &self.norms[which];
        let mut dx = zeros(x.len());
        lent(w, |w| {
            add_input_gradient(x, w, g, T::Acc::real(*eps), true, &mut dx);
            Ok(dx)
        })
    }

    /// Of the groups in order.
    fn updates<T: Element>(&self, mut trained: &[Tensor]) -> Result<[Updates; 4]> {
        let mut next = |group: &Linears| group.updates::<T>(&mut trained);
        Ok([next(&self.attend)?, next(&self.output)?, next(&self.inner)?, next(&self.outer)?])
    }
}

impl Layer for Encoder {
    type Kept<T: Element> = Kept<T>;

    fn trained(&self) -> usize {
        [&self.attend, &self.output, &self.inner, &self.outer].iter().map(|group| group.trained()).sum()
    }

    fn forward<T: Element>(&self, x: &[T], trained: &[Tensor]) -> Result<(Vec<T>, Kept<T>)> {
        let updates = self.updates::<T>(trained)?;
        let (qkv, low0) = self.attend.forward(x, &updates[0])?;
        let Ok(qkv) = <[Vec<T>; 3]>::try_from(qkv) else { bail!("queries, keys and values") };
        let (o, lse) = self.attention.forward(qkv.each_ref().map(|rows| &rows[..]));
        let (sum, low1) = self.output.forward(&o, &updates[1])?;
        let Ok([mut attended_sum]) = <[_; 1]>::try_from(sum) else { bail!("one output") };
        add(&mut attended_sum, x);
        let attended = self.norm(0, &attended_sum)?;

        let (inner, low2) = self.inner.forward(&attended, &updates[2])?;
        let Ok([inner]) = <[_; 1]>::try_from(inner) else { bail!("one output") };
        let activated = gelu_of(&inner);
        let (sum, low3) = self.outer.forward(&activated, &updates[3])?;
        let Ok([mut sum]) = <[_; 1]>::try_from(sum) else { bail!("one output") };
        add(&mut sum, &attended);
        let y = self.norm(1, &sum)?;
        let lows = [low0, low1, low2, low3];
        Ok((y, Kept { qkv, o, lse, attended_sum, attended, inner, activated, sum, lows, updates }))
    }

    fn backward<T: Element>(&self, x: &[T], kept: Kept<T>, g: Vec<T>, wanted: bool) -> Result<Gradients<T>> {
        let Kept { qkv, o, lse, attended_sum, attended, inner, activated, sum, lows, updates } = kept;

        let dsum = self.norm_gradient(1, &sum, &g)?;
        let (low, of_outer) = self.outer.gradients(&activated, &lows[3], &[&dsum], &updates[3])?;
        let mut dinner = self.outer.input_gradient(&[&dsum], &low, &updates[3])?;
        gelu_gradient(&inner, &mut dinner);
        let (low, of_inner) = self.inner.gradients(&attended, &lows[2], &[&dinner], &updates[2])?;
        let mut dattended = self.inner.input_gradient(&[&dinner], &low, &updates[2])?;
        add(&mut dattended, &dsum);

        let dsum = self.norm_gradient(0, &attended_sum, &dattended)?;
        let (low, of_output) = self.output.gradients(&o, &lows[1], &[&dsum], &updates[1])?;
        let d_o = self.output.input_gradient(&[&dsum], &low, &updates[1])?;
        let dqkv = self.attention.gradients(qkv.each_ref().map(|rows| &rows[..]), (&o, &lse), &d_o);
        let dqkv = dqkv.each_ref().map(|rows| &rows[..]);
        let (low, of_attend) = self.attend.gradients(x, &lows[0], &dqkv, &updates[0])?;
        let mut dx = None;
        if wanted {
            let mut sum = self.attend.input_gradient(&dqkv, &low, &updates[0])?;
            add(&mut sum, &dsum);
            dx = Some(sum);
        }
        Ok((dx, [of_attend, of_output, of_inner, of_outer].into_iter().flatten().collect()))
    }
}
