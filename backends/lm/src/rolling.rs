//! Keys and values of a text's first positions and of its latest ones (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).

use crate::{Heads, Memory, PREFILL_BLOCK, Rope};
use candle_core::{Result, Tensor, bail};
use e2llm_kernels::Mask;
#[cfg(feature = "cuda")]
use e2llm_kernels::{Positions, Rolling};
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// A memory of the first `sinks` positions and the latest `recent` ones, in which no distance is beyond their number.
///
/// The latest ones stand in the order of the text, each turned by its place. The sinks are put right ahead of the oldest one that
/// is seen, turned anew, over those that are not seen any more: all that is seen is one run of places. Where the room
/// ends the run is moved to its beginning and its keys are turned back, each key twice at most.
#[derive(Debug, Clone)]
pub struct RollingCache {
    sinks: usize,
    recent: usize,
    /// Positions the sequence is expected to have; 0 where that is not known.
    expected: usize,
    /// Positions that decide the angles, once there are more than expected.
    frequencies: usize,
    layers: Vec<Option<(Tensor, Tensor)>>,
    /// The sinks as they were read, layer by layer; empty as long as nothing was forgotten.
    first_ones: Vec<(Tensor, Tensor)>,
    /// Place of the first position that is seen, and of the next one.
    first: usize,
    next: usize,
    read: usize,
    #[cfg(feature = "cuda")]
    gpu: Option<Arc<Rolling>>,
}

