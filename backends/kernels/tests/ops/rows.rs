//! Linear layers, norms, rotary embedding, activations, and the loss.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use e2llm_kernels::{
    IGNORED, cross_entropy, dense_linear, gelu, head_loss, layer_norm, linear, lora_linear, rms_norm, rope,
    silu_mul,
};

use crate::{check_forward, check_gradients, check_gradients_in, difference, randn, values};

/// Leading sizes: one row, few rows (the path that reads weights in place), odd, and several blocks.
const LEADING: [&[usize]; 4] = [&[1], &[2, 2], &[3, 7], &[2, 300]];

fn with(leading: &[usize], last: usize) -> Vec<usize> {
    [leading, &[last]].concat()
}

#[test]
fn linear_matches_the_product() {
    for leading in LEADING {
        for (inner, out) in [(33, 65), (64, 300)] {
            let inputs = [randn(&with(leading, inner)), randn(&[out, inner]), randn(&[out])];
            let name = format!("linear {leading:?} {inner}x{out}");
            // Scaled so that the tolerances mean the same for every inner size.
            let scale = 1. / (inner as f64).sqrt();
            let product = |t: &[Tensor]| t[0].broadcast_matmul(&t[1].t()?);
            check_forward(
                &name,
                &inputs[..2],
                |t| linear(&t[0], &t[1], None)? * scale,
                |t| product(t)? * scale,
            );
            check_forward(
                &name,
                &inputs,
                |t| linear(&t[0], &t[1], Some(&t[2]))? * scale,
                |t| product(t)?.broadcast_add(&t[2])? * scale,
            );
        }
    }
}

#[test]
fn linear_passes_a_gradient_to_its_input_only() {
    for leading in LEADING {
        let (weight, bias) = (randn(&[65, 33]), randn(&[65]));
        let x = [randn(&with(leading, 33))];
        let f = |t: &[Tensor]| {
            linear(&t[0], &weight.to_dtype(t[0].dtype())?, Some(&bias.to_dtype(t[0].dtype())?))
        };
        check_gradients("linear", &x, f);
        check_gradients_in("linear", DType::F32, 1e-5, &x, f);
        check_gradients_in("linear", DType::BF16, 3e-2, &x, f);
    }
    let [x, weight, bias] = [&[4, 8][..], &[5, 8], &[5]].map(|s| Var::from_tensor(&randn(s)).unwrap());
    let y = linear(&x, &weight, Some(&bias)).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some());
    assert!(grads.get(&weight).is_none() && grads.get(&bias).is_none());
}

#[test]
fn linear_names_what_does_not_fit() {
    let e = linear(&randn(&[2, 3]), &randn(&[4, 5]), None).unwrap_err().to_string();
    assert!(e.contains("linear") && e.contains("[2, 3]") && e.contains("[4, 5]"), "{e}");
    let e = linear(&randn(&[2, 5]), &randn(&[4, 5]), Some(&randn(&[3]))).unwrap_err().to_string();
    assert!(e.contains("bias"), "{e}");
    let e = linear(&randn(&[2, 5]).to_dtype(DType::F32).unwrap(), &randn(&[4, 5]), None).unwrap_err();
    assert!(e.to_string().contains("F32"), "{e}");
}

#[test]
fn a_dense_layer_is_the_product_with_gradients_to_all() {
    for leading in LEADING {
        let inputs = [randn(&with(leading, 33)), randn(&[65, 33]), randn(&[65])];
        let f = |t: &[Tensor]| dense_linear(&t[0], &t[1], Some(&t[2]))? * 0.2;
        check_forward("dense_linear", &inputs, f, |t| {
            t[0].broadcast_matmul(&t[1].t()?)?.broadcast_add(&t[2])? * 0.2
        });
        check_gradients("dense_linear", &inputs, f);
        check_gradients_in("dense_linear", DType::F32, 1e-5, &inputs, f);
        check_gradients_in("dense_linear", DType::BF16, 3e-2, &inputs, f);
    }
    let e = dense_linear(&randn(&[2, 3]), &randn(&[4, 5]), None).unwrap_err().to_string();
    assert!(e.contains("[2, 3]") && e.contains("[4, 5]"), "{e}");
}

