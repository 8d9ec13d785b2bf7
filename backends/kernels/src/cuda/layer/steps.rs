//! Greedy decoding without the host: a step of some sequences is one graph of all its kernels, and the next one reads the
//! tokens that this one has chosen on the GPU.

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::sys as cublas;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaSlice, PinnedHostSlice, PushKernelArg, sys};
use candle_core::{DType, Error, Result, Tensor, bail};
use half::bf16;

use super::cached::{CACHED, CachedLayer, CachedPass, Plain, ROUND, Rolling, Standing, norm_rows};
use super::choice::{self, Choice};
use super::{Buffer, Context, PACK};
use crate::cuda::{Early, alloc, blocks, function, int, launch, tensor};

/// Steps that may be queued ahead of the last one whose tokens were read.
const RING: usize = 16;
/// Bytes that cuBLAS works in while its products are part of a graph: what it takes on such GPUs by itself.
const WORKSPACE: usize = 32 << 20;

/// A decoder as greedy steps read it, in bf16.
#[derive(Clone, Debug)]
pub struct StepModel<'a> {
    /// Embeddings of the tokens, `[V, D]`.
    pub embed: &'a Tensor,
    /// All layers.
    pub layers: Vec<CachedLayer<'a>>,
    /// Weight `[D]` and epsilon of the norm behind them.
    pub norm: (&'a Tensor, f64),
    /// The output layer.
    pub head: Plain<'a>,
    /// cos and sin of all positions there may be, `[positions, d / 2]`.
    pub angles: (Tensor, Tensor),
    /// Size of a head.
    pub head_dim: usize,
}

/// Sequences that are continued with the likeliest token, a step for all of them at once.
pub struct GreedySteps<'a> {
    model: StepModel<'a>,
    /// Keys and values of each layer, `[B, Hkv, room, d]`.
    memory: Vec<(Tensor, Tensor)>,
    rows: usize,
    longest: usize,
    pass: CachedPass,
    choice: Choice,
    normal: Buffer,
    /// cos and sin of all positions, bf16.
    angles: (Tensor, Tensor),
    tokens: CudaSlice<u32>,
    lengths: CudaSlice<u32>,
    best: CudaSlice<u64>,
    step: CudaSlice<u32>,
    /// Where steps leave their tokens, `[RING, B]`; see `step_end` in the kernel source.
    out: PinnedHostSlice<u64>,
    /// Whose first positions stay in sight, and how many positions are.
    rolling: Option<(Arc<Rolling>, usize)>,
    graph: Option<CudaGraph>,
    launched: usize,
    read: usize,
    /// Of cuBLAS, where it makes products.
    workspace: Option<CudaSlice<u8>>,
}

impl<'a> GreedySteps<'a> {
    /// Positions that a graph holds for beyond those there are, at most.
    pub const ROUND: usize = ROUND;

    /// Whether a decoder can be read this way, whose activations are like `like`.
    pub fn is_supported(like: &Tensor, model: &StepModel<'_>) -> bool {
        let table = |t: &Tensor| t.device().is_cuda() && t.is_contiguous() && !t.track_op();
        let width = model.embed.dims().last().copied().unwrap_or(0);
        model.embed.rank() == 2
            && model.embed.dtype() == DType::BF16
            && table(model.embed)
            && width % PACK == 0
            && table(&model.angles.0)
            && table(&model.angles.1)
            && choice::is_supported(model.embed, &model.head)
            && model.layers.iter().all(|l| CachedPass::is_supported(like, model.head_dim, l))
    }

