//! Greedy steps as one graph each, against the same passes made one by one, and the choice of tokens against the CPU.

use candle_core::{DType, IndexOp, Result, Tensor};
use e2llm_kernels::{
    CachedLayer, CachedPass, GreedySteps, Plain, Positions, RowLengths, StepModel, likeliest, linear,
};

use crate::checker::{Checker, randn};

const LAYERS: usize = 3;
pub(crate) const ROOM: usize = 520;

/// Sizes of a decoder.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) h: usize,
    pub(crate) hkv: usize,
    pub(crate) d: usize,
    pub(crate) m: usize,
    pub(crate) v: usize,
}

/// Its weights on the GPU.
pub(crate) struct Parts {
    shape: Shape,
    pub(crate) embed: Tensor,
    norms: Vec<Tensor>,
    linears: Vec<[Tensor; 7]>,
    head: Tensor,
    pub(crate) angles: (Tensor, Tensor),
}

impl Parts {
    pub(crate) fn new(c: &Checker, shape: Shape) -> Result<Self> {
        let Shape { h, hkv, d, m, v } = shape;
        let random = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, &c.gpu);
        let narrow = |t: Tensor| t.to_dtype(DType::BF16);
        let (width, kv) = (h * d, hkv * d);
        let matrix = |n: usize, k: usize| narrow((random(&[n, k])? / (k as f64).sqrt())?);
        let sizes =
            [(width, width), (kv, width), (kv, width), (width, width), (m, width), (m, width), (width, m)];
        let mut linears = Vec::new();
        for _ in 0..LAYERS {
            let all: Vec<_> = sizes.iter().map(|&(n, k)| matrix(n, k)).collect::<Result<_>>()?;
            let Ok(all) = <[Tensor; 7]>::try_from(all) else { candle_core::bail!("seven linears") };
            linears.push(all);
        }
        let norm = |_| narrow(random(&[width])?.affine(0.1, 1.)?);
        let norms = (0..=2 * LAYERS).map(norm).collect::<Result<_>>()?;
        let angles = random(&[ROOM, d / 2])?;
        let (embed, head) = (narrow(random(&[v, width])?)?, matrix(v, width)?);
        let angles = (narrow(angles.cos()?)?, narrow(angles.sin()?)?);
        Ok(Self { shape, embed, norms, linears, head, angles })
    }

    pub(crate) fn layers(&self) -> Vec<CachedLayer<'_>> {
        let layer = |i: usize| CachedLayer {
            input_norm: &self.norms[2 * i],
            post_norm: &self.norms[2 * i + 1],
            linears: std::array::from_fn(|j| Plain { weight: &self.linears[i][j], bias: None }),
            cross: None,
            eps: 1e-5,
        };
        (0..LAYERS).map(layer).collect()
    }

    pub(crate) fn head(&self) -> Plain<'_> {
        Plain { weight: &self.head, bias: None }
    }

    pub(crate) fn model(&self) -> StepModel<'_> {
        StepModel {
            embed: &self.embed,
            layers: self.layers(),
            norm: (&self.norms[2 * LAYERS], 1e-5),
            head: self.head(),
            angles: self.angles.clone(),
            head_dim: self.shape.d,
        }
    }

    pub(crate) fn memory(&self, c: &Checker, rows: usize) -> Result<Vec<(Tensor, Tensor)>> {
        let Shape { hkv, d, .. } = self.shape;
        let random = || Tensor::randn(0f32, 1f32, (rows, hkv, ROOM, d), &c.gpu)?.to_dtype(DType::BF16);
        (0..LAYERS).map(|_| Ok((random()?, random()?))).collect()
    }

    /// A pass of its own for each step.
    fn one_by_one(
        &self,
        memory: &[(Tensor, Tensor)],
        tokens: &[u32],
        lengths: &[usize],
        steps: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let (mut tokens, mut all) = (tokens.to_vec(), Vec::new());
        let layers = self.layers();
        for step in 0..steps {
            let ids = Tensor::new(&tokens[..], self.embed.device())?;
            let x = self.embed.index_select(&ids, 0)?.unsqueeze(0)?;
            let at: Vec<u32> = lengths.iter().map(|n| (n + step) as u32).collect();
            let at = Tensor::new(at, self.embed.device())?;
            let angles = (self.angles.0.index_select(&at, 0)?, self.angles.1.index_select(&at, 0)?);
            let counted = lengths.iter().map(|n| n + step + 1).collect();
            let counted = RowLengths::new(counted, self.embed.device())?;
            // One sequence is read behind what is there, as it is where it is alone.
            let positions = match lengths {
                [alone] => Positions::Behind(alone + step),
                _ => Positions::Last(&counted),
            };
            let pass = CachedPass::new(&x, self.shape.d, &layers[0], (&angles.0, &angles.1), positions)?;
            for (layer, (keys, values)) in layers.iter().zip(memory) {
                pass.layer(layer, keys, values)?;
            }
            let hidden = pass.finish_normal(&self.norms[2 * LAYERS], 1e-5, x.dims())?;
            let Some(best) = likeliest(&hidden, &self.head())? else { candle_core::bail!("no choice") };
            tokens = best.into_iter().map(|(id, _)| id).collect();
            all.push(tokens.clone());
        }
        Ok(all)
    }
}