#[test]
fn an_update_of_low_rank_is_added_with_gradients_to_its_factors() {
    const SCALING: f64 = 0.5;
    for leading in LEADING {
        for biased in [false, true] {
            let (weight, bias) = (randn(&[65, 33]), randn(&[65]));
            let inputs = [randn(&with(leading, 33)), randn(&[5, 33]), randn(&[65, 5])];
            let like = |t: &Tensor, x: &Tensor| t.to_dtype(x.dtype()).unwrap();
            let f = |t: &[Tensor]| {
                let bias = biased.then(|| like(&bias, &t[0]));
                lora_linear(&t[0], &like(&weight, &t[0]), bias.as_ref(), (&t[1], &t[2]), SCALING)? * 0.1
            };
            check_forward("lora_linear", &inputs, f, |t| {
                let update = (t[2].matmul(&t[1])? * SCALING)?;
                let y = t[0].broadcast_matmul(&(&weight + update)?.t()?)?;
                (if biased { y.broadcast_add(&bias)? } else { y }) * 0.1
            });
            check_gradients("lora_linear", &inputs, f);
            check_gradients_in("lora_linear", DType::F32, 1e-5, &inputs, f);
            check_gradients_in("lora_linear", DType::BF16, 3e-2, &inputs, f);
        }
    }
    let x = randn(&[2, 33]);
    let e = lora_linear(&x, &randn(&[65, 33]), None, (&randn(&[5, 33]), &randn(&[65, 4])), 1.0);
    assert!(e.unwrap_err().to_string().contains("[65, 4]"));
}

/// Large, so that rows of one element near zero are still smooth enough for differences.
const EPS: f64 = 0.1;

fn composed_rms(t: &[Tensor]) -> Result<Tensor> {
    let mean = t[0].sqr()?.mean_keepdim(D::Minus1)?;
    t[0].broadcast_div(&(mean + EPS)?.sqrt()?)?.broadcast_mul(&t[1])
}

fn composed_layer(t: &[Tensor]) -> Result<Tensor> {
    let centred = t[0].broadcast_sub(&t[0].mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + EPS)?.sqrt()?)?.broadcast_mul(&t[1])?.broadcast_add(&t[2])
}

#[test]
fn norms_match_their_definition() {
    for leading in LEADING {
        for d in [1, 17, 384] {
            let inputs = [randn(&with(leading, d)), randn(&[d]), randn(&[d])];
            let rms = |t: &[Tensor]| rms_norm(&t[0], &t[1], EPS);
            let layer = |t: &[Tensor]| layer_norm(&t[0], &t[1], &t[2], EPS);
            check_forward("rms_norm", &inputs[..2], rms, composed_rms);
            check_gradients("rms_norm", &inputs[..2], rms);
            if d > 1 {
                // With one element the deviation from the mean is zero, and its sign noise.
                check_forward("layer_norm", &inputs, layer, composed_layer);
                check_gradients_in("layer_norm", DType::F32, 1e-4, &inputs, layer);
                check_gradients_in("rms_norm", DType::F32, 1e-4, &inputs[..2], rms);
            }
            check_gradients("layer_norm", &inputs, layer);
        }
    }
}

#[test]
fn rms_norm_rounds_before_the_weight_as_the_reference_does() {
    let x = randn(&[5, 64]).to_dtype(DType::BF16).unwrap();
    let weight = randn(&[64]).to_dtype(DType::BF16).unwrap();
    let wide = x.to_dtype(DType::F32).unwrap();
    let mean = wide.sqr().unwrap().mean_keepdim(1).unwrap();
    let normal = wide.broadcast_div(&(mean + 1e-6).unwrap().sqrt().unwrap()).unwrap();
    let expected = normal.to_dtype(DType::BF16).unwrap().broadcast_mul(&weight).unwrap();
    let got = rms_norm(&x, &weight, 1e-6).unwrap();
    let different = values(&got).iter().zip(values(&expected)).filter(|(a, b)| **a != *b).count();
    // The order of the float32 sum may move a value over a rounding boundary, which is rare.
    assert!(different <= 3, "{different} of 320 values differ");
}

