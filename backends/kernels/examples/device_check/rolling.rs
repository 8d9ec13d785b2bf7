//! Memories that roll: what is moved against the graph of small operations, and steps in them against passes made one by one.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use e2llm_kernels::{CachedPass, GreedySteps, Positions, Rolling, likeliest, rope};

use crate::checker::{Checker, difference};
use crate::steps::{Parts, ROOM, Shape};

type Pairs = Vec<(Tensor, Tensor)>;

pub(crate) fn rolling(c: &mut Checker) -> Result<()> {
    for (hkv, d, sinks) in [(3, 64, 4), (1, 16, 1), (2, 128, 7), (5, 48, 0), (32, 128, 4)] {
        for (from, n) in [(sinks + 1, 300), (sinks + 200, 1), (350, 170), (sinks, 17), (400, 0)] {
            moved(c, (hkv, d, sinks), from, n)?;
        }
    }
    let small = Shape { h: 9, hkv: 3, d: 64, m: 1536, v: 5003 };
    let odd = Shape { h: 4, hkv: 1, d: 32, m: 104, v: 211 };
    let wide = Shape { h: 32, hkv: 8, d: 128, m: 4096, v: 3001 };
    for (shape, sinks, window, len) in [
        (small, 4, 300, 310),
        (small, 4, 300, 280),
        (odd, 1, 33, 40),
        (wide, 4, 120, 101),
        (wide, 0, 400, 450),
    ] {
        steps(c, shape, (sinks, window), len)?;
    }
    Ok(())
}

fn copy(memory: &[(Tensor, Tensor)]) -> Result<Pairs> {
    memory.iter().map(|(k, v)| Ok((k.force_contiguous()?, v.force_contiguous()?))).collect()
}

fn sinks_of(memory: &[(Tensor, Tensor)], sinks: usize) -> Result<Pairs> {
    memory.iter().map(|(k, v)| Ok((k.narrow(2, 0, sinks)?, v.narrow(2, 0, sinks)?))).collect()
}

/// Sinks at a place, and positions moved back behind them: all of every memory, of which nothing else may have changed.
fn moved(c: &mut Checker, (hkv, d, sinks): (usize, usize, usize), from: usize, n: usize) -> Result<()> {
    let name = format!("rolling memory {hkv}x{d}, {sinks} sinks, {n} from {from}");
    if c.skips(&name) {
        return Ok(());
    }
    let random = || Tensor::randn(0f32, 1f32, (1, hkv, ROOM, d), &c.gpu)?.to_dtype(DType::BF16);
    let memory: Pairs = (0..3).map(|_| Ok((random()?, random()?))).collect::<Result<_>>()?;
    let angles = Tensor::randn(0f32, 1f32, (ROOM, d / 2), &c.gpu)?;
    let narrow = |t: Tensor| t.to_dtype(DType::BF16);
    let (cos, sin) = (narrow(angles.cos()?)?, narrow(angles.sin()?)?);
    let host = |t: &Tensor| t.to_dtype(DType::F32)?.to_device(&Device::Cpu);
    let turned = |x: &Tensor, by: usize, back: bool| -> Result<Tensor> {
        let rows = x.dim(2)?;
        let table = |t: &Tensor| host(t)?.narrow(0, by, 1)?.broadcast_as((rows, d / 2))?.contiguous();
        let sin = table(&sin)?;
        rope(x, &table(&cos)?, &if back { sin.neg()? } else { sin })
    };
    let mut expected = Vec::new();
    for shown in [true, false] {
        for (k, v) in &memory {
            let (keys, values) = (host(k)?.force_contiguous()?, host(v)?.force_contiguous()?);
            let first = (
                keys.narrow(2, 0, sinks)?.force_contiguous(),
                values.narrow(2, 0, sinks)?.force_contiguous(),
            );
            if !shown && n > 0 {
                let own = (
                    keys.narrow(2, from, n)?.force_contiguous()?,
                    values.narrow(2, from, n)?.force_contiguous()?,
                );
                keys.slice_set(&turned(&own.0, from - sinks, true)?, 2, sinks)?;
                values.slice_set(&own.1, 2, sinks)?;
            }
            if sinks > 0 {
                let at = if shown { from - sinks } else { 0 };
                keys.slice_set(&turned(&first.0?, at, false)?, 2, at)?;
                values.slice_set(&first.1?, 2, at)?;
            }
            expected.extend([keys, values]);
        }
    }
    let mut errors = Vec::new();
    for (shown, expected) in [true, false].into_iter().zip(expected.chunks(6)) {
        let own = copy(&memory)?;
        let first: Pairs = sinks_of(&own, sinks)?;
        let first = if sinks > 0 { copy(&first)? } else { first };
        let rolling = Rolling::new(own.clone(), &first, (&cos, &sin))?;
        if shown {
            rolling.show(from - sinks)?
        } else {
            rolling.move_back(from, n)?
        }
        for (got, expected) in own.iter().flat_map(|(k, v)| [k, v]).zip(expected) {
            errors.push(difference(got, expected, 0.)?);
        }
    }
    c.report(&name, &errors, 4e-3);
    Ok(())
}