pub(crate) fn steps(c: &mut Checker) -> Result<()> {
    let small = Shape { h: 9, hkv: 3, d: 64, m: 1536, v: 5003 };
    let odd = Shape { h: 4, hkv: 1, d: 32, m: 104, v: 211 };
    let wide = Shape { h: 32, hkv: 8, d: 128, m: 4096, v: 3001 };
    let many: Vec<usize> = (1..=40).map(|i| 6 * i).collect();
    for (shape, lengths) in [
        (small, vec![1]),
        (small, vec![230]),
        (odd, vec![3, 200, 77, 1]),
        (small, vec![5, 2, 1, 4, 3, 230, 9]),
        (small, many.clone()),
        (wide, vec![17]),
        (wide, vec![100, 7]),
        (wide, many[..9].to_vec()),
        (wide, many[..33].to_vec()),
    ] {
        check(c, shape, &lengths)?;
    }
    for (rows, width, v) in [(1, 576, 4999), (4, 4096, 1001), (5, 256, 77), (64, 576, 1024), (33, 4096, 999)]
    {
        choices(c, rows, width, v)?;
    }
    Ok(())
}

/// Tokens and memory after steps up to a first graph's end and of a second one, with a sequence that ends on the way.
fn check(c: &mut Checker, shape: Shape, lengths: &[usize]) -> Result<()> {
    let rows = lengths.len();
    let name = format!("steps of {rows} rows, {}({})x{}", shape.h, shape.hkv, shape.d);
    if c.skips(&name) {
        return Ok(());
    }
    let parts = Parts::new(c, shape)?;
    let (memory, first) = (parts.memory(c, rows)?, (1..=rows as u32).collect::<Vec<_>>());
    let copy = |m: &[(Tensor, Tensor)]| -> Result<Vec<(Tensor, Tensor)>> {
        m.iter().map(|(k, v)| Ok((k.force_contiguous()?, v.force_contiguous()?))).collect()
    };
    let longest = lengths.iter().max().copied().unwrap_or(0);
    // Up to a multiple of the positions that a graph holds for, and beyond.
    let (to_end, beyond) = (GreedySteps::ROUND - longest % GreedySteps::ROUND, 12);
    let (to_end, ended) = (to_end.min(40), (rows > 2).then_some(1));
    let total = to_end + beyond;
    let plain = copy(&memory)?;
    let expected = parts.one_by_one(&plain, &first, lengths, total)?;

    c.poison()?;
    let own = copy(&memory)?;
    let (mut tokens, mut at, mut got) = (first, lengths.to_vec(), Vec::new());
    for count in [to_end, beyond] {
        let end = at.iter().max().copied().unwrap_or(0) + count;
        let mut steps = GreedySteps::new(parts.model(), own.clone(), &tokens, &at, end, None)?;
        for step in 0..count {
            while steps.pending() < 5 && steps.launched() < count {
                steps.launch()?;
                if steps.launched() == 1 {
                    steps.record()?;
                }
            }
            let chosen = steps.tokens()?;
            tokens = chosen.into_iter().map(|t| t.unwrap_or(u32::MAX)).collect();
            got.push(tokens.clone());
            // One leaves in the second graph.
            if let Some(row) = ended.filter(|_| count == beyond && step == 3) {
                let kept: Vec<bool> = (0..rows).map(|i| i != row).collect();
                let read: Vec<usize> = at.iter().map(|n| n + steps.launched()).collect();
                steps.keep(&kept, &read)?;
            }
        }
        at.iter_mut().for_each(|n| *n += count);
    }
    // Of the sequence that ended, what it had until then.
    let matters = |row: usize, step: usize| ended != Some(row) || step < to_end + 4;
    let mut wrong = 0;
    for (step, (a, b)) in got.iter().zip(&expected).enumerate() {
        wrong += (0..rows).filter(|&row| matters(row, step) && a[row] != b[row]).count();
    }
    let mut differing = 0.;
    for ((k, v), (own_k, own_v)) in plain.iter().zip(&own) {
        for (a, b) in [(k, own_k), (v, own_v)] {
            for row in (0..rows).filter(|row| ended != Some(*row)) {
                let (a, b) = (a.i(row)?.narrow(1, 0, at[row])?, b.i(row)?.narrow(1, 0, at[row])?);
                let gap = (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.sum_all()?;
                differing += f64::from(gap.to_scalar::<f32>()?);
            }
        }
    }
    let distinct = expected.iter().flatten().collect::<std::collections::BTreeSet<_>>().len();
    println!("     {total} steps, {distinct} different tokens");
    c.report(&name, &[wrong as f64, differing], 1e-9);
    Ok(())
}

/// The likeliest tokens against products in float32 on the CPU.
fn choices(c: &mut Checker, rows: usize, width: usize, v: usize) -> Result<()> {
    let name = format!("likeliest of {v} by {rows}x{width}");
    if c.skips(&name) {
        return Ok(());
    }
    for bias in [false, true] {
        let rounded = |t: Tensor| t.to_dtype(DType::BF16);
        let (x, w) =
            (rounded(randn(&[rows, width])?)?, rounded((randn(&[v, width])? / (width as f64).sqrt())?)?);
        let b = rounded(randn(&[v])?)?;
        let wide = |t: &Tensor| t.to_dtype(DType::F32);
        let logits = linear(&wide(&x)?, &wide(&w)?, bias.then(|| wide(&b)).transpose()?.as_ref())?;
        let there = |t: &Tensor| t.to_device(&c.gpu);
        let (w, b) = (there(&w)?, there(&b)?);
        let head = Plain { weight: &w, bias: bias.then_some(&b) };
        c.poison()?;
        let Some(best) = likeliest(&there(&x)?, &head)? else { candle_core::bail!("{name}: no choice") };
        let mut errors = vec![if best.len() == rows { 0. } else { f64::INFINITY }];
        for (row, (id, logit)) in best.into_iter().enumerate() {
            let logits = logits.i(row)?.to_vec1::<f32>()?;
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let own = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            errors.push(f64::from((own - most).abs().max((logit - own).abs())));
        }
        let worst = errors.iter().copied().fold(0., f64::max);
        c.report(&format!("{name}{}", if bias { " with a bias" } else { "" }), &[worst], 1e-4);
    }
    // What is no number is said to be none.
    let x = Tensor::full(f32::NAN, (rows, width), &c.gpu)?.to_dtype(DType::BF16)?;
    let w = Tensor::ones((v, width), DType::BF16, &c.gpu)?;
    let best = likeliest(&x, &Plain { weight: &w, bias: None })?.unwrap_or_default();
    let finite = best.iter().filter(|(_, logit)| logit.is_finite()).count() + usize::from(best.len() != rows);
    c.report(&format!("{name} without numbers"), &[finite as f64], 1e-9);
    Ok(())
}