#[test]
fn frozen_norm_parameters_cost_nothing() {
    let x = Var::from_tensor(&randn(&[4, 8])).unwrap();
    let (weight, bias) = (randn(&[8]), randn(&[8]));
    let y = layer_norm(&x, &weight, &bias, 1e-5).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_some() && grads.get(&weight).is_none() && grads.get(&bias).is_none());
}

fn composed_rope(t: &[Tensor]) -> Result<Tensor> {
    let half = t[0].dim(3)? / 2;
    let (a, b) = (t[0].narrow(3, 0, half)?, t[0].narrow(3, half, half)?);
    let first = (a.broadcast_mul(&t[1])? - b.broadcast_mul(&t[2])?)?;
    let second = (b.broadcast_mul(&t[1])? + a.broadcast_mul(&t[2])?)?;
    Tensor::cat(&[first, second], 3)
}

#[test]
fn rope_rotates_half_split_pairs() {
    for (b, h, t, d) in [(1, 1, 1, 2), (2, 3, 5, 6), (2, 4, 129, 64)] {
        let inputs = [randn(&[b, h, t, d]), randn(&[t, d / 2]), randn(&[t, d / 2])];
        check_forward("rope", &inputs, |t| rope(&t[0], &t[1], &t[2]), composed_rope);
        let f = |x: &[Tensor]| rope(&x[0], &inputs[1], &inputs[2]);
        check_gradients("rope", &inputs[..1], f);
        // As the models call it: a view of a projection.
        let projected = [randn(&[b, t, h, d])];
        let f = |x: &[Tensor]| rope(&x[0].transpose(1, 2)?, &inputs[1], &inputs[2]);
        let expected =
            composed_rope(&[projected[0].transpose(1, 2).unwrap(), inputs[1].clone(), inputs[2].clone()]);
        assert!(difference(&f(&projected).unwrap(), &expected.unwrap()) < 1e-12);
        check_gradients("rope of a view", &projected, f);
    }
}

#[test]
fn activations_match_their_definition() {
    for leading in LEADING {
        let inputs = [(randn(&with(leading, 77)) * 3.).unwrap(), randn(&with(leading, 77))];
        let silu = |t: &[Tensor]| silu_mul(&t[0], &t[1]);
        check_forward("silu_mul", &inputs, silu, |t| t[0].silu()? * &t[1]);
        check_gradients("silu_mul", &inputs, silu);
        check_gradients_in("silu_mul", DType::F32, 1e-5, &inputs, silu);
        let f = |t: &[Tensor]| gelu(&t[0]);
        check_forward("gelu", &inputs[..1], f, |t| t[0].gelu_erf());
        check_gradients("gelu", &inputs[..1], f);
        check_gradients_in("gelu", DType::F32, 1e-5, &inputs[..1], f);
    }
}

#[test]
fn float32_gelu_keeps_its_relative_accuracy_in_the_tails() {
    let x: Vec<f32> = (-1200..=1200).map(|i| i as f32 / 100.).collect();
    let x = Tensor::new(x, &Device::Cpu).unwrap();
    let got = values(&gelu(&x).unwrap());
    let expected = values(&gelu(&x.to_dtype(DType::F64).unwrap()).unwrap());
    for ((x, a), b) in values(&x).iter().zip(got).zip(expected) {
        assert!((a - b).abs() <= 2e-6 * b.abs() + 1e-30, "gelu({x}) = {a}, expected {b}");
    }
}

