//! When new positions are read through whole layers on a GPU instead of through a graph of small operations.

use crate::batch_cache::BatchCache;
use crate::llama::Asked;
use crate::packed::Packed;
use crate::{CrossKeys, Llama, Memory};
use candle_core::{Result, Tensor, bail};
use e2llm_kernels::{CachedLayer, CachedPass, Positions, Span};

/// A decoder's layers as new positions `x` are read with them behind remembered ones, where the GPU can; `states` are what its
/// cross-attention reads.
pub(crate) fn cached<'a>(
    x: &Tensor,
    llama: &'a Llama,
    states: Option<&'a [CrossKeys]>,
) -> Option<Vec<CachedLayer<'a>>> {
    if !x.device().is_cuda() {
        return None;
    }
    let layers = llama.cached_layers(states)?;
    let d = llama.config().head_dim;
    layers.iter().all(|layer| CachedPass::is_supported(x, d, layer)).then_some(layers)
}

/// Positions from which on the last one of a block is read apart through the last layer, which then reads that layer's weights
/// a second time.
const APART: usize = 512;

/// Last hidden states, normalised, of the positions of `x` (`[1, T, D]`) that are asked for, read behind what `memory` holds,
/// which has all of them then; nothing where the GPU cannot.
pub(crate) fn read(
    x: &Tensor,
    llama: &Llama,
    memory: &mut dyn Memory,
    asked: Asked,
) -> Result<Option<Tensor>> {
    let (batch, t, width) = x.dims3()?;
    let states = memory.cross();
    let Some(layers) = cached(x, llama, states.as_ref().map(|s| &s[..])).filter(|_| batch == 1) else {
        return Ok(None);
    };
    let (Some(first), Some((last, before))) = (layers.first(), layers.split_last()) else {
        bail!("a decoder without layers")
    };
    let (config, offset) = (llama.config(), memory.offset());
    let room = (1, config.num_key_value_heads, t, config.head_dim);
    let (positions, (cos, sin), held) = if let Some(rolling) = memory.rolling() {
        let (positions, angles) = rolling.begin(t, llama.rope())?;
        let held = (0..layers.len()).map(|i| rolling.reserve(i, room, x)).collect::<Result<Vec<_>>>()?;
        (positions, angles, held)
    } else if let Some(cache) = memory.behind() {
        cache.begin(layers.len(), room, x)?;
        let angles = llama.rope().tables(offset, t, cache.expected())?;
        let held = (0..layers.len()).map(|i| cache.reserve(i, room, x)).collect::<Result<Vec<_>>>()?;
        (Positions::Behind(cache.offset()), angles, held)
    } else {
        return Ok(None);
    };
    let pass = CachedPass::new(x, config.head_dim, first, (&cos, &sin), positions)?;
    for (layer, (keys, values)) in before.iter().zip(&held) {
        pass.layer(layer, keys, values)?;
    }
    memory.advance(t);
    let Some((keys, values)) = held.last() else { bail!("a memory without layers") };
    let (norm, eps) = (llama.last_norm(), config.rms_norm_eps);
    if asked != Asked::All && t >= APART {
        pass.remember(last, keys, values)?;
        if asked == Asked::Nothing {
            return x.narrow(1, 0, 0).map(Some);
        }
        let row = pass.finish(x.dims())?.narrow(1, t - 1, 1)?;
        let (cos, sin) = (cos.narrow(0, t - 1, 1)?, sin.narrow(0, t - 1, 1)?);
        let pass = CachedPass::new(&row, config.head_dim, first, (&cos, &sin), positions.after(t - 1))?;
        pass.layer(last, keys, values)?;
        return pass.finish_normal(norm, eps, &[1, 1, width]).map(Some);
    }
    pass.layer(last, keys, values)?;
    asked.of(pass.finish_normal(norm, eps, x.dims())?).map(Some)
}

/// Last hidden states, normalised, of `x` (`[1, B, D]`), the next position of every row of `cache`, which has begun a pass.
pub(crate) fn read_rows(
    x: &Tensor,
    llama: &Llama,
    layers: &[CachedLayer<'_>],
    angles: (&Tensor, &Tensor),
    cache: &BatchCache,
) -> Result<Tensor> {
    let Some(first) = layers.first() else { bail!("a decoder without layers") };
    let lengths = cache.reserved(0)?.2;
    let pass = CachedPass::new(x, llama.config().head_dim, first, angles, Positions::Last(lengths))?;
    for (i, layer) in layers.iter().enumerate() {
        let (keys, values, _) = cache.reserved(i)?;
        pass.layer(layer, &keys, &values)?;
    }
    pass.finish_normal(llama.last_norm(), llama.config().rms_norm_eps, x.dims())
}

/// As [`read`], of the last positions `ends` of prompts `x` (`[1, T, D]`) that stand one behind the other, each in its place of
/// `cache`; nothing where the GPU cannot.
pub(crate) fn read_packed(
    x: &Tensor,
    llama: &Llama,
    (prompts, ends): (&[Packed], &[usize]),
    cache: &BatchCache,
) -> Result<Option<Tensor>> {
    llama.check_unshifted()?;
    let Some(layers) = cached(x, llama, None) else { return Ok(None) };
    let (Some(first), Some((last, before))) = (layers.first(), layers.split_last()) else {
        bail!("a decoder without layers")
    };
    let (mut positions, mut sequences, mut spans, mut single) = (vec![], vec![], vec![], vec![]);
    for &Packed { place: sequence, len, expected } in prompts {
        positions.extend(0..len);
        sequences.resize(positions.len(), expected);
        spans.push(Span { sequence, offset: 0, positions: len });
        single.push(Span { sequence, offset: len - 1, positions: 1 });
    }
    let (config, held) = (llama.config(), cache.layers());
    let pass = |x: &Tensor, positions: &[usize], sequences: &[usize], spans: &[Span]| {
        let (cos, sin) = llama.angles(positions, sequences)?;
        CachedPass::new(x, config.head_dim, first, (&cos, &sin), Positions::Spans(spans))
    };
    let of_all = pass(x, &positions, &sequences, &spans)?;
    for (layer, (keys, values)) in before.iter().zip(held) {
        of_all.layer(layer, keys, values)?;
    }
    let Some((keys, values)) = held.last() else { bail!("a memory without layers") };
    let rows = Tensor::new(ends.iter().map(|end| *end as u32).collect::<Vec<_>>(), x.device())?;
    let (norm, eps, width) = (llama.last_norm(), config.rms_norm_eps, config.hidden_size);
    if positions.len() < APART {
        of_all.layer(last, keys, values)?;
        let states = of_all.finish_normal(norm, eps, x.dims())?;
        return states.index_select(&rows, 1).map(Some);
    }
    of_all.remember(last, keys, values)?;
    let x = of_all.finish(x.dims())?.index_select(&rows, 1)?;
    let of = |all: &[usize]| ends.iter().map(|end| all[*end]).collect::<Vec<_>>();
    let of_ends = pass(&x, &of(&positions), &of(&sequences), &single)?;
    of_ends.layer(last, keys, values)?;
    of_ends.finish_normal(norm, eps, &[1, ends.len(), width]).map(Some)
}