impl RollingCache {
    /// A memory of `sinks + recent` positions, `recent` being at least 1, for a sequence that will have about `expected` (0:
    /// unknown).
    pub fn new(sinks: usize, recent: usize, expected: usize) -> Self {
        Self {
            sinks,
            recent,
            expected,
            frequencies: 0,
            layers: Vec::new(),
            first_ones: Vec::new(),
            first: 0,
            next: 0,
            read: 0,
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }

    /// Positions seen at most.
    fn window(&self) -> usize {
        self.sinks + self.recent
    }

    /// Places: half as many beyond the window as are recent, so that it rarely moves; those that are expected, where the window
    /// holds them.
    fn room(&self) -> usize {
        let fits = (1..=self.window()).contains(&self.expected);
        if fits { self.expected } else { self.window() + (self.recent / 2).max(self.block()) }
    }

    /// Positions that decide the frequencies of angles.
    fn sequence(&self) -> usize {
        match (self.frequencies, self.expected) {
            (0, 0) => self.window(),
            (0, expected) => expected.min(self.window()),
            (known, _) => known,
        }
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        let tensors = self.layers.iter().flatten().chain(&self.first_ones).flat_map(|(k, v)| [k, v]);
        tensors.map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum()
    }

    /// A layer's keys and values, `[1, Hkv, room, d]`, whose element type and device are those of `like`.
    pub(crate) fn reserve(
        &mut self,
        layer: usize,
        (batch, heads, t, d): (usize, usize, usize, usize),
        like: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        if t > self.recent {
            bail!("{t} positions at once into a rolling memory of {}", self.recent);
        }
        if self.layers.len() <= layer {
            self.layers.resize(layer + 1, None);
        }
        let room = self.room();
        let slot = &mut self.layers[layer];
        if slot.is_none() {
            let new = || Tensor::zeros((batch, heads, room, d), like.dtype(), like.device());
            *slot = Some((new()?, new()?));
        }
        let Some((keys, values)) = slot else { bail!("no room for keys and values") };
        Ok((keys.clone(), values.clone()))
    }

    /// Makes the room for a sequence that has become longer than expected.
    fn grow(&mut self) -> Result<()> {
        // The angles stay those of the sequence that was expected.
        self.frequencies = self.sequence();
        self.expected = 0;
        let room = self.room();
        for (keys, values) in self.layers.iter_mut().flatten() {
            for tensor in [keys, values] {
                let (batch, heads, _, d) = tensor.dims4()?;
                let larger = Tensor::zeros((batch, heads, room, d), tensor.dtype(), tensor.device())?;
                larger.slice_set(&tensor.narrow(2, 0, self.next)?.force_contiguous()?, 2, 0)?;
                *tensor = larger;
            }
        }
        Ok(())
    }

    fn all(&self) -> Result<Vec<(Tensor, Tensor)>> {
        let layers = self.layers.iter().cloned().collect::<Option<Vec<_>>>();
        layers.ok_or_else(|| candle_core::Error::Msg("a layer has read nothing".into()))
    }

    /// Keeps the sinks as they are, before anything is forgotten.
    fn keep_sinks(&mut self) -> Result<()> {
        if self.first_ones.is_empty() {
            let sinks = |t: &Tensor| {
                let sinks = t.narrow(2, 0, self.sinks)?;
                if self.sinks == 0 { Ok(sinks) } else { sinks.force_contiguous() }
            };
            let all = self.all()?;
            self.first_ones = all.iter().map(|(k, v)| Ok((sinks(k)?, sinks(v)?))).collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// Makes room for the next `t` positions, so that with them no more are seen than the window has.
    fn make_room(&mut self, t: usize, rope: &Rope) -> Result<()> {
        if self.next + t > self.room() && self.room() <= self.window() {
            self.grow()?;
        }
        let gone = (self.next - self.first + t).saturating_sub(self.window());
        let is_full = self.next + t > self.room();
        if gone == 0 && !is_full {
            return Ok(());
        }
        self.keep_sinks()?;
        if is_full { self.move_back(gone, rope) } else { self.show_sinks(self.first + gone, rope) }
    }

    /// Moves what is seen to the beginning of the room, without the oldest `gone`.
    fn move_back(&mut self, gone: usize, rope: &Rope) -> Result<()> {
        let from = self.first + self.sinks + gone;
        let n = self.next - from;
        self.next = self.sinks + n;
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.on_gpu(rope)? {
            self.first = 0;
            return gpu.move_back(from, n);
        }
        if n > 0 {
            let (cos, sin) = turn(rope, from - self.sinks, n, self.sequence())?;
            let back = sin.neg()?;
            for (keys, values) in self.all()? {
                let k = e2llm_kernels::rope(&keys.narrow(2, from, n)?, &cos, &back)?;
                keys.slice_set(&k.contiguous()?, 2, self.sinks)?;
                values.slice_set(&values.narrow(2, from, n)?.force_contiguous()?, 2, self.sinks)?;
            }
        }
        self.show_sinks(0, rope)
    }

    /// What is seen begins at place `first`, with the sinks.
    fn show_sinks(&mut self, first: usize, rope: &Rope) -> Result<()> {
        self.first = first;
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.on_gpu(rope)? {
            return gpu.show(first);
        }
        if self.sinks == 0 {
            return Ok(());
        }
        let (cos, sin) = turn(rope, first, self.sinks, self.sequence())?;
        for ((keys, values), (k, v)) in self.all()?.iter().zip(&self.first_ones) {
            keys.slice_set(&e2llm_kernels::rope(k, &cos, &sin)?.contiguous()?, 2, first)?;
            values.slice_set(v, 2, first)?;
        }
        Ok(())
    }
}

/// The turn by `places` places, for each of `n` positions.
fn turn(rope: &Rope, places: usize, n: usize, sequence: usize) -> Result<(Tensor, Tensor)> {
    let (cos, sin) = rope.turns(places, 1, sequence)?;
    let each = |t: &Tensor| t.broadcast_as((n, t.dim(1)?))?.contiguous();
    Ok((each(&cos)?, each(&sin)?))
}

impl Memory for RollingCache {
    fn offset(&self) -> usize {
        self.read
    }

    fn block(&self) -> usize {
        (self.recent / 4).clamp(1, PREFILL_BLOCK)
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        let t = heads.positions()?;
        if layer == 0 {
            self.make_room(t, rope)?;
        }
        let (cos, sin) = rope.places(self.next, t, self.sequence())?;
        let q = e2llm_kernels::rope(&heads.q, &cos, &sin)?;
        let k = e2llm_kernels::rope(&heads.k, &cos, &sin)?;
        let (keys, values) = self.reserve(layer, heads.k.dims4()?, &heads.k)?;
        keys.slice_set(&k.contiguous()?, 2, self.next)?;
        values.slice_set(&heads.v.contiguous()?, 2, self.next)?;
        let held = self.next - self.first;
        let seen = |t: &Tensor, new: usize| t.narrow(2, self.first, held + new);
        let mask = Mask::Causal { offset: held };
        e2llm_kernels::attention(&q, &seen(&keys, t)?, &seen(&values, t)?, mask, heads.scale()?)
    }

    fn advance(&mut self, t: usize) {
        self.next += t;
        self.read += t;
        // A GPU's steps have moved what is seen by themselves.
        self.first = self.first.max(self.next.saturating_sub(self.window()));
    }

    fn rolling(&mut self) -> Option<&mut RollingCache> {
        Some(self)
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        // What is written overwrites what is kept, so a fork needs tensors of its own.
        let copy = |slot: &Option<(Tensor, Tensor)>| -> Result<_> {
            slot.as_ref().map(|(k, v)| Ok((k.copy()?, v.copy()?))).transpose()
        };
        let layers = self.layers.iter().map(copy).collect::<Result<_>>()?;
        #[cfg(feature = "cuda")]
        return Ok(Box::new(Self { layers, gpu: None, ..self.clone() }));
        #[cfg(not(feature = "cuda"))]
        Ok(Box::new(Self { layers, ..self.clone() }))
    }
}

/// For a GPU's whole layers.
#[cfg(feature = "cuda")]
impl RollingCache {
    /// The kernels for this memory, where it is one that they can move.
    fn on_gpu(&mut self, rope: &Rope) -> Result<Option<Arc<Rolling>>> {
        if self.gpu.is_none() {
            let memory = self.all()?;
            if !Rolling::is_supported(&memory) {
                return Ok(None);
            }
            let (cos, sin) = rope.turns(0, self.room(), self.sequence())?;
            self.gpu = Some(Arc::new(Rolling::new(memory, &self.first_ones, (&cos, &sin))?));
        }
        Ok(self.gpu.clone())
    }

    /// Makes room for `t` positions, and says where they stand and what they are turned by.
    pub(crate) fn begin(&mut self, t: usize, rope: &Rope) -> Result<(Positions<'static>, (Tensor, Tensor))> {
        self.make_room(t, rope)?;
        let angles = rope.places(self.next, t, self.sequence())?;
        Ok((Positions::Beyond { first: self.first, offset: self.next - self.first }, angles))
    }

    /// Makes room for up to `most` positions that are read one by one.
    pub(crate) fn begin_steps(&mut self, most: usize, rope: &Rope) -> Result<Option<Steps>> {
        if self.next < self.sinks.max(1) {
            return Ok(None);
        }
        if self.next + most > self.room() && self.room() <= self.window() {
            self.grow()?;
        }
        let steps = most.min((self.recent / 2).max(1));
        if self.next + steps > self.window() {
            self.keep_sinks()?;
        }
        if self.next + steps > self.room() {
            let gone = (self.next - self.first + 1).saturating_sub(self.window());
            self.move_back(gone, rope)?;
        }
        let rolling = match self.next + steps > self.window() {
            true => match self.on_gpu(rope)? {
                Some(gpu) => Some((gpu, self.window())),
                None => return Ok(None),
            },
            false => None,
        };
        let end = (self.next + steps).min(self.room());
        let angles = rope.places(0, self.room(), self.sequence())?;
        Ok(Some(Steps { memory: self.all()?, next: self.next, end, angles, rolling }))
    }
}

/// Where a GPU writes positions one by one.
#[cfg(feature = "cuda")]
pub(crate) struct Steps {
    /// Keys and values of each layer.
    pub(crate) memory: Vec<(Tensor, Tensor)>,
    /// Place of the next position, and up to which there may be others.
    pub(crate) next: usize,
    pub(crate) end: usize,
    /// cos and sin of all places.
    pub(crate) angles: (Tensor, Tensor),
    /// What moves what is seen, and how many positions that are at most, where they become more.
    pub(crate) rolling: Option<(Arc<Rolling>, usize)>,
}
