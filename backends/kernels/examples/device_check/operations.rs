//! Operations of one kernel or a few.

use candle_core::{DType, Device, Result, Tensor, Var};
use e2llm_kernels::*;

use crate::checker::{Checker, difference, randn};

pub(crate) fn rows(c: &mut Checker) -> Result<()> {
    for (rows, d) in [(1, 384), (300, 576), (37, 77), (129, 4096)] {
        let size = format!("{rows}x{d}");
        let x = randn(&[rows, d])?;
        let (w, b) = (randn(&[d])?, randn(&[d])?);
        c.check(&format!("rms_norm {size}"), &[x.clone(), w.clone()], 2, |t| rms_norm(&t[0], &t[1], 1e-5))?;
        c.check(&format!("layer_norm {size}"), &[x.clone(), w, b.clone()], 3, |t| {
            layer_norm(&t[0], &t[1], &t[2], 1e-5)
        })?;
        c.check(&format!("gelu {size}"), &[(&x * 3.)?], 1, |t| gelu(&t[0]))?;
        c.check(&format!("silu_mul {size}"), &[x.clone(), randn(&[rows, d])?], 2, |t| {
            silu_mul(&t[0], &t[1])
        })?;
        let weight = (randn(&[65, d])? / (d as f64).sqrt())?;
        let bias = randn(&[65])?;
        c.check(&format!("linear {size}"), &[x.clone(), weight, bias], 1, |t| {
            linear(&t[0], &t[1], Some(&t[2]))
        })?;
        let square = (randn(&[d, d])? / (d as f64).sqrt())?;
        c.check(&format!("trained_linear {size}"), &[x.clone(), square.clone(), b.clone()], 3, |t| {
            trained_linear(&t[0], &t[1], &t[2])
        })?;
        c.check(&format!("linear square {size}"), &[x, square, b], 1, |t| linear(&t[0], &t[1], Some(&t[2])))?;
    }
    for d in [64, 65] {
        let rows = [3, IGNORED, 0, 8, IGNORED];
        c.check(&format!("gather_rows {d}"), &[randn(&[9, d])?], 1, |t| gather_rows(&t[0], &rows))?;
        c.check(&format!("gather_rows onto {d}"), &[randn(&[9, d])?, randn(&[5, d])?], 1, |t| {
            gather_rows_onto(&t[1], &t[0], &rows)
        })?;
    }
    // A view that starts off a 16-byte boundary.
    let x = randn(&[9, 65])?;
    c.check("gelu of a view", std::slice::from_ref(&x), 1, |t| {
        gelu(&t[0].narrow(1, 1, 64)?.narrow(0, 1, 7)?)
    })?;
    c.check("rms_norm of a row", &[x, randn(&[64])?], 1, |t| {
        rms_norm(&t[0].flatten_all()?.narrow(0, 3, 64)?.unsqueeze(0)?, &t[1], 1e-5)
    })
}

pub(crate) fn rotary(c: &mut Checker) -> Result<()> {
    for (b, h, t, d) in [(1, 9, 1, 64), (2, 3, 129, 64), (2, 3, 17, 6), (1, 4, 33, 128)] {
        let angles = randn(&[t, d / 2])?;
        let name = format!("rope {b}x{h}x{t}x{d}");
        c.check(&name, &[randn(&[b, t, h, d])?, angles.cos()?, angles.sin()?], 1, |x| {
            rope(&x[0].transpose(1, 2)?, &x[1], &x[2])
        })?;
    }
    Ok(())
}

pub(crate) fn losses(c: &mut Checker) -> Result<()> {
    for (n, v) in [(1, 7), (37, 1001), (130, 49152), (3000, 64)] {
        let targets: Vec<u32> =
            (0..n).map(|i| if i % 5 == 3 { IGNORED } else { ((i * 7919) % v) as u32 }).collect();
        let targets = Tensor::new(targets, &Device::Cpu)?;
        let inputs = [(randn(&[n, v])? * 3.)?, targets];
        c.check(&format!("cross_entropy {n}x{v}"), &inputs, 1, |t| cross_entropy(&t[0], &t[1]))?;
    }
    // The second has more rows than logits exist at once.
    for (n, d, v) in [(37, 64, 1000), (5001, 72, 49152)] {
        let targets: Vec<u32> =
            (0..n).map(|i| if i % 5 == 3 { IGNORED } else { ((i * 7919) % v) as u32 }).collect();
        let inputs = [randn(&[n, d])?, (randn(&[v, d])? / 8.)?, Tensor::new(targets, &Device::Cpu)?];
        c.check(&format!("head_loss {n}x{d}x{v}"), &inputs, 1, |t| match head_loss(&t[0], &t[1], &t[2])? {
            Some(loss) => Ok(loss),
            None => cross_entropy(&linear(&t[0], &t[1], None)?, &t[2]),
        })?;
    }
    if !c.skips("cross_entropy target out of range") {
        let logits = randn(&[2, 5])?.to_device(&c.gpu)?;
        let loss = cross_entropy(&logits, &Tensor::new(&[1u32, 5], &c.gpu)?)?.to_scalar::<f32>()?;
        c.report("cross_entropy target out of range is NaN", &[if loss.is_nan() { 0. } else { 1. }], 0.5);
    }
    Ok(())
}

