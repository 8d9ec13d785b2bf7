//! What a decoder remembers of the positions it has read.

use crate::{CrossKeys, KvCache, RollingCache, Rope};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Queries, keys and values of some positions in one layer, not yet rotated.
#[derive(Debug, Clone)]
pub struct Heads {
    /// `[B, H, T, d]`.
    pub q: Tensor,
    /// `[B, Hkv, T, d]`.
    pub k: Tensor,
    /// `[B, Hkv, T, d]`.
    pub v: Tensor,
}

impl Heads {
    /// Positions.
    ///
    /// # Errors
    /// Tensors of another rank.
    pub fn positions(&self) -> Result<usize> {
        Ok(self.q.dims4()?.2)
    }

    /// What scores are multiplied by: `1 / sqrt(d)`.
    ///
    /// # Errors
    /// Tensors of another rank.
    pub fn scale(&self) -> Result<f64> {
        Ok(1.0 / (self.q.dims4()?.3 as f64).sqrt())
    }
}

/// What a decoder remembers of the positions it has read, and how later ones attend to it.
///
/// A method that drops, moves or merges what was read is one of these; the forward pass is the same for all. For every
/// block of positions each layer calls [`Memory::attend`] once, in order, then [`Memory::advance`] is called once. Where there is
/// [`Memory::behind`], keys and values may be written there instead, and a block's last position may be read apart.
pub trait Memory: Send {
    /// Positions read so far, those that were forgotten included.
    fn offset(&self) -> usize;

    /// Positions that may be read at once, from here on; where it does not matter, more than are ever read.
    fn block(&self) -> usize {
        usize::MAX
    }

    /// Takes in the keys and values of the next positions and returns what their queries see: `[B, H, T, d]`.
    ///
    /// # Errors
    /// Failing tensor operations.
    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor>;

    /// What the layers' cross-attention reads, where there is something.
    fn cross(&self) -> Option<Arc<Vec<CrossKeys>>> {
        None
    }

    /// Counts `t` positions as read, once every layer has them.
    fn advance(&mut self, t: usize);

    /// Called once, between the prompt's last position and the answer's first.
    ///
    /// # Errors
    /// Failing tensor operations.
    fn prompt_read(&mut self) -> Result<()> {
        Ok(())
    }

    /// What holds everything, where the next positions are only written behind what is held and see all of it: a GPU then
    /// writes and reads it within whole layers, without [`Memory::attend`]. They are turned by their place in the text
    /// ([`Memory::offset`]), which may be beyond what is held. It holds for [`Memory::block`] positions.
    fn behind(&mut self) -> Option<&mut KvCache> {
        None
    }

    /// As [`Memory::behind`], of a memory that rolls.
    fn rolling(&mut self) -> Option<&mut RollingCache> {
        None
    }

    /// A memory that goes on from here and leaves this one as it is, as long as only one of the two is written.
    ///
    /// # Errors
    /// Failing tensor operations.
    fn fork(&self) -> Result<Box<dyn Memory>>;
}
