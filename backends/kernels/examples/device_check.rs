//! Compares every operation on a GPU, forward and backward, with the float32 form on the CPU, and times the GPU forms.
//!
//! Run with `cargo run --release -p e2llm-kernels --features cuda --example device_check [-- name]`. Prints one line
//! per check and exits non-zero if one fails. Inputs are fresh random numbers, sizes are odd as well as round, and
//! device memory is filled with NaN before each call, so that an output that is not written shows.

use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use e2llm_kernels::{
    AdamW, Adapted, DecoderLayer, EncoderLayer, IGNORED, Mask, RowLengths, Update, adamw_step, adamw_steps,
    attention, checkpoint, cross_entropy, gelu, global_norm, head_loss, layer_norm, linear, rms_norm, rope,
    silu_mul, store_last,
};

struct Checker {
    gpu: Device,
    filter: Option<String>,
    /// Size that values are compared with at least, for results that cancel to zero.
    floor: f64,
    /// Error that bf16 is allowed.
    rounding: f64,
    failed: usize,
    ran: usize,
}

fn randn(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// Root mean square of the differences, relative to that of `b` or to `floor`; infinite if something is not finite.
fn difference(a: &Tensor, b: &Tensor, floor: f64) -> Result<f64> {
    if a.dims() != b.dims() {
        return Ok(f64::INFINITY);
    }
    let wide = |t: &Tensor| -> Result<Vec<f64>> {
        t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    };
    let (a, b) = (wide(a)?, wide(b)?);
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm = b.iter().map(|b| b * b).sum::<f64>().max(floor * floor * b.len() as f64);
    Ok(if error.is_finite() { (error / norm.max(1e-12)).sqrt() } else { f64::INFINITY })
}

impl Checker {
    /// Leaves NaN in the memory that the next calls are given.
    fn poison(&self) -> Result<()> {
        let mut held = Vec::new();
        for bytes in [1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23] {
            for _ in 0..4 {
                held.push(Tensor::full(f32::NAN, bytes / 4, &self.gpu)?);
            }
        }
        drop(held);
        self.gpu.synchronize()
    }

    fn skips(&self, name: &str) -> bool {
        self.filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str()))
    }

    fn report(&mut self, name: &str, errors: &[f64], tolerance: f64) {
        self.ran += 1;
        let ok = errors.iter().all(|&e| e < tolerance);
        self.failed += usize::from(!ok);
        let errors: Vec<String> = errors.iter().map(|e| format!("{e:.1e}")).collect();
        println!("{} {name}: {} (below {tolerance:.0e})", if ok { "ok  " } else { "FAIL" }, errors.join(" "));
    }

    /// Runs `f` on the CPU in float32 and on the GPU in both types, on inputs rounded to the GPU's type, and compares
    /// the output and the gradient of each of the first `trained` inputs.
    fn check(
        &mut self,
        name: &str,
        inputs: &[Tensor],
        trained: usize,
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        if self.skips(name) {
            return Ok(());
        }
        for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, self.rounding)] {
            let cast = |t: &Tensor, dtype| if t.dtype().is_int() { Ok(t.clone()) } else { t.to_dtype(dtype) };
            let rounded = inputs.iter().map(|t| cast(t, dtype)).collect::<Result<Vec<_>>>()?;
            let mut weights = None;
            let mut run = |device: &Device, dtype| -> Result<Vec<Tensor>> {
                let mut arguments = Vec::new();
                for (i, t) in rounded.iter().enumerate() {
                    let t = cast(t, dtype)?.to_device(device)?;
                    arguments.push(if i < trained { Var::from_tensor(&t)?.into_inner() } else { t });
                }
                if device.is_cuda() {
                    self.poison()?;
                }
                let y = f(&arguments)?;
                if weights.is_none() {
                    weights = Some(randn(y.dims())?);
                }
                let Some(w) = &weights else { candle_core::bail!("no weights") };
                let loss = (y.to_dtype(DType::F32)? * w.to_device(device)?)?.sum_all()?;
                let grads = loss.backward()?;
                let mut all = vec![y];
                for (i, a) in arguments[..trained].iter().enumerate() {
                    match grads.get(a) {
                        Some(g) => all.push(g.clone()),
                        None => candle_core::bail!("{name}: no gradient for input {i}"),
                    }
                }
                Ok(all)
            };
            let expected = run(&Device::Cpu, DType::F32)?;
            let gpu = self.gpu.clone();
            let got = run(&gpu, dtype)?;
            let errors = got
                .iter()
                .zip(&expected)
                .map(|(a, b)| difference(a, b, self.floor))
                .collect::<Result<Vec<_>>>()?;
            self.report(&format!("{name} {dtype:?}"), &errors, tolerance);
        }
        Ok(())
    }

    /// Prints the time of a call on the GPU, and what it moves or computes per second.
    fn time(&self, name: &str, work: f64, unit: &str, f: impl Fn() -> Result<()>) -> Result<()> {
        const CALLS: usize = 20;
        if self.skips(name) {
            return Ok(());
        }
        for _ in 0..3 {
            f()?;
        }
        self.gpu.synchronize()?;
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            for _ in 0..CALLS {
                f()?;
            }
            self.gpu.synchronize()?;
            times.push(start.elapsed().as_secs_f64() / CALLS as f64);
        }
        times.sort_by(f64::total_cmp);
        println!("time {name}: {:.3} ms, {:.0} {unit}", times[2] * 1e3, work / times[2]);
        Ok(())
    }
}

