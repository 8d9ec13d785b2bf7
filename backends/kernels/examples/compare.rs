//! Times every operation against the form composed of candle's own differentiable operations.
//!
//! Run with `cargo run --release -p e2llm-kernels --example compare [-- name]`, on an otherwise idle machine. Prints
//! median milliseconds of both forms, forward and forward plus backward, and their ratio.

use std::time::Instant;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use e2llm_kernels::{Mask, attention, cross_entropy, gelu, layer_norm, linear, rms_norm, rope, silu_mul};

type Form<'a> = dyn Fn(&[Tensor]) -> Result<Tensor> + 'a;

fn randn(shape: &[usize], dtype: DType) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// Median milliseconds of a call, over at least 5 calls and about half a second.
fn time(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 5 || (start.elapsed().as_secs_f64() < 0.5 && times.len() < 200) {
        let call = Instant::now();
        f()?;
        times.push(call.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn compare(name: &str, inputs: Vec<Tensor>, ours: &Form, composed: &Form) -> Result<()> {
    if std::env::args().nth(1).is_some_and(|filter| !name.contains(&filter)) {
        return Ok(());
    }
    let forward = |f: &Form| time(|| f(&inputs).map(drop));
    let (a, b) = (forward(ours)?, forward(composed)?);
    print!("{name:<44} forward {a:8.3} ms, composed {b:8.3} ms, ratio {:5.1}", b / a);
    let vars: Vec<Tensor> = inputs
        .iter()
        .map(|t| if t.dtype().is_int() { Ok(t.clone()) } else { Ok(Var::from_tensor(t)?.into_inner()) })
        .collect::<Result<_>>()?;
    let both = |f: &Form| time(|| f(&vars)?.sum_all()?.backward().map(drop));
    let (a, b) = (both(ours)?, both(composed)?);
    println!("; with backward {a:8.3} ms, composed {b:8.3} ms, ratio {:5.1}", b / a);
    Ok(())
}

fn naive_attention(t: &[Tensor], mask: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let ((b, h, _, d), (_, hkv, tk, _)) = (t[0].dims4()?, t[1].dims4()?);
    let repeat = |x: &Tensor| x.unsqueeze(2)?.expand((b, hkv, h / hkv, tk, d))?.reshape((b, h, tk, d));
    let (k, v) = (repeat(&t[1])?, repeat(&t[2])?);
    let mut scores = (t[0].matmul(&k.t()?)? * scale)?;
    if let Some(mask) = mask {
        scores = scores.broadcast_add(mask)?;
    }
    let p = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    p.broadcast_div(&p.sum_keepdim(D::Minus1)?)?.matmul(&v)
}

fn main() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        println!("{dtype:?}");
        let r = |shape: &[usize]| randn(shape, dtype);

        let t = 2048;
        let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0. }).collect();
        let mask = Tensor::from_vec(mask, (t, t), &Device::Cpu)?.to_dtype(dtype)?;
        let causal = Mask::Causal { offset: 0 };
        compare(
            "attention prefill 1x9(3)x2048x64 causal",
            vec![r(&[1, 9, t, 64])?, r(&[1, 3, t, 64])?, r(&[1, 3, t, 64])?],
            &|x| attention(&x[0], &x[1], &x[2], causal, 0.125),
            &|x| naive_attention(x, Some(&mask), 0.125),
        )?;
        compare(
            "attention encoder 16x12x256x32",
            vec![r(&[16, 12, 256, 32])?, r(&[16, 12, 256, 32])?, r(&[16, 12, 256, 32])?],
            &|x| attention(&x[0], &x[1], &x[2], Mask::None, 0.18),
            &|x| naive_attention(x, None, 0.18),
        )?;
        compare(
            "attention decode 1x9(3)x1x64 over 4096",
            vec![r(&[1, 9, 1, 64])?, r(&[1, 3, 4096, 64])?, r(&[1, 3, 4096, 64])?],
            &|x| attention(&x[0], &x[1], &x[2], Mask::None, 0.125),
            &|x| naive_attention(x, None, 0.125),
        )?;
        compare(
            "layer_norm 8192x384",
            vec![r(&[8192, 384])?, r(&[384])?, r(&[384])?],
            &|x| layer_norm(&x[0], &x[1], &x[2], 1e-5),
            &|x| {
                let c = x[0].broadcast_sub(&x[0].mean_keepdim(1)?)?;
                let r = (c.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                c.broadcast_div(&r)?.broadcast_mul(&x[1])?.broadcast_add(&x[2])
            },
        )?;
        compare(
            "rms_norm 2048x576",
            vec![r(&[2048, 576])?, r(&[576])?],
            &|x| rms_norm(&x[0], &x[1], 1e-5),
            &|x| {
                let r = (x[0].sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                x[0].broadcast_div(&r)?.broadcast_mul(&x[1])
            },
        )?;
        let (cos, sin) = (r(&[2048, 32])?, r(&[2048, 32])?);
        compare("rope 1x9x2048x64", vec![r(&[1, 9, 2048, 64])?], &|x| rope(&x[0], &cos, &sin), &|x| {
            let (a, b) = (x[0].narrow(3, 0, 32)?, x[0].narrow(3, 32, 32)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            Tensor::cat(&[first, (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?], 3)
        })?;
        compare("gelu 4096x1536", vec![r(&[4096, 1536])?], &|x| gelu(&x[0]), &|x| x[0].gelu_erf())?;
        compare(
            "silu_mul 2048x1536",
            vec![r(&[2048, 1536])?, r(&[2048, 1536])?],
            &|x| silu_mul(&x[0], &x[1]),
            &|x| x[0].silu()? * &x[1],
        )?;
        let targets = Tensor::from_vec((0..512u32).collect(), 512, &Device::Cpu)?;
        compare(
            "cross_entropy 512x49152",
            vec![r(&[512, 49152])?],
            &|x| cross_entropy(&x[0], &targets),
            &|x| {
                let c = x[0].broadcast_sub(&x[0].max_keepdim(1)?)?;
                let l = c.broadcast_sub(&c.exp()?.sum_keepdim(1)?.log()?)?;
                l.gather(&targets.unsqueeze(1)?, 1)?.sum_all()?.neg()
            },
        )?;
        for (rows, out, inner) in [(1, 1536, 576), (1, 49152, 576), (512, 1536, 576)] {
            let (weight, bias) = (r(&[out, inner])?, r(&[out])?);
            compare(
                &format!("linear {rows}x{inner} -> {out}"),
                vec![r(&[rows, inner])?],
                &|x| linear(&x[0], &weight, Some(&bias)),
                &|x| x[0].matmul(&weight.t()?)?.broadcast_add(&bias),
            )?;
        }
    }
    Ok(())
}