/// Tokens and memory after steps of a graph in which the window begins to move, or moves all the time.
fn steps(c: &mut Checker, shape: Shape, (sinks, window): (usize, usize), len: usize) -> Result<()> {
    let count = 40;
    let name = format!("rolling steps behind {len} in {window}, {}({})x{}", shape.h, shape.hkv, shape.d);
    if c.skips(&name) {
        return Ok(());
    }
    let parts = Parts::new(c, shape)?;
    let memory = parts.memory(c, 1)?;
    let first = sinks_of(&memory, sinks)?;
    let first = if sinks > 0 { copy(&first)? } else { first };
    let layers = parts.layers();
    let (mut tokens, mut expected) = (vec![1u32], Vec::new());
    let plain = copy(&memory)?;
    let own = Rolling::new(plain.clone(), &first, (&parts.angles.0, &parts.angles.1))?;
    for at in len..len + count {
        let seen = (at + 1).saturating_sub(window);
        own.show(seen)?;
        let ids = Tensor::new(&tokens[..], &c.gpu)?;
        let x = parts.embed.index_select(&ids, 0)?.unsqueeze(0)?;
        let angles = (parts.angles.0.narrow(0, at, 1)?, parts.angles.1.narrow(0, at, 1)?);
        let positions = Positions::Beyond { first: seen, offset: at - seen };
        let pass = CachedPass::new(&x, shape.d, &layers[0], (&angles.0, &angles.1), positions)?;
        for (layer, (keys, values)) in layers.iter().zip(&plain) {
            pass.layer(layer, keys, values)?;
        }
        let hidden = pass.finish_normal(parts.model().norm.0, 1e-5, x.dims())?;
        let Some(best) = likeliest(&hidden, &parts.head())? else { candle_core::bail!("no choice") };
        tokens = best.into_iter().map(|(id, _)| id).collect();
        expected.push(tokens[0]);
    }
    c.poison()?;
    let memory = copy(&memory)?;
    let rolling = Rolling::new(memory.clone(), &first, (&parts.angles.0, &parts.angles.1))?;
    let rolling = Some((Arc::new(rolling), window));
    let mut steps = GreedySteps::new(parts.model(), memory.clone(), &[1], &[len], len + count, rolling)?;
    let mut got = Vec::new();
    while got.len() < count {
        while steps.pending() < 5 && steps.launched() < count {
            steps.launch()?;
            if steps.launched() == 1 {
                steps.record()?;
            }
        }
        got.extend(steps.tokens()?.into_iter().map(|t| t.unwrap_or(u32::MAX)));
    }
    drop(steps);
    let wrong = got.iter().zip(&expected).filter(|(a, b)| a != b).count();
    let mut errors = vec![wrong as f64];
    let (seen, end) = ((len + count).saturating_sub(window), len + count);
    for (own, plain) in memory.iter().zip(&plain) {
        for (own, plain) in [(&own.0, &plain.0), (&own.1, &plain.1)] {
            let part = |t: &Tensor| t.narrow(2, seen, end - seen)?.contiguous();
            errors.push(difference(&part(own)?, &part(plain)?, 0.)?);
        }
    }
    c.report(&name, &errors, 1e-6);
    Ok(())
}
