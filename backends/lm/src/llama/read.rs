//! Reading positions behind remembered ones.

use super::Llama;
use super::layer::{Attend, rms_norm};
use crate::Memory;
use candle_core::{Result, Tensor};

/// The positions of a block whose states somebody asks for. The others go no further than to the last layer's keys and values,
/// which is all that later positions see of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    All,
    Last,
    Nothing,
}

impl Asked {
    /// How many there are at the beginning of `t` positions that nobody asks for.
    pub(crate) fn ahead(self, t: usize) -> usize {
        match self {
            Self::All => 0,
            Self::Last => t.saturating_sub(1),
            Self::Nothing => t,
        }
    }

    /// What is asked for of the states of all positions, `[1, T, D]`.
    pub(crate) fn of(self, states: Tensor) -> Result<Tensor> {
        let t = states.dim(1)?;
        match self.ahead(t) {
            0 => Ok(states),
            ahead => states.narrow(1, ahead, t - ahead)?.contiguous(),
        }
    }
}

impl Llama {
    /// Last hidden states `[1, n, D]`, normalised, of the `n` positions of `x` (`[1, T, D]`) that are asked for; `memory`, behind
    /// which they are read, has all of them then.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(crate) fn read(&self, x: &Tensor, memory: &mut dyn Memory, asked: Asked) -> Result<Tensor> {
        self.check_unshifted()?;
        e2llm_kernels::on_workers(&self.device, || {
            #[cfg(feature = "cuda")]
            if let Some(states) = crate::whole_layers::read(x, self, memory, asked)? {
                return Ok(states);
            }
            self.read_layer_by_layer(x, memory, asked)
        })
    }

    fn read_layer_by_layer(&self, x: &Tensor, memory: &mut dyn Memory, asked: Asked) -> Result<Tensor> {
        let Some((last, before)) = self.layers.split_last() else {
            candle_core::bail!("a decoder without layers")
        };
        let mut x = x.clone();
        for (i, layer) in before.iter().enumerate() {
            let attend = Attend::Through { memory: &mut *memory, layer: i, rope: &self.rope };
            x = layer.forward(&x, attend, None)?;
        }
        let (t, offset, i) = (x.dim(1)?, memory.offset(), before.len());
        let (ahead, mut asked) = (asked.ahead(t), asked);
        if ahead > 0
            && let Some(cache) = memory.behind()
        {
            let (cos, sin) = self.rope.tables(offset, t, cache.expected())?;
            let (cos, sin) = (cos.narrow(0, 0, ahead)?, sin.narrow(0, 0, ahead)?);
            last.remember(&x.narrow(1, 0, ahead)?.contiguous()?, (&cos, &sin), cache, i)?;
            memory.advance(ahead);
            x = x.narrow(1, ahead, t - ahead)?.contiguous()?;
            if ahead == t {
                return Ok(x);
            }
            asked = Asked::All;
        }
        let attend = Attend::Through { memory: &mut *memory, layer: i, rope: &self.rope };
        x = last.forward(&x, attend, None)?;
        memory.advance(x.dim(1)?);
        asked.of(rms_norm(&x, &self.norm, self.config.rms_norm_eps)?)
    }
}
