//! Times on the GPU.

use candle_core::{DType, Result, Tensor, Var};
use e2llm_kernels::*;

use crate::checker::{Checker, randn};
use crate::layers::{Parts, Spec, layer_tensors};

pub(crate) fn timings(c: &Checker) -> Result<()> {
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
    for (b, h, hkv, tq, tk, d) in [
        (64, 12, 12, 512, 512, 32),
        (1, 32, 8, 4096, 4096, 128),
        (8, 16, 16, 2048, 2048, 64),
        // The benchmarks' encoders and decoders.
        (64, 16, 16, 256, 256, 64),
        (128, 12, 12, 256, 256, 32),
        (1, 32, 32, 560, 560, 128),
        (1, 32, 32, 304, 304, 128),
        (1, 9, 3, 304, 304, 64),
    ] {
        let (q, k, v) = (var(r(&[b, h, tq, d])?)?, var(r(&[b, hkv, tk, d])?)?, var(r(&[b, hkv, tk, d])?)?);
        let causal = d != 32 && tq != 256;
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
    let decodes = [
        (1, 9, 3, 200, 64),
        (1, 9, 3, 4096, 64),
        (1, 32, 32, 350, 128),
        (32, 32, 32, 365, 128),
        (1, 32, 8, 8192, 128),
    ];
    for (b, h, hkv, tk, d) in decodes {
        let (q, k, v) = (r(&[b, h, 1, d])?, r(&[b, hkv, tk, d])?, r(&[b, hkv, tk, d])?);
        c.time(&format!("decode {b}x{h}({hkv}) over {tk}x{d}"), bytes(2 * b * hkv * tk * d), "GB/s", || {
            attention(&q, &k, &v, Mask::None, 0.1).map(drop)
        })?;
    }
    let zeros = || Tensor::zeros(64 << 20, DType::F32, gpu);
    let (p, m, v, g) = (zeros()?, zeros()?, zeros()?, zeros()?);
    let step = || adamw_step(&p, &m, &v, &g, &AdamW::default(), 1, 1.);
    c.time("adamw_step 64Mi", 28e-9 * (64 << 20) as f64, "GB/s", step)?;
    c.time("global_norm 64Mi", 4e-9 * (64 << 20) as f64, "GB/s", || global_norm(&[&g]).map(drop))
}

/// Layers of SmolLM2-135M and MiniLM, forward, and forward with backward.
pub(crate) fn layer_timings(c: &Checker) -> Result<()> {
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
        DecoderLayer::forward(
            std::slice::from_ref(&layer),
            &on_gpu[0],
            (&angles, &angles),
            Seen::Before(None),
            false,
        )
        .map(drop)
    })?;
    // Two layers and one, so that what is around them cancels out.
    for count in [1, 2, 3] {
        c.time(&format!("decoder layers and backward, {count}"), count as f64 * tokens, "Mtok/s", || {
            let layers = vec![layer.clone(); count];
            let x = DecoderLayer::forward(&layers, &on_gpu[0], (&angles, &angles), Seen::Before(None), true)?;
            backward(&x.narrow(0, 0, 1)?.sum_all()?).map(drop)
        })?;
    }
    Ok(())
}