fn rows(c: &mut Checker) -> Result<()> {
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
        c.check(&format!("linear square {size}"), &[x, square, b], 1, |t| linear(&t[0], &t[1], Some(&t[2])))?;
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

fn rotary(c: &mut Checker) -> Result<()> {
    for (b, h, t, d) in [(1, 9, 1, 64), (2, 3, 129, 64), (2, 3, 17, 6), (1, 4, 33, 128)] {
        let angles = randn(&[t, d / 2])?;
        let name = format!("rope {b}x{h}x{t}x{d}");
        c.check(&name, &[randn(&[b, t, h, d])?, angles.cos()?, angles.sin()?], 1, |x| {
            rope(&x[0].transpose(1, 2)?, &x[1], &x[2])
        })?;
    }
    Ok(())
}

fn losses(c: &mut Checker) -> Result<()> {
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

fn attentions(c: &mut Checker) -> Result<()> {
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

/// New positions of sequences of different lengths, stored into their cache and attended to.
fn side_by_side(c: &mut Checker) -> Result<()> {
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

fn training(c: &mut Checker) -> Result<()> {
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

/// A linear of a layer to be checked: sizes, whether it has a bias, the rank of its update.
#[derive(Clone, Copy)]
struct Spec {
    outputs: usize,
    inputs: usize,
    bias: bool,
    rank: usize,
}

/// What a layer's linears are made of, out of a list of tensors: x, A and B of all updates, weights, biases, the rest.
struct Parts<'a> {
    updates: std::slice::Iter<'a, Tensor>,
    frozen: std::slice::Iter<'a, Tensor>,
}

const SCALING: f64 = 2.;

impl Spec {
    /// Fresh tensors: the update's and the frozen ones.
    fn tensors(self) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let matrix = |n: usize, k: usize| randn(&[n, k])? / (k as f64).sqrt();
        let mut update = Vec::new();
        if self.rank > 0 {
            update = vec![matrix(self.rank, self.inputs)?, matrix(self.outputs, self.rank)?];
        }
        let mut frozen = vec![matrix(self.outputs, self.inputs)?];
        if self.bias {
            frozen.push(randn(&[self.outputs])?);
        }
        Ok((update, frozen))
    }

    fn adapted(self, parts: &mut Parts<'_>) -> Result<Adapted> {
        let mut frozen = || match parts.frozen.next() {
            Some(t) => Ok(t.clone()),
            None => candle_core::bail!("too few tensors"),
        };
        let weight = frozen()?;
        let bias = if self.bias { Some(frozen()?) } else { None };
        let mut update = || match parts.updates.next() {
            Some(t) => t.to_dtype(DType::F32),
            None => candle_core::bail!("too few tensors"),
        };
        let lora = if self.rank > 0 { Some((update()?, update()?, SCALING)) } else { None };
        Ok(Adapted { weight, bias, lora })
    }
}

/// A linear with its update as a graph of small operations.
fn apply(l: &Adapted, x: &Tensor) -> Result<Tensor> {
    let y = linear(x, &l.weight, l.bias.as_ref())?;
    let Some((a, b, scaling)) = &l.lora else { return Ok(y) };
    let (a, b) = (a.to_dtype(x.dtype())?, b.to_dtype(x.dtype())?);
    let low = (x.flatten_to(1)?.matmul(&a.t()?)? * *scaling)?;
    y.clone() + low.matmul(&b.t()?)?.reshape(y.shape())?
}

fn split(x: &Tensor, d: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    x.reshape((b, t, width / d, d))?.transpose(1, 2)
}

fn decoder_graph(l: &DecoderLayer<'_>, x: &Tensor, angles: [&Tensor; 2], mask: Mask<'_>) -> Result<Tensor> {
    let [q, k, v, o, gate, up, down] = &l.linears;
    let d = 2 * angles[0].dim(1)?;
    let y = rms_norm(x, l.input_norm, l.eps)?;
    let q = rope(&split(&apply(q, &y)?, d)?, angles[0], angles[1])?;
    let k = rope(&split(&apply(k, &y)?, d)?, angles[0], angles[1])?;
    let y = attention(&q, &k, &split(&apply(v, &y)?, d)?, mask, 1. / (d as f64).sqrt())?;
    let x = (x + apply(o, &y.transpose(1, 2)?.flatten_from(2)?)?)?;
    let y = rms_norm(&x, l.post_norm, l.eps)?;
    &x + apply(down, &silu_mul(&apply(gate, &y)?, &apply(up, &y)?)?)?
}

fn encoder_graph(l: &EncoderLayer<'_>, x: &Tensor, mask: Mask<'_>) -> Result<Tensor> {
    let [q, k, v, o, inner, outer] = &l.linears;
    let d = x.dim(2)? / l.heads;
    let (q, k) = (split(&apply(q, x)?, d)?, split(&apply(k, x)?, d)?);
    let y = attention(&q, &k, &split(&apply(v, x)?, d)?, mask, 1. / (d as f64).sqrt())?;
    let x = (apply(o, &y.transpose(1, 2)?.flatten_from(2)?)? + x)?;
    let x = layer_norm(&x, l.attention_norm.0, l.attention_norm.1, l.attention_norm.2)?;
    let y = (apply(outer, &gelu(&apply(inner, &x)?)?)? + &x)?;
    layer_norm(&y, l.norm.0, l.norm.1, l.norm.2)
}

/// The tensors of a layer: x, all updates, all frozen ones of the linears, and the number of those that are trained.
fn layer_tensors(x: Tensor, specs: &[Spec]) -> Result<(Vec<Tensor>, usize)> {
    let (mut all, mut frozen) = (vec![x], Vec::new());
    for spec in specs {
        let (update, rest) = spec.tensors()?;
        all.extend(update);
        frozen.extend(rest);
    }
    let trained = all.len();
    all.extend(frozen);
    Ok((all, trained))
}

/// Which form of a layer a check runs on the GPU in bf16; float32 always runs the graph.
const FORMS: [(&str, bool, bool); 3] =
    [("graph", false, true), ("whole", true, true), ("again", true, false)];

fn layers(c: &mut Checker) -> Result<()> {
    let spec = |outputs, inputs, bias, rank| Spec { outputs, inputs, bias, rank };
    for (b, t, h, hkv, d, m, rank, bias) in [
        (3, 77, 9, 3, 64, 256, 32, false),
        (2, 130, 4, 1, 32, 96, 5, true),
        (1, 65, 2, 2, 128, 200, 8, false),
    ] {
        let (width, rows) = (h * d, (h * d, hkv * d));
        let specs = [
            spec(rows.0, width, bias, rank),
            spec(rows.1, width, bias, rank),
            spec(rows.1, width, bias, if bias { 0 } else { rank }),
            spec(width, rows.0, false, rank),
            spec(m, width, false, rank),
            spec(m, width, false, rank),
            spec(width, m, false, rank),
        ];
        let (mut inputs, trained) = layer_tensors(randn(&[b, t, width])?, &specs)?;
        let norms = inputs.len();
        let angles = randn(&[t, d / 2])?;
        inputs.extend([randn(&[width])?, randn(&[width])?, angles.cos()?, angles.sin()?]);
        let lengths: Vec<usize> = (0..b).map(|i| t - 17 * i).collect();
        for (form, whole, keep) in FORMS {
            let name = format!("decoder layer {b}x{t}x{h}({hkv})x{d} {form}");
            c.check(&name, &inputs, trained, |t| {
                let mut parts = Parts { updates: t[1..trained].iter(), frozen: t[trained..].iter() };
                let linears = specs.iter().map(|s| s.adapted(&mut parts)).collect::<Result<Vec<_>>>()?;
                let Ok(linears) = linears.try_into() else { candle_core::bail!("seven linears") };
                let layer = DecoderLayer {
                    input_norm: &t[norms],
                    post_norm: &t[norms + 1],
                    linears,
                    heads: h,
                    kv_heads: hkv,
                    eps: 1e-5,
                };
                let (cos, sin) = (&t[norms + 2], &t[norms + 3]);
                if whole && t[0].dtype() == DType::BF16 {
                    let lengths: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
                    let lengths = Tensor::new(lengths, t[0].device())?;
                    return layer.forward(&t[0], (cos, sin), Some(&lengths), keep);
                }
                decoder_graph(&layer, &t[0], [cos, sin], Mask::CausalKeys(&lengths))
            })?;
        }
    }
    for (b, t, h, d, m, rank) in [(5, 61, 12, 32, 256, 32), (2, 130, 3, 48, 160, 3)] {
        let width = h * d;
        let square = spec(width, width, true, rank);
        let specs = [
            square,
            square,
            spec(width, width, false, rank),
            square,
            spec(m, width, true, rank),
            spec(width, m, true, rank),
        ];
        let (mut inputs, trained) = layer_tensors(randn(&[b, t, width])?, &specs)?;
        let norms = inputs.len();
        inputs.extend([randn(&[width])?, randn(&[width])?, randn(&[width])?, randn(&[width])?]);
        let lengths: Vec<usize> = (0..b).map(|i| t - 11 * i).collect();
        for (form, whole, keep) in FORMS {
            let name = format!("encoder layer {b}x{t}x{h}x{d} {form}");
            c.check(&name, &inputs, trained, |t| {
                let mut parts = Parts { updates: t[1..trained].iter(), frozen: t[trained..].iter() };
                let linears = specs.iter().map(|s| s.adapted(&mut parts)).collect::<Result<Vec<_>>>()?;
                let Ok(linears) = linears.try_into() else { candle_core::bail!("six linears") };
                let layer = EncoderLayer {
                    attention_norm: (&t[norms], &t[norms + 1], 1e-5),
                    norm: (&t[norms + 2], &t[norms + 3], 1e-5),
                    linears,
                    heads: h,
                };
                if whole && t[0].dtype() == DType::BF16 {
                    let lengths: Vec<u32> = lengths.iter().map(|&n| n as u32).collect();
                    let lengths = Tensor::new(lengths, t[0].device())?;
                    return layer.forward(&t[0], Some(&lengths), keep);
                }
                encoder_graph(&layer, &t[0], Mask::Keys(&lengths))
            })?;
        }
    }
    Ok(())
}

/// Layers of SmolLM2-135M and MiniLM, forward, and forward with backward.
fn layer_timings(c: &Checker) -> Result<()> {
    let (b, t, width, rank) = (128, 190, 576, 32);
    let spec = |outputs, inputs| Spec { outputs, inputs, bias: false, rank };
    let specs = [
        spec(576, width),
        spec(192, width),
        spec(192, width),
        spec(width, 576),
        spec(1536, width),
        spec(1536, width),
        spec(width, 1536),
    ];
    let (tensors, trained) = layer_tensors(randn(&[b, t, width])?, &specs)?;
    let mut on_gpu = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let tensor = tensor.to_device(&c.gpu)?;
        let tensor = if i > 0 && i < trained { tensor } else { tensor.to_dtype(DType::BF16)? };
        on_gpu.push(if i < trained { Var::from_tensor(&tensor)?.into_inner() } else { tensor });
    }
    let mut parts = Parts { updates: on_gpu[1..trained].iter(), frozen: on_gpu[trained..].iter() };
    let linears = specs.iter().map(|s| s.adapted(&mut parts)).collect::<Result<Vec<_>>>()?;
    let Ok(linears) = linears.try_into() else { candle_core::bail!("seven linears") };
    let norm = randn(&[width])?.to_device(&c.gpu)?.to_dtype(DType::BF16)?;
    let angles = randn(&[t, 32])?.to_device(&c.gpu)?;
    let layer =
        DecoderLayer { input_norm: &norm, post_norm: &norm, linears, heads: 9, kv_heads: 3, eps: 1e-5 };
    let tokens = (b * t) as f64 * 1e-6;
    c.time("decoder layer 24320 tokens", tokens, "Mtok/s", || {
        layer.forward(&on_gpu[0], (&angles, &angles), None, false).map(drop)
    })?;
    // Two layers and one, so that what is around them cancels out.
    for count in [1, 2, 3] {
        c.time(&format!("decoder layers and backward, {count}"), count as f64 * tokens, "Mtok/s", || {
            let mut x = on_gpu[0].clone();
            for _ in 0..count {
                x = layer.forward(&x, (&angles, &angles), None, true)?;
            }
            x.narrow(0, 0, 1)?.sum_all()?.backward().map(drop)
        })?;
    }
    Ok(())
}

fn timings(c: &Checker) -> Result<()> {
    let gpu = &c.gpu;
    let r = |shape: &[usize]| randn(shape)?.to_device(gpu)?.to_dtype(DType::BF16);
    let var = |t: Tensor| -> Result<Tensor> { Ok(Var::from_tensor(&t)?.into_inner()) };
    let bytes = |n: usize| 2e-9 * n as f64;
    let (x, w) = (r(&[32768, 1024])?, r(&[1024])?);
    let n = x.elem_count();
    c.time("layer_norm 32768x1024", bytes(2 * n), "GB/s", || layer_norm(&x, &w, &w, 1e-5).map(drop))?;
    c.time("rms_norm 32768x1024", bytes(2 * n), "GB/s", || rms_norm(&x, &w, 1e-5).map(drop))?;
    c.time("gelu 32768x1024", bytes(2 * n), "GB/s", || gelu(&x).map(drop))?;
    c.time("silu_mul 32768x1024", bytes(3 * n), "GB/s", || silu_mul(&x, &x).map(drop))?;
    let y = x.reshape((8, 4096, 16, 64))?.transpose(1, 2)?;
    let angles = randn(&[4096, 32])?.to_device(gpu)?;
    c.time("rope 8x16x4096x64", bytes(2 * n), "GB/s", || rope(&y, &angles, &angles).map(drop))?;
    let (logits, targets) = (r(&[8192, 32000])?, Tensor::zeros(8192, DType::U32, gpu)?);
    let n = logits.elem_count();
    c.time("cross_entropy 8192x32000", bytes(n), "GB/s", || cross_entropy(&logits, &targets).map(drop))?;
    let tracked = var(logits)?;
    c.time("cross_entropy backward (with candle's sum)", bytes(5 * n), "GB/s", || {
        cross_entropy(&tracked, &targets)?.backward().map(drop)
    })?;
    for (b, h, hkv, tq, tk, d) in
        [(64, 12, 12, 512, 512, 32), (1, 32, 8, 4096, 4096, 128), (8, 16, 16, 2048, 2048, 64)]
    {
        let (q, k, v) = (var(r(&[b, h, tq, d])?)?, var(r(&[b, hkv, tk, d])?)?, var(r(&[b, hkv, tk, d])?)?);
        let causal = d != 32;
        let mask = if causal { Mask::Causal { offset: 0 } } else { Mask::None };
        let flop = 4e-12 * (b * h * tq * tk * d) as f64 / if causal { 2. } else { 1. };
        let name = format!("attention {b}x{h}({hkv})x{tq}x{d}");
        c.time(&name, flop, "TFLOP/s", || attention(&q, &k, &v, mask, 0.1).map(drop))?;
        // The sum is of one batch row's head: candle's sum of everything would take longer than the rest.
        c.time(&format!("{name} and backward"), 3.5 * flop, "TFLOP/s", || {
            attention(&q, &k, &v, mask, 0.1)?
                .narrow(0, 0, 1)?
                .narrow(1, 0, 1)?
                .sum_all()?
                .backward()
                .map(drop)
        })?;
    }
    for (h, hkv, tk, d) in [(9, 3, 4096, 64), (32, 8, 8192, 128)] {
        let (q, k, v) = (r(&[1, h, 1, d])?, r(&[1, hkv, tk, d])?, r(&[1, hkv, tk, d])?);
        c.time(&format!("decode {h}({hkv}) over {tk}x{d}"), bytes(2 * hkv * tk * d), "GB/s", || {
            attention(&q, &k, &v, Mask::None, 0.1).map(drop)
        })?;
    }
    let zeros = || Tensor::zeros(64 << 20, DType::F32, gpu);
    let (p, m, v, g) = (zeros()?, zeros()?, zeros()?, zeros()?);
    let step = || adamw_step(&p, &m, &v, &g, &AdamW::default(), 1, 1.);
    c.time("adamw_step 64Mi", 28e-9 * (64 << 20) as f64, "GB/s", step)?;
    c.time("global_norm 64Mi", 4e-9 * (64 << 20) as f64, "GB/s", || global_norm(&[&g]).map(drop))
}

fn main() -> Result<ExitCode> {
    let gpu = match Device::new_cuda(0) {
        Ok(gpu) => gpu,
        Err(e) => {
            eprintln!("no gpu to check: {e}");
            return Ok(ExitCode::from(2));
        }
    };
    let mut c =
        Checker { gpu, filter: std::env::args().nth(1), floor: 0., rounding: 2e-2, failed: 0, ran: 0 };
    rows(&mut c)?;
    rotary(&mut c)?;
    losses(&mut c)?;
    // A query that sees one key has no gradient: what is left there is rounding.
    c.floor = 0.3;
    attentions(&mut c)?;
    side_by_side(&mut c)?;
    c.floor = 0.;
    training(&mut c)?;
    // Every one of a layer's dozen steps rounds; the graph of small operations, checked beside it, is no nearer.
    c.rounding = 8e-2;
    layers(&mut c)?;
    timings(&c)?;
    layer_timings(&c)?;
    println!("{} checks, {} failed", c.ran, c.failed);
    Ok(if c.failed == 0 && c.ran > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
