//! Reading a prompt, block by block.

use crate::llama::Asked;
use crate::{Llama, LmError, Memory, Result};
use candle_core::Tensor;

/// Positions read at once: enough for full speed, little enough that an 8k prompt needs no more memory than its
/// cache and one block.
pub const PREFILL_BLOCK: usize = 512;

/// The same on a GPU: enough tiles of a product for all of its processors.
const ON_GPU: usize = 1024;

/// A part of a prompt.
#[derive(Debug, Clone)]
pub enum Segment {
    /// Token ids.
    Ids(Vec<u32>),
    /// Embeddings `[n, D]`, e.g. soft tokens.
    Embeds(Tensor),
}

impl Segment {
    /// Positions it takes.
    pub fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Embeds(embeds) => embeds.dims().first().copied().unwrap_or(0),
        }
    }

    /// Whether it takes no position.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Embeddings `[1, n, D]` of the positions from `start` on.
    pub(crate) fn embed(&self, llama: &Llama, start: usize, n: usize) -> candle_core::Result<Tensor> {
        match self {
            Self::Ids(ids) => llama.embed(&ids[start..start + n]),
            Self::Embeds(embeds) => {
                embeds.narrow(0, start, n)?.to_device(llama.device())?.to_dtype(llama.dtype())?.unsqueeze(0)
            }
        }
    }
}

/// Positions of a prompt.
pub fn prompt_len(prompt: &[Segment]) -> usize {
    prompt.iter().map(Segment::len).sum()
}

/// Reads a prompt behind what `memory` holds and returns the last position's hidden state `[1, 1, D]`.
///
/// Nothing but the last position's state leaves a block, so logits are only ever computed for one position, and where nothing
/// but keys and values of the others is seen later, that is all that the last layer makes of them. `cancelled` is asked
/// before every block.
///
/// # Errors
/// An empty prompt, ids beyond the vocabulary, embeddings of another width; [`LmError::Cancelled`].
pub fn prefill(
    llama: &Llama,
    prompt: &[Segment],
    memory: &mut dyn Memory,
    cancelled: &dyn Fn() -> bool,
) -> Result<Tensor> {
    let mut last = None;
    blocks(llama, prompt, memory, cancelled, |block, memory, is_last| {
        let asked = if is_last { Asked::Last } else { Asked::Nothing };
        last = Some(llama.read(block, memory, asked)?);
        Ok(())
    })?;
    memory.prompt_read()?;
    last.ok_or_else(|| LmError::Input("the prompt is empty".to_owned()))
}

/// Reads a prompt and hands every block's hidden states `[1, T, D]` to `each`.
pub(crate) fn read_blocks(
    llama: &Llama,
    prompt: &[Segment],
    memory: &mut dyn Memory,
    cancelled: &dyn Fn() -> bool,
    mut each: impl FnMut(&Tensor) -> candle_core::Result<()>,
) -> Result<()> {
    blocks(llama, prompt, memory, cancelled, |block, memory, _| {
        each(&llama.read(block, memory, Asked::All)?)
    })
}

/// Hands a prompt's embeddings to `read`, block by block, with whether it is the last.
fn blocks(
    llama: &Llama,
    prompt: &[Segment],
    memory: &mut dyn Memory,
    cancelled: &dyn Fn() -> bool,
    mut read: impl FnMut(&Tensor, &mut dyn Memory, bool) -> candle_core::Result<()>,
) -> Result<()> {
    let most = if llama.device().is_cpu() { PREFILL_BLOCK } else { ON_GPU };
    let mut size = memory.block().clamp(1, most);
    let mut parts = Vec::new();
    let mut filled = 0;
    let total = prompt_len(prompt);
    let mut taken = 0;
    for segment in prompt {
        let mut start = 0;
        while start < segment.len() {
            let n = (segment.len() - start).min(size - filled);
            parts.push(segment.embed(llama, start, n)?);
            (start, filled, taken) = (start + n, filled + n, taken + n);
            if filled == size || taken == total {
                if cancelled() {
                    return Err(LmError::Cancelled);
                }
                let block = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 1)? };
                read(&block, &mut *memory, taken == total)?;
                parts.clear();
                (filled, size) = (0, memory.block().clamp(1, most));
            }
        }
    }
    Ok(())
}