    /// Continues sequences of `lengths` positions in `memory`, of each of which the token of `tokens` is to be read next, as
    /// long as none of them has more than `longest`. Nothing is queued yet. Where the memory is a rolling one, of one sequence,
    /// each position sees as many positions at most as are given with it, its sinks first.
    ///
    /// # Errors
    /// Tensors that do not fit together or are not on a GPU.
    pub fn new(
        model: StepModel<'a>,
        memory: Vec<(Tensor, Tensor)>,
        tokens: &[u32],
        lengths: &[usize],
        longest: usize,
        rolling: Option<(Arc<Rolling>, usize)>,
    ) -> Result<Self> {
        let (v, width) = model.embed.dims2()?;
        let (rows, positions) = (tokens.len(), model.angles.0.dim(0)?);
        let Some(first) = model.layers.first() else { bail!("a decoder without layers") };
        let rooms = memory.iter().map(|(k, _)| k.dim(2)).collect::<Result<Vec<_>>>()?;
        let room = rooms.into_iter().min().unwrap_or(0);
        if rows == 0
            || lengths.len() != rows
            || memory.len() != model.layers.len()
            || longest > room.min(positions)
            || lengths.iter().any(|&n| n >= longest)
        {
            bail!("{rows} sequences of up to {longest} positions in room for {room}, angles of {positions}");
        }
        if let Some(token) = tokens.iter().find(|token| **token as usize >= v) {
            bail!("token {token} is beyond the vocabulary of {v}");
        }
        let ctx = Context::new(model.embed.device())?;
        let like = Tensor::zeros((1, PACK), DType::BF16, model.embed.device())?;
        if !Self::is_supported(&like, &model) || model.head.weight.dim(0)? != v {
            bail!("a decoder whose steps are not made for the gpu");
        }
        let angle = |t: &Tensor| t.to_dtype(DType::BF16)?.contiguous();
        let angles = (angle(&model.angles.0)?, angle(&model.angles.1)?);
        let half = model.head_dim / 2;
        let row_angles = || -> Result<Tensor> {
            Ok(tensor(alloc::<bf16>(&ctx.dev, rows * half)?, (rows, half), &ctx.dev))
        };
        let counted: Vec<u32> = lengths.iter().map(|n| *n as u32 + 1).collect();
        let lengths = ctx.dev.clone_htod(&counted)?;
        let tokens = ctx.dev.clone_htod(tokens)?;
        let window = rolling.as_ref().map_or(0, |(_, window)| *window);
        if window > 0 && rows > 1 {
            bail!("{rows} sequences in rolling memories");
        }
        let address = ctx.address(&lengths);
        let standing = Standing { sequences: rows, longest, first: 0, offset: 0, window, lengths: address };
        let (x, normal) = (ctx.buffer(rows, width)?, ctx.buffer(rows, width)?);
        let own_angles = (row_angles()?, row_angles()?);
        let (best, step) = (alloc::<u64>(&ctx.dev, rows)?, ctx.dev.alloc_zeros::<u32>(1)?);
        let choice = Choice::new(&ctx, (rows, width), v)?;
        // SAFETY: every entry is written here before it is read.
        let mut out = unsafe { ctx.stream.context().alloc_pinned_with_flags::<u64>(RING * rows, 0) }.w()?;
        out.as_mut_slice().w()?.fill(0);
        let dev = ctx.dev.clone();
        let pass = CachedPass::of(ctx, x, model.head_dim, first, own_angles, (standing, &[]))?;
        let library = pass.uses_library() || choice.uses_library();
        let workspace = if library { Some(alloc::<u8>(&dev, WORKSPACE)?) } else { None };
        Ok(Self {
            model,
            memory,
            rows,
            longest,
            pass,
            choice,
            normal,
            angles,
            tokens,
            lengths,
            best,
            step,
            out,
            rolling,
            graph: None,
            launched: 0,
            read: 0,
            workspace,
        })
    }

    /// Positions that no sequence may go beyond.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Steps queued so far.
    pub fn launched(&self) -> usize {
        self.launched
    }

    /// Steps queued whose tokens have not been read.
    pub fn pending(&self) -> usize {
        self.launched - self.read
    }

    /// Queues a step. The first one goes to the stream as it is, which loads all it needs; then the graph is made.
    ///
    /// # Errors
    /// More steps than the host has room for; any of the GPU.
    pub fn launch(&mut self) -> Result<()> {
        if self.pending() == RING {
            bail!("{RING} steps are waiting to be read");
        }
        match &self.graph {
            Some(graph) => graph.launch().w()?,
            None => self.enqueue()?,
        }
        self.launched += 1;
        Ok(())
    }

    /// Makes the graph of the steps to come, after a first one.
    ///
    /// # Errors
    /// A stream or driver that cannot record its work; steps can still be queued then, kernel by kernel.
    pub fn record(&mut self) -> Result<()> {
        let stream = self.pass.context().stream.clone();
        let blas = *self.pass.context().blas.handle();
        if let Some(workspace) = &self.workspace {
            let address = self.pass.context().address(workspace) as *mut std::ffi::c_void;
            // SAFETY: the workspace lives as long as the graph, and the handle gets its own one back below.
            unsafe { cublas::cublasSetWorkspace_v2(blas, address, WORKSPACE) }
                .result()
                .map_err(Error::wrap)?;
        }
        let graph = self.capture();
        if self.workspace.is_some() {
            // SAFETY: the stream is that of the handle; setting it takes the workspace away.
            let reset = unsafe { cublas::cublasSetStream_v2(blas, stream.cu_stream() as _) };
            reset.result().map_err(Error::wrap)?;
        }
        match graph? {
            Some(graph) => self.graph = Some(graph),
            None => bail!("the graph of a step is empty"),
        }
        Ok(())
    }

