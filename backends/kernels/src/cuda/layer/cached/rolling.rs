//! A memory of a sequence's first positions, its sinks, and of a window that moves on behind them.
//!
//! All positions stand in the order of the text, each turned by its place. The sinks are put, turned anew, right ahead of the
//! oldest position that is seen, over those that are not seen any more: what is seen is then one run of places, which
//! all kernels read as they read any memory.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use candle_core::{DType, Result, Tensor, bail};

use super::super::Context;
use super::ROUND;
use crate::cuda::attention::Decode;
use crate::cuda::{Module, blocks, function, int, launch, over};
use half::bf16;

const ROLLING: Module =
    Module { name: "rolling", source: concat!(include_str!("cached.cuh"), include_str!("rolling.cu")) };

/// The memories of all layers, and copies of their first positions.
#[derive(Debug)]
pub struct Rolling {
    /// Keys and values of each layer, `[1, Hkv, room, d]`; `table` has their addresses, in turn.
    memory: Vec<(Tensor, Tensor)>,
    table: CudaSlice<u64>,
    /// Of the first positions, turned by their own places, `[layers, Hkv, sinks, d]`.
    first: (Tensor, Tensor),
    /// cos and sin of turns by up to the room's places, `[room, d / 2]`.
    turns: (Tensor, Tensor),
    heads: usize,
    sinks: usize,
    room: usize,
    d: usize,
}

/// `Rolling` of the kernel source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    addresses: [u64; 5],
    sizes: [i32; 4],
}

// SAFETY: `repr(C)`, only numbers, in the order of the struct in the kernel source.
unsafe impl DeviceRepr for Params {}

impl Rolling {
    /// Whether such memories can be moved by the kernels.
    pub fn is_supported(memory: &[(Tensor, Tensor)]) -> bool {
        let fits = |t: &Tensor| {
            t.device().is_cuda()
                && t.dtype() == DType::BF16
                && t.is_contiguous()
                && t.rank() == 4
                && t.dims()[0] == 1
                && t.dims()[3].is_multiple_of(16)
        };
        memory.iter().all(|(k, v)| fits(k) && fits(v) && k.dims() == v.dims())
    }

    /// Of memories that are all alike and the keys and values of their sinks, `[1, Hkv, sinks, d]` each, as they stood at the first
    /// places. `turns` are cos and sin of turns by the places of the room, `[room, d / 2]`, without factors.
    ///
    /// # Errors
    /// Tensors that do not fit together or are not on a GPU.
    pub fn new(
        memory: Vec<(Tensor, Tensor)>,
        sinks: &[(Tensor, Tensor)],
        turns: (&Tensor, &Tensor),
    ) -> Result<Self> {
        let (Some((like, _)), Some((first, _))) = (memory.first(), sinks.first()) else {
            bail!("a rolling memory without layers");
        };
        let ((_, heads, room, d), count) = (like.dims4()?, first.dim(2)?);
        let alike = memory.iter().all(|(k, _)| k.dims() == like.dims());
        let fits = sinks.iter().all(|(k, v)| k.dims() == [1, heads, count, d] && v.dims() == k.dims());
        let angles = [turns.0, turns.1].into_iter().all(|t| t.dims() == [room, d / 2]);
        if !(Self::is_supported(&memory) && alike && fits && angles && sinks.len() == memory.len()) {
            bail!("rolling memories {:?} with sinks {:?}, turns {:?}", like, first.shape(), turns.0.shape());
        }
        let ctx = Context::new(like.device())?;
        let mut addresses = Vec::with_capacity(2 * memory.len());
        for (keys, values) in &memory {
            addresses.extend([ctx.input::<bf16>(keys)?, ctx.input::<bf16>(values)?]);
        }
        let table = ctx.dev.clone_htod(&addresses)?;
        let all =
            |of: fn(&(Tensor, Tensor)) -> &Tensor| Tensor::cat(&sinks.iter().map(of).collect::<Vec<_>>(), 0);
        // Without sinks nothing is read there.
        let first = if count == 0 { memory[0].clone() } else { (all(|(k, _)| k)?, all(|(_, v)| v)?) };
        let angle = |t: &Tensor| t.to_dtype(DType::BF16)?.contiguous();
        let turns = (angle(turns.0)?, angle(turns.1)?);
        Ok(Self { memory, table, first, turns, heads, sinks: count, room, d })
    }

    /// Whether steps of `heads` query heads can see a window of so many positions: by the kernel for a few query rows alone, which
    /// not every GPU has for every size.
    ///
    /// # Errors
    /// A kernel that does not compile.
    pub fn takes_steps(&self, heads: usize, window: usize) -> Result<bool> {
        let ctx = Context::new(self.first.0.device())?;
        let seen = window.next_multiple_of(ROUND);
        Ok(Decode::new(&ctx.dev, self.heads, heads / self.heads, self.d, seen)?.is_some())
    }

    fn parameters(&self, ctx: &Context) -> Result<Params> {
        let inputs = [&self.first.0, &self.first.1, &self.turns.0, &self.turns.1];
        let mut addresses = [ctx.address(&self.table), 0, 0, 0, 0];
        for (to, tensor) in addresses[1..].iter_mut().zip(inputs) {
            *to = ctx.input::<bf16>(tensor)?;
        }
        Ok(Params { addresses, sizes: [int(self.heads)?, int(self.sinks)?, int(self.room)?, int(self.d)?] })
    }

    fn show_sinks(&self, lengths: u64, first: usize, window: usize) -> Result<()> {
        if self.sinks == 0 {
            return Ok(());
        }
        let ctx = Context::new(self.first.0.device())?;
        let count = self.memory.len() * self.heads * self.sinks * self.d / 16;
        let (p, first, window, n) = (self.parameters(&ctx)?, int(first)?, int(window)?, int(count)?);
        let f = function(&ctx.dev, ROLLING, "", "", "show_sinks")?;
        let mut args = f.builder();
        args.arg(&p).arg(&lengths).arg(&first).arg(&window).arg(&n);
        launch(&mut args, over(count))
    }

    /// Puts the sinks at the places from `first` on.
    ///
    /// # Errors
    /// No such places; any of the GPU.
    pub fn show(&self, first: usize) -> Result<()> {
        if first + self.sinks > self.room {
            bail!("{} sinks at place {first} of {}", self.sinks, self.room);
        }
        self.show_sinks(0, first, 0)
    }

    /// The same ahead of the last positions that fit `window` beside them, of as many as the number at an address says.
    pub(in crate::cuda::layer) fn show_behind(&self, lengths: u64, window: usize) -> Result<()> {
        self.show_sinks(lengths, 0, window)
    }

    /// Moves the `n` positions from place `from` on to the places right behind the sinks, and the sinks to the first ones.
    ///
    /// # Errors
    /// No such places; any of the GPU.
    pub fn move_back(&self, from: usize, n: usize) -> Result<()> {
        if from < self.sinks || from + n > self.room {
            bail!("{n} positions from place {from} of {} to place {}", self.room, self.sinks);
        }
        let ctx = Context::new(self.first.0.device())?;
        let (p, from, to, n) = (self.parameters(&ctx)?, int(from)?, int(self.sinks)?, int(n)?);
        let f = function(&ctx.dev, ROLLING, "", "", "move_back")?;
        let mut args = f.builder();
        args.arg(&p).arg(&from).arg(&to).arg(&n);
        launch(&mut args, blocks(2 * self.memory.len() * self.heads, 256))?;
        self.show(0)
    }
}