pub(crate) fn attentions(c: &mut Checker) -> Result<()> {
    let sizes = [
        (1, 9, 3, 1, 1, 64),
        (1, 9, 3, 1, 2500, 64),
        (2, 4, 4, 77, 77, 32),
        (3, 12, 12, 128, 128, 32),
        (2, 8, 2, 130, 333, 64),
        (1, 9, 3, 65, 1000, 48),
        (1, 8, 2, 200, 200, 128),
        (1, 4, 1, 3, 600, 128),
        (2, 2, 1, 19, 33, 20),
        // As many blocks as have other tiles than a few have.
        (9, 16, 16, 250, 250, 64),
        // A few rows of many heads, of some and of few; two rows of odd heads.
        (40, 8, 4, 1, 333, 64),
        (1, 32, 32, 1, 600, 128),
        (1, 9, 3, 1, 300, 64),
        (2, 4, 4, 2, 300, 40),
        (1, 16, 1, 1, 5000, 128),
    ];
    for (b, h, hkv, tq, tk, d) in sizes {
        let lengths: Vec<usize> = (0..b).map(|i| if i == 1 { 0 } else { tk - tk / 3 }).collect();
        let masks = [
            ("none", Mask::None),
            ("causal", Mask::Causal { offset: tk - tq }),
            ("keys", Mask::Keys(&lengths)),
            ("causal keys", Mask::CausalKeys(&lengths)),
        ];
        for (name, mask) in masks {
            let name = format!("attention {b}x{h}({hkv})x{tq}x{tk}x{d} {name}");
            let inputs = [randn(&[b, tq, h, d])?, randn(&[b, hkv, tk + 5, d])?, randn(&[b, tk, hkv, d])?];
            let scale = 1. / (d as f64).sqrt();
            // A transposed projection, a cache narrowed to its filled part, and another transposed projection.
            c.check(&name, &inputs, 3, |t| {
                attention(
                    &t[0].transpose(1, 2)?,
                    &t[1].narrow(2, 0, tk)?,
                    &t[2].transpose(1, 2)?,
                    mask,
                    scale,
                )
            })?;
        }
    }
    Ok(())
}

/// Gradients that are computed twice are the same to the last bit.
pub(crate) fn reproducible(c: &mut Checker) -> Result<()> {
    for (b, h, hkv, t, d) in
        [(9, 16, 16, 250, 64), (1, 9, 3, 304, 64), (1, 8, 8, 300, 128), (6, 12, 12, 200, 32)]
    {
        let name = format!("attention {b}x{h}({hkv})x{t}x{d} backward, twice");
        if c.skips(&name) {
            continue;
        }
        let inputs =
            [randn(&[b, h, t, d])?, randn(&[b, hkv, t, d])?, randn(&[b, hkv, t, d])?, randn(&[b, h, t, d])?];
        let inputs = inputs.map(|x| x.to_device(&c.gpu)?.to_dtype(DType::BF16));
        let inputs = inputs.into_iter().collect::<Result<Vec<_>>>()?;
        let run = || -> Result<Tensor> {
            let vars = inputs[..3]
                .iter()
                .map(|x| Ok(Var::from_tensor(x)?.into_inner()))
                .collect::<Result<Vec<_>>>()?;
            c.poison()?;
            let y = attention(&vars[0], &vars[1], &vars[2], Mask::Causal { offset: 0 }, 0.125)?;
            let grads = (y * &inputs[3])?.sum_all()?.backward()?;
            let all = vars
                .iter()
                .map(|x| grads.get(x).map_or_else(|| candle_core::bail!("no gradient"), |g| g.flatten_all()));
            Tensor::cat(&all.collect::<Result<Vec<_>>>()?, 0)
        };
        let error = difference(&run()?, &run()?, 0.)?;
        c.report(&name, &[error], f64::MIN_POSITIVE);
    }
    Ok(())
}

