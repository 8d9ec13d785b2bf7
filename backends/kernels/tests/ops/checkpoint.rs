//! Checkpointing against the same function run directly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Result, Tensor, Var};
use e2llm_kernels::{checkpoint, gelu, linear, rms_norm};

use crate::{check_gradients, difference, randn};

fn block(t: &[Tensor]) -> Result<Tensor> {
    let h = gelu(&rms_norm(&t[0], &t[1], 1e-5)?)?;
    let low = h.matmul(&t[2].t()?)?.matmul(&t[3].t()?)?;
    &t[0] + (h + low)?
}

fn tensors() -> Vec<Tensor> {
    vec![randn(&[5, 8]), randn(&[8]), randn(&[2, 8]), randn(&[8, 2])]
}

#[test]
fn gradients_reach_any_number_of_inputs() {
    for used in 1..=4 {
        let all = tensors();
        let f = |t: &[Tensor]| {
            let mut t = t.to_vec();
            t.extend_from_slice(&all[t.len()..]);
            let inputs: Vec<&Tensor> = t.iter().collect();
            checkpoint(&inputs, block)
        };
        check_gradients("checkpoint", &all[..used], f);
    }
}

#[test]
fn chained_calls_equal_the_direct_form() {
    let vars: Vec<Var> = tensors().iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let t: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let run = |step: &dyn Fn(&Tensor) -> Result<Tensor>| -> Result<_> {
        // The parameters are used three times, so their gradients add up over the calls.
        let y = step(&step(&step(&t[0])?)?)?;
        Ok((y.clone(), y.sqr()?.sum_all()?.backward()?))
    };
    let (y, grads) = run(&|x| checkpoint(&[x, &t[1], &t[2], &t[3]], block)).unwrap();
    let (direct, expected) = run(&|x| block(&[x.clone(), t[1].clone(), t[2].clone(), t[3].clone()])).unwrap();
    assert_eq!(difference(&y, &direct), 0.);
    for var in &vars {
        assert!(difference(grads.get(var).unwrap(), expected.get(var).unwrap()) < 1e-12);
    }
}

#[test]
fn the_function_runs_again_only_if_something_is_trained() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = |count: &Arc<AtomicUsize>| {
        let count = count.clone();
        move |t: &[Tensor]| {
            count.fetch_add(1, Ordering::Relaxed);
            t[0].sqr()
        }
    };
    let x = randn(&[3]);
    let y = checkpoint(&[&x], counted(&count)).unwrap();
    assert!(!y.track_op());
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let x = Var::from_tensor(&x).unwrap();
    let loss = checkpoint(&[&x], counted(&count)).unwrap().sum_all().unwrap();
    for _ in 0..2 {
        let grads = loss.backward().unwrap();
        assert!(difference(grads.get(&x).unwrap(), &(x.as_tensor() * 2.).unwrap()) < 1e-12);
    }
    assert_eq!(count.load(Ordering::Relaxed), 4);
}

#[test]
fn inputs_may_differ_in_type_and_be_indices() {
    let ids = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
    let table = Var::from_tensor(&randn(&[4, 6]).to_dtype(DType::F32).unwrap()).unwrap();
    let weight = Var::from_tensor(&randn(&[3, 6]).to_dtype(DType::BF16).unwrap()).unwrap();
    let frozen = randn(&[6, 6]).to_dtype(DType::BF16).unwrap();
    let f = move |t: &[Tensor]| -> Result<Tensor> {
        let x = t[1].index_select(&t[0], 0)?.to_dtype(DType::BF16)?;
        linear(&x, &frozen, None)?.matmul(&t[2].t()?)
    };
    let direct = f(&[ids.clone(), table.as_tensor().clone(), weight.as_tensor().clone()]).unwrap();
    let expected = direct.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let y = checkpoint(&[&ids, &table, &weight], f).unwrap();
    let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(difference(&y, &direct), 0.);
    for var in [&table, &weight] {
        assert_eq!(difference(grads.get(var).unwrap(), expected.get(var).unwrap()), 0.);
        assert_eq!(grads.get(var).unwrap().dtype(), var.dtype());
    }
}

#[test]
fn errors_of_the_function_are_passed_on() {
    let x = Var::from_tensor(&randn(&[3])).unwrap();
    let e = checkpoint(&[&x], |_| candle_core::bail!("inner failure")).unwrap_err();
    assert!(e.to_string().contains("inner failure"));
}
