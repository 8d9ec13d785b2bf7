//! A pre-norm decoder layer (Llama).

use candle_core::{Result, Tensor, bail};

use super::DecoderLayer;
use super::linears::{Linears, Lows, Updates, lent};
use super::stack::{Gradients, Layer};
use crate::activation::{silu_mul_gradients, silu_mul_of};
use crate::attention::Heads;
use crate::element::{Element, Real};
use crate::norm::{add_input_gradient, rms_rows};
use crate::residual::add;
use crate::rope::rotate_rows;

pub(super) struct Decoder {
    norms: [Tensor; 2],
    eps: f64,
    attend: Linears,
    output: Linears,
    feed: Linears,
    down: Linears,
    angles: (Tensor, Tensor),
    attention: Heads,
    /// Query heads, key heads, positions, width of a head.
    size: (usize, usize, usize, usize),
}

/// What the backward pass reads, by the order in which it is made.
pub(super) struct Kept<T: Element> {
    normal: Vec<T>,
    qkv: [Vec<T>; 3],
    o: Vec<T>,
    lse: Vec<T::Acc>,
    middle: Vec<T>,
    second_normal: Vec<T>,
    gate: Vec<T>,
    up: Vec<T>,
    gated: Vec<T>,
    /// Of q, k and v; o; gate and up; down.
    lows: [Lows<T>; 4],
    updates: [Updates; 4],
}

impl Decoder {
    pub(super) fn new(
        layer: &DecoderLayer<'_>,
        x: &Tensor,
        angles: &(Tensor, Tensor),
        lengths: Option<Vec<usize>>,
    ) -> Result<Self> {
        let (b, t, width) = x.dims3()?;
        let [q, k, v, o, gate, up, down] = &layer.linears;
        let (attend, output) = (Linears::new(&[q, k, v])?, Linears::new(&[o])?);
        let (feed, down) = (Linears::new(&[gate, up])?, Linears::new(&[down])?);
        let (h, hkv) = (layer.heads, layer.kv_heads);
        let d = output.inputs() / h.max(1);
        let norms = [layer.input_norm, layer.post_norm];
        let groups = [&attend, &output, &feed, &down];
        let fits = d.is_multiple_of(2)
            && [h * d, hkv * d, hkv * d] == [0, 1, 2].map(|part| attend.outputs(part))
            && output.inputs() == h * d
            && [feed.outputs(0), feed.outputs(1)] == [down.inputs(); 2]
            && [attend.inputs(), output.outputs(0), feed.inputs(), down.outputs(0)] == [width; 4]
            && [angles.0.dims(), angles.1.dims()] == [[t, d / 2]; 2]
            && norms.iter().all(|n| n.dims() == [width] && n.dtype() == x.dtype() && !n.track_op())
            && groups.iter().all(|group| group.dtype_is(x.dtype()));
        if !fits {
            bail!("decoder layer: x {:?} {:?} does not fit the layer", x.dtype(), x.shape());
        }
        Ok(Self {
            norms: norms.map(Tensor::detach),
            eps: layer.eps,
            attend,
            output,
            feed,
            down,
            angles: angles.clone(),
            attention: Heads::new((b, t), (h, hkv, d), lengths, true)?,
            size: (h, hkv, t, d),
        })
    }

    fn norm<T: Element>(&self, which: usize, x: &[T]) -> Result<Vec<T>> {
        lent(&self.norms[which], |w| Ok(rms_rows(x, w, T::Acc::real(self.eps))))
    }

    /// Adds the gradient of a norm's input `x`, given that of its value, to `dx`.
    fn norm_gradient<T: Element>(&self, which: usize, x: &[T], g: &[T], dx: &mut [T]) -> Result<()> {
        lent(&self.norms[which], |w| {
            add_input_gradient(x, w, g, T::Acc::real(self.eps), false, dx);
            Ok(())
        })
    }

    /// Of the groups in order.
    fn updates<T: Element>(&self, mut trained: &[Tensor]) -> Result<[Updates; 4]> {
        let mut next = |group: &Linears| group.updates::<T>(&mut trained);
        Ok([next(&self.attend)?, next(&self.output)?, next(&self.feed)?, next(&self.down)?])
    }