/// New positions of sequences of different lengths, stored into their cache and attended to.
pub(crate) fn side_by_side(c: &mut Checker) -> Result<()> {
    for (h, hkv, room, d, lengths) in [
        (9, 3, 700, 64, vec![1, 700, 333]),
        (32, 8, 2100, 128, vec![2049, 17]),
        (4, 4, 5, 20, vec![5, 2, 1, 4, 3, 5]),
    ] {
        let b = lengths.len();
        let name = format!("rows {b}x{h}({hkv})x{room}x{d}");
        let new = |heads: usize| randn(&[1, heads, b, d]);
        let cache = || randn(&[b + 1, hkv, room, d]);
        let inputs = [new(h)?, new(hkv)?, new(hkv)?, cache()?, cache()?];
        c.check(&name, &inputs, 1, |t| {
            let lengths = RowLengths::new(lengths.clone(), t[0].device())?;
            // A copy, or the next type would find the positions of this one; its first rows are in use.
            let fill = |cache: &Tensor, new: &Tensor| -> Result<Tensor> {
                let cache = cache.force_contiguous()?.narrow(0, 0, b)?;
                store_last(&cache, &new.transpose(0, 2)?, &lengths)?;
                cache.narrow(2, 0, lengths.longest())
            };
            let (k, v) = (fill(&t[3], &t[1])?, fill(&t[4], &t[2])?);
            attention(&t[0].transpose(0, 2)?, &k, &v, Mask::Rows(&lengths), 1. / (d as f64).sqrt())
        })?;
    }
    Ok(())
}

pub(crate) fn training(c: &mut Checker) -> Result<()> {
    let inputs = [randn(&[33, 64])?, randn(&[64])?, (randn(&[8, 64])? / 8.)?, (randn(&[64, 8])? / 3.)?];
    c.check("checkpoint", &inputs, 4, |t| {
        let inputs: Vec<&Tensor> = t.iter().collect();
        checkpoint(&inputs, |t| {
            let h = gelu(&rms_norm(&t[0], &t[1], 1e-5)?)?;
            &t[0] + h.matmul(&t[2].t()?)?.matmul(&t[3].t()?)?
        })
    })?;
    for n in [1, 1001, 300_000] {
        let name = format!("adamw_step {n}");
        if c.skips(&name) {
            continue;
        }
        for dtype in [DType::F32, DType::BF16] {
            let start = randn(&[n])?;
            let grads = [randn(&[n])?.to_dtype(dtype)?, randn(&[n])?.to_dtype(dtype)?];
            let run = |device: &Device| -> Result<[Tensor; 3]> {
                let p = Var::from_tensor(&start.to_device(device)?)?.into_inner();
                let (m, v) = (p.zeros_like()?, p.zeros_like()?);
                for (i, g) in grads.iter().enumerate() {
                    adamw_step(&p, &m, &v, &g.to_device(device)?, &AdamW::default(), i + 1, 0.7)?;
                }
                Ok([p, m, v])
            };
            let (expected, gpu) = (run(&Device::Cpu)?, c.gpu.clone());
            let errors: Vec<f64> =
                run(&gpu)?.iter().zip(&expected).map(|(a, b)| difference(a, b, 0.)).collect::<Result<_>>()?;
            c.report(&format!("{name} {dtype:?}"), &errors, 1e-6);
        }
    }
    if !c.skips("adamw_steps") {
        let sizes = [1, 1001, 70_000, 5];
        let start = sizes.map(|n| randn(&[n]));
        let grads = sizes.map(|n| randn(&[n]));
        let run = |device: &Device| -> Result<Vec<Tensor>> {
            let mut all = Vec::new();
            for (start, grad) in start.iter().zip(&grads) {
                let (Ok(start), Ok(grad)) = (start, grad) else { candle_core::bail!("no random numbers") };
                let p = Var::from_tensor(&start.to_device(device)?)?.into_inner();
                all.push([p.clone(), p.zeros_like()?, p.zeros_like()?, grad.to_device(device)?]);
            }
            for step in 1..=2 {
                let updates: Vec<_> = all.iter().map(|[p, m, v, grad]| Update { p, m, v, grad }).collect();
                adamw_steps(&updates, &AdamW::default(), step, 0.7)?;
            }
            Ok(all.into_iter().flatten().collect())
        };
        let (expected, gpu) = (run(&Device::Cpu)?, c.gpu.clone());
        let errors: Vec<f64> =
            run(&gpu)?.iter().zip(&expected).map(|(a, b)| difference(a, b, 0.)).collect::<Result<_>>()?;
        c.report("adamw_steps", &errors, 1e-6);
    }
    if !c.skips("global_norm of many") {
        let all = (1..40).map(|i| randn(&[i * 997])).collect::<Result<Vec<_>>>()?;
        let device = all.iter().map(|t| t.to_device(&c.gpu)).collect::<Result<Vec<_>>>()?;
        c.poison()?;
        let expected = global_norm(&all.iter().collect::<Vec<_>>())?;
        let got = global_norm(&device.iter().collect::<Vec<_>>())?;
        c.report("global_norm of many", &[(got - expected).abs() / expected], 1e-6);
    }
    if !c.skips("global_norm") {
        let all = [randn(&[3, 70_001])?, randn(&[5])?.to_dtype(DType::BF16)?, randn(&[40, 30])?.t()?];
        let device = all.iter().map(|t| t.to_device(&c.gpu)).collect::<Result<Vec<_>>>()?;
        c.poison()?;
        let expected = global_norm(&all.iter().collect::<Vec<_>>())?;
        let got = global_norm(&device.iter().collect::<Vec<_>>())?;
        c.report("global_norm", &[(got - expected).abs() / expected], 1e-6);
    }
    Ok(())
}