    fn capture(&self) -> Result<Option<CudaGraph>> {
        let stream = &self.pass.context().stream;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).w()?;
        let queued = self.enqueue();
        // Ended in any case, or nothing could be queued any more.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).w();
        queued.and(graph)
    }

    /// Waits for the oldest step that has not been read, and returns its tokens: none where a logit is not finite.
    ///
    /// # Errors
    /// No step is queued; what went wrong on the GPU.
    pub fn tokens(&mut self) -> Result<Vec<Option<u32>>> {
        if self.pending() == 0 {
            bail!("no step is queued");
        }
        let (entry, number) = (self.read % RING * self.rows, self.read as u64 + 1);
        let out = self.out.as_ptr().w()?;
        let mut tokens = Vec::with_capacity(self.rows);
        for row in 0..self.rows {
            let mut turns = 0u32;
            loop {
                // SAFETY: inside the allocation, which the GPU writes and nothing else; an entry is written at once.
                let value = unsafe { out.add(entry + row).read_volatile() };
                if value >> 32 == number {
                    let token = value as u32;
                    tokens.push((token != u32::MAX).then_some(token));
                    break;
                }
                turns += 1;
                if turns.is_multiple_of(1 << 14) {
                    self.check(out, entry + row, number)?;
                }
                std::hint::spin_loop();
            }
        }
        self.read += 1;
        Ok(tokens)
    }

    /// Fails if the GPU has, or has done all its work without writing an entry.
    fn check(&self, out: *const u64, entry: usize, number: u64) -> Result<()> {
        let stream = &self.pass.context().stream;
        // SAFETY: the stream lives.
        match unsafe { sys::cuStreamQuery(stream.cu_stream()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            sys::CUresult::CUDA_SUCCESS => {
                // SAFETY: as in `tokens`.
                if unsafe { out.add(entry).read_volatile() } >> 32 != number {
                    bail!("the gpu has ended a step without its tokens");
                }
                Ok(())
            }
            error => error.result().w(),
        }
    }

    /// Behind the steps queued so far, `token` is the next one of a sequence that takes the place of another one; its length is
    /// to be told by [`GreedySteps::keep`] ahead of the next step.
    ///
    /// # Errors
    /// No such place or token; any of the GPU.
    pub fn put(&mut self, row: usize, token: u32) -> Result<()> {
        let v = self.model.embed.dim(0)?;
        if row >= self.rows || token as usize >= v {
            bail!("token {token} of {v} in place {row} of {}", self.rows);
        }
        let ctx = self.pass.context();
        ctx.dev.memcpy_htod(&[token], &mut self.tokens.slice_mut(row..row + 1))
    }

    /// Takes sequences out of the way that have ended: behind the steps queued so far, those whose flag is set have these
    /// lengths, the others one position, and what is written for them means nothing.
    ///
    /// # Errors
    /// Flags for another number of sequences, lengths that leave no room; any of the GPU.
    pub fn keep(&mut self, rows: &[bool], lengths: &[usize]) -> Result<()> {
        if rows.len() != self.rows || lengths.len() != self.rows {
            bail!("{} flags for {} sequences", rows.len(), self.rows);
        }
        if let Some((_, n)) = rows.iter().zip(lengths).find(|&(&kept, &n)| kept && n > self.longest) {
            bail!("a sequence of {n} positions in steps of up to {}", self.longest);
        }
        let next = rows.iter().zip(lengths).map(|(&kept, &n)| if kept { n as u32 + 1 } else { 1 });
        let next: Vec<u32> = next.collect();
        let ctx = self.pass.context();
        ctx.dev.memcpy_htod(&next, &mut self.lengths)
    }

    /// All kernels of a step.
    fn enqueue(&self) -> Result<()> {
        let (ctx, x) = (self.pass.context(), self.pass.x());
        let embed = ctx.matrix(self.model.embed)?;
        let (cos, sin) = (ctx.input::<bf16>(&self.angles.0)?, ctx.input::<bf16>(&self.angles.1)?);
        let (row_cos, row_sin) = self.pass.angles()?;
        let (tokens, lengths) = (ctx.address(&self.tokens), ctx.address(&self.lengths));
        let (best, step) = (ctx.address(&self.best), ctx.address(&self.step));
        let (d, half) = (int(x.cols)?, int(self.model.head_dim / 2)?);
        let f = function(&ctx.dev, CACHED, "", "", "step_begin")?;
        let mut args = f.builder();
        args.arg(&embed.address).arg(&tokens).arg(&lengths).arg(&cos).arg(&sin);
        args.arg(&x.address).arg(&row_cos).arg(&row_sin).arg(&best).arg(&d).arg(&half);
        launch(&mut args, blocks(self.rows, 128))?;
        if let Some((rolling, window)) = &self.rolling {
            rolling.show_behind(lengths, *window)?;
        }
        for (layer, (keys, values)) in self.model.layers.iter().zip(&self.memory) {
            self.pass.layer(layer, keys, values)?;
        }
        norm_rows(ctx, x, self.model.norm.0, self.model.norm.1, self.normal.mat)?;
        self.choice.run(ctx, self.normal.mat, &self.model.head, best)?;
        let (out, rows, ring) = (self.out.as_ptr().w()? as u64, int(self.rows)?, int(RING)?);
        let f = function(&ctx.dev, CACHED, "", "", "step_end")?;
        let mut args = Early::new(&f);
        args.arg(&tokens).arg(&lengths).arg(&best).arg(&step).arg(&out).arg(&rows).arg(&ring);
        args.launch(blocks(1, 64))
    }
}

impl Drop for GreedySteps<'_> {
    /// Waits for what is queued: it writes to the host's memory.
    fn drop(&mut self) {
        let stream = &self.pass.context().stream;
        stream.context().record_err(stream.synchronize());
    }
}

impl std::fmt::Debug for GreedySteps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rows, longest, launched, read, .. } = self;
        write!(f, "GreedySteps {{ {rows} rows of up to {longest}, {launched} queued, {read} read }}")
    }
}