    fn rotate<T: Element>(&self, q: &mut [T], k: &mut [T], inverse: bool) -> Result<()> {
        let (h, hkv, t, d) = self.size;
        lent(&self.angles.0, |cos| {
            lent(&self.angles.1, |sin| {
                rotate_rows(q, (h, t, d), (cos, sin), inverse);
                rotate_rows(k, (hkv, t, d), (cos, sin), inverse);
                Ok(())
            })
        })
    }
}

impl Layer for Decoder {
    type Kept<T: Element> = Kept<T>;

    fn trained(&self) -> usize {
        [&self.attend, &self.output, &self.feed, &self.down].iter().map(|group| group.trained()).sum()
    }

    fn forward<T: Element>(&self, x: &[T], trained: &[Tensor]) -> Result<(Vec<T>, Kept<T>)> {
        let updates = self.updates::<T>(trained)?;
        let normal = self.norm(0, x)?;
        let (qkv, low0) = self.attend.forward(&normal, &updates[0])?;
        let Ok([mut q, mut k, v]) = <[_; 3]>::try_from(qkv) else { bail!("queries, keys and values") };
        self.rotate(&mut q, &mut k, false)?;
        let (o, lse) = self.attention.forward([&q, &k, &v]);
        let (middle, low1) = self.output.forward(&o, &updates[1])?;
        let Ok([mut middle]) = <[_; 1]>::try_from(middle) else { bail!("one output") };
        add(&mut middle, x);

        let second_normal = self.norm(1, &middle)?;
        let (gates, low2) = self.feed.forward(&second_normal, &updates[2])?;
        let Ok([gate, up]) = <[_; 2]>::try_from(gates) else { bail!("gates and values") };
        let gated = silu_mul_of(&gate, &up);
        let (y, low3) = self.down.forward(&gated, &updates[3])?;
        let Ok([mut y]) = <[_; 1]>::try_from(y) else { bail!("one output") };
        add(&mut y, &middle);
        let lows = [low0, low1, low2, low3];
        Ok((
            y,
            Kept { normal, qkv: [q, k, v], o, lse, middle, second_normal, gate, up, gated, lows, updates },
        ))
    }

    fn backward<T: Element>(
        &self,
        x: &[T],
        kept: Kept<T>,
        mut g: Vec<T>,
        wanted: bool,
    ) -> Result<Gradients<T>> {
        let Kept { normal, qkv: [q, k, v], o, lse, middle, second_normal, gate, up, gated, lows, updates } =
            kept;

        let (low, of_down) = self.down.gradients(&gated, &lows[3], &[&g], &updates[3])?;
        let dgated = self.down.input_gradient(&[&g], &low, &updates[3])?;
        let (dgate, dup) = silu_mul_gradients(&gate, &up, &dgated);
        let (low, of_feed) = self.feed.gradients(&second_normal, &lows[2], &[&dgate, &dup], &updates[2])?;
        let dnormal = self.feed.input_gradient(&[&dgate, &dup], &low, &updates[2])?;
        // From here on `g` is the gradient of what is between the two halves, and at last that of `x`.
        self.norm_gradient(1, &middle, &dnormal, &mut g)?;

        let (low, of_output) = self.output.gradients(&o, &lows[1], &[&g], &updates[1])?;
        let d_o = self.output.input_gradient(&[&g], &low, &updates[1])?;
        let [mut dq, mut dk, dv] = self.attention.gradients([&q, &k, &v], (&o, &lse), &d_o);
        self.rotate(&mut dq, &mut dk, true)?;
        let dqkv: [&[T]; 3] = [&dq, &dk, &dv];
        let (low, of_attend) = self.attend.gradients(&normal, &lows[0], &dqkv, &updates[0])?;
        let mut dx = None;
        if wanted {
            let dnormal = self.attend.input_gradient(&dqkv, &low, &updates[0])?;
            self.norm_gradient(0, x, &dnormal, &mut g)?;
            dx = Some(g);
        }
        Ok((dx, [of_attend, of_output, of_feed, of_down].into_iter().flatten().collect()))
    }
}
