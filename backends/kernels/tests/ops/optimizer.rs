//! The optimiser step against its definition in float64.

use candle_core::{DType, Device, Tensor, Var};
use e2llm_kernels::{AdamW, adamw_step, global_norm};

use crate::{difference, randn, values};

#[test]
fn adamw_follows_the_definition() {
    let settings = AdamW { lr: 3e-2, beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: 0.1 };
    for n in [1, 37, 40_000] {
        for dtype in [DType::F32, DType::BF16] {
            let start = randn(&[n]).to_dtype(DType::F32).unwrap();
            let p = Var::from_tensor(&start).unwrap();
            let (m, v) = (p.zeros_like().unwrap(), p.zeros_like().unwrap());
            let mut wide = values(&start);
            let (mut wm, mut wv) = (vec![0.; n], vec![0.; n]);
            for step in 1..=4 {
                let grad = randn(&[n]).to_dtype(dtype).unwrap();
                adamw_step(&p, &m, &v, &grad, &settings, step, 0.5).unwrap();
                for (i, g) in values(&grad).iter().enumerate() {
                    let g = 0.5 * g;
                    wide[i] *= 1. - settings.lr * settings.weight_decay;
                    wm[i] = settings.beta1 * wm[i] + (1. - settings.beta1) * g;
                    wv[i] = settings.beta2 * wv[i] + (1. - settings.beta2) * g * g;
                    let mean = wm[i] / (1. - settings.beta1.powi(step as i32));
                    let square = wv[i] / (1. - settings.beta2.powi(step as i32));
                    wide[i] -= settings.lr * mean / (square.sqrt() + settings.eps);
                }
            }
            for (got, expected) in [(p.as_tensor(), wide), (&m, wm), (&v, wv)] {
                let e = difference(got, &Tensor::new(expected, &Device::Cpu).unwrap());
                assert!(e < 2e-6, "{n} {dtype:?}: {e:.1e}");
            }
        }
    }
}

#[test]
fn adamw_refuses_what_it_cannot_update() {
    let p = randn(&[4]).to_dtype(DType::F32).unwrap();
    let zeros = || p.zeros_like().unwrap();
    let settings = AdamW::default();
    let e = adamw_step(&p, &zeros(), &zeros(), &randn(&[4]), &settings, 1, 1.).unwrap_err();
    assert!(e.to_string().contains("F64"), "{e}");
    let e = adamw_step(&p, &zeros(), &zeros(), &zeros(), &settings, 0, 1.).unwrap_err();
    assert!(e.to_string().contains("count from 1"), "{e}");
    let wide = p.to_dtype(DType::BF16).unwrap();
    let e = adamw_step(&wide, &zeros(), &zeros(), &zeros(), &settings, 1, 1.).unwrap_err();
    assert!(e.to_string().contains("p must be"), "{e}");
}

#[test]
fn global_norm_is_that_of_all_tensors_together() {
    let a = randn(&[3, 50_001]);
    let b = randn(&[7]).to_dtype(DType::F32).unwrap();
    let c = randn(&[5, 6]).to_dtype(DType::BF16).unwrap().t().unwrap();
    let squares: f64 = [&a, &b, &c].iter().flat_map(|t| values(t)).map(|x| x * x).sum();
    let norm = global_norm(&[&a, &b, &c]).unwrap();
    assert!((norm - squares.sqrt()).abs() < 1e-9 * norm);
    assert_eq!(global_norm(&[]).unwrap(), 0.);
}
