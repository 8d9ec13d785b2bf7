//! Attention of the positions of whole layers, whose heads stand side by side.

use candle_core::{Result, bail};

use super::{Rows, Size, Visible, backward, forward};
use crate::element::{Element, Real};
use crate::profile::{Kind, timer};

/// How positions `[B, T, H * d]` attend to each other.
pub(crate) struct Heads {
    size: Size,
    visible: Visible,
    scale: f64,
}

impl Heads {
    /// `h` query heads and `hkv` key and value heads, `d` wide, of `b` rows of `t` positions, of which those within `lengths` are
    /// seen, and if `causal` those up to the position itself.
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub(crate) fn new(
        (b, t): (usize, usize),
        (h, hkv, d): (usize, usize, usize),
        lengths: Option<Vec<usize>>,
        causal: bool,
    ) -> Result<Self> {
        let lengths = lengths.unwrap_or_else(|| vec![t; b]);
        if lengths.len() != b || hkv == 0 || h % hkv != 0 {
            bail!("attention: {} lengths for a batch of {b}, {h} heads and {hkv} of keys", lengths.len());
        }
        let lengths = lengths.into_iter().map(|n| n.min(t)).collect();
        let size = Size { b, h, hkv, tq: t, tk: t, d };
        Ok(Self {
            size,
            visible: Visible { lengths, offset: causal.then_some(0) },
            scale: 1. / (d as f64).sqrt(),
        })
    }

    fn queries<'a, T>(&self, data: &'a [T]) -> Rows<'a, T> {
        let Size { h, tq, d, .. } = self.size;
        Rows { data, stride: [tq * h * d, d, h * d], d }
    }

    fn keys<'a, T>(&self, data: &'a [T]) -> Rows<'a, T> {
        let Size { hkv, tk, d, .. } = self.size;
        Rows { data, stride: [tk * hkv * d, d, hkv * d], d }
    }

    /// The result `[B, T, H * d]` for queries, keys and values, and the logarithms of the sums of exponentials, for
    /// [`Heads::gradients`].
    pub(crate) fn forward<T: Element>(&self, [q, k, v]: [&[T]; 3]) -> (Vec<T>, Vec<T::Acc>) {
        let _timer = timer(Kind::Attention);
        let inputs = [self.queries(q), self.keys(k), self.keys(v)];
        let (o, lse) = forward::run(self.size, &self.visible, T::Acc::real(self.scale), inputs, true);
        (o, lse.unwrap_or_default())
    }

    /// Gradients of queries, keys and values, given the result and its gradient `g`.
    pub(crate) fn gradients<T: Element>(
        &self,
        [q, k, v]: [&[T]; 3],
        (o, lse): (&[T], &[T::Acc]),
        g: &[T],
    ) -> [Vec<T>; 3] {
        let _timer = timer(Kind::Attention);
        let inputs = backward::Inputs {
            q: self.queries(q),
            k: self.keys(k),
            v: self.keys(v),
            o: self.queries(o),
            g: self.queries(g),
            lse,
        };
        let (dq, dk, dv) = backward::run(self.size, &self.visible, T::Acc::real(self.scale), inputs);
        [dq, dk, dv]
    }
}