/// Normalised embeddings, which have no gradient.
pub(crate) fn embeddings(c: &mut Checker) -> Result<()> {
    for (sequences, t, d) in [(1, 1, 8), (3, 77, 72), (3, 32, 1024), (2, 7, 4096)] {
        let name = format!("embed_norm {sequences}x{t}x{d}");
        if c.skips(&name) {
            continue;
        }
        let (v, n) = (50, sequences * t);
        let ids: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
        let cast = |t: Tensor, device: &Device| t.to_dtype(DType::BF16)?.to_device(device);
        let inputs = [randn(&[v, d])?, randn(&[t, d])?, randn(&[d])?, randn(&[d])?];
        let [words, places, weight, bias] = inputs.map(|t| cast(t, &c.gpu));
        let (words, places, weight, bias) = (words?, places?, weight?, bias?);
        c.poison()?;
        let index = Tensor::new(ids.as_slice(), &c.gpu)?;
        let Some(got) = embed_norm(&words, &index, &places, (&weight, &bias, 1e-5))? else {
            candle_core::bail!("{name}: not made");
        };
        let wide = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        let rows =
            wide(&words)?.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?.reshape((sequences, t, d))?;
        // The sum is rounded on both sides.
        let sum = rows.broadcast_add(&wide(&places)?)?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
        let expected = layer_norm(&sum.reshape((n, d))?, &wide(&weight)?, &wide(&bias)?, 1e-5)?;
        c.report(&name, &[difference(&got, &expected, 0.)?], 5e-3);
    }
    Ok(())
}

/// Scores of few float32 rows, whatever the type of the many others.
pub(crate) fn scores(c: &mut Checker) -> Result<()> {
    for (r, n, e) in [(1, 8, 8), (5, 344, 72), (16, 2048, 1024)] {
        let inputs = [randn(&[r, e])?, randn(&[n, e])?];
        c.check(&format!("float_scores {r}x{n}x{e}"), &inputs, 2, |t| {
            let q = t[0].to_dtype(DType::F32)?;
            match float_scores(&q, &t[1])? {
                Some(scores) => Ok(scores),
                None => q.matmul(&t[1].to_dtype(DType::F32)?.t()?),
            }
        })?;
        let name = format!("float_scores {r}x{n}x{e} beside float32");
        if c.skips(&name) {
            continue;
        }
        let [q, x] = inputs;
        let x = x.to_dtype(DType::BF16)?;
        c.poison()?;
        let Some(got) = float_scores(&q.to_device(&c.gpu)?, &x.to_device(&c.gpu)?)? else {
            candle_core::bail!("{name}: not made");
        };
        c.report(&name, &[difference(&got, &q.matmul(&x.to_dtype(DType::F32)?.t()?)?, 0.)?], 2e-6);
    }
    Ok(())
}