#[test]
fn activations_survive_extreme_values() {
    let x = Tensor::new(&[-1e30f32, -200., -100., 0., 100., 200., 1e30], &Device::Cpu).unwrap();
    let one = x.ones_like().unwrap();
    for y in [gelu(&x).unwrap(), silu_mul(&x, &one).unwrap()] {
        let y = values(&y);
        assert!(y[..3].iter().all(|y| y.abs() < 1e-30), "{y:?}");
        assert_eq!((y[3], y[4], y[5]), (0., 100., 200.));
    }
    let nan = Tensor::new(&[f32::NAN], &Device::Cpu).unwrap();
    for y in [gelu(&nan).unwrap(), silu_mul(&nan, &nan).unwrap()] {
        assert!(y.to_vec1::<f32>().unwrap()[0].is_nan());
    }
}

fn composed_loss(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F64)?;
    let top = logits.max_keepdim(1)?.detach();
    let shifted = logits.broadcast_sub(&top)?;
    let log_probs = shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(1)?.log()?)?;
    let mut total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    for (i, &t) in targets.iter().enumerate().filter(|(_, t)| **t != IGNORED) {
        total = (total - log_probs.get(i)?.get(t as usize)?)?;
    }
    Ok(total)
}

#[test]
fn cross_entropy_sums_over_kept_rows() {
    for (n, v) in [(1, 5), (7, 33), (300, 1001)] {
        let logits = [(randn(&[n, v]) * 4.).unwrap()];
        let targets: Vec<u32> =
            (0..n).map(|i| if i % 3 == 1 { IGNORED } else { ((i * 7919) % v) as u32 }).collect();
        let t = Tensor::new(targets.clone(), &Device::Cpu).unwrap();
        let f = |x: &[Tensor]| cross_entropy(&x[0], &t);
        check_forward("cross_entropy", &logits, f, |x| composed_loss(&x[0], &targets));
        check_gradients("cross_entropy", &logits, f);
        check_gradients_in("cross_entropy", DType::F32, 1e-5, &logits, f);
        check_gradients_in("cross_entropy", DType::BF16, 2e-2, &logits, f);
    }
}

#[test]
fn cross_entropy_is_stable_and_loud() {
    let logits = Tensor::new(&[[1e4f32, -1e4, 0.], [0., 0., 0.]], &Device::Cpu).unwrap();
    let loss = |t: &[u32]| cross_entropy(&logits, &Tensor::new(t, &Device::Cpu).unwrap());
    let none = loss(&[IGNORED, IGNORED]).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(none, 0.);
    let one = loss(&[2, 1]).unwrap().to_scalar::<f32>().unwrap();
    assert!((one - (1e4 + 3f32.ln())).abs() < 1e-2, "{one}");
    let e = loss(&[0, 3]).unwrap_err().to_string();
    assert!(e.contains("target 3 of row 1"), "{e}");
    let nan = Tensor::new(&[[f32::NAN, 0.]], &Device::Cpu).unwrap();
    let t = Tensor::new(&[1u32], &Device::Cpu).unwrap();
    assert!(cross_entropy(&nan, &t).unwrap().to_scalar::<f32>().unwrap().is_nan());
}

#[test]
fn head_loss_is_the_output_layer_and_its_loss() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 3e-2)] {
        let (x, weight) = (randn(&[7, 12]), randn(&[23, 12]).to_dtype(dtype).unwrap());
        let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        let targets = Tensor::new(&[3u32, 0, IGNORED, 22, 3, 7, IGNORED], &Device::Cpu).unwrap();
        let logits = linear(&x, &weight, None).unwrap();
        let graph = cross_entropy(&logits, &targets).unwrap();
        let whole = head_loss(&x, &weight, &targets).unwrap().unwrap();
        assert!(difference(&whole, &graph) < 1e-6, "{dtype:?}");
        let gradient = |loss: &Tensor| {
            let loss = (loss * 3.0).unwrap();
            e2llm_kernels::backward(&loss).unwrap().get(&x).unwrap().clone()
        };
        let e = difference(&gradient(&whole), &gradient(&graph));
        assert!(e < tolerance, "{dtype:?}: {e:.1e}");
        let beyond = Tensor::new(&[23u32; 7], &Device::Cpu).unwrap();
        assert!(head_loss(&x, &weight, &beyond).is_err());
        assert!(head_loss(&x, &weight.narrow(1, 0, 11).unwrap(), &targets).is_err());
    }
}
