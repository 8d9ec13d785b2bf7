//! Gradients and steps of AdamW.

use crate::case::{Case, cases, gradients, norm, wide};
use candle_core::{DType, Tensor, Var};
use e2llm_kernels::{AdamW, adamw_step};
use std::collections::BTreeMap;

#[test]
fn golden_gradients() {
    for case in cases("golden_gradients") {
        for &dtype in case.training_types() {
            for checkpointing in [false, true] {
                let mut loaded = case.load_as(dtype, true, false);
                loaded.model.set_checkpointing(checkpointing);
                let ours = gradients(&case, &loaded).1;
                let theirs: BTreeMap<&str, &Tensor> =
                    case.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix("grad.")?, t))).collect();
                let names: Vec<&str> = ours.keys().map(String::as_str).collect();
                assert_eq!(names, theirs.keys().copied().collect::<Vec<_>>());
                let all = theirs.values().map(|g| norm(g).powi(2)).sum::<f64>().sqrt();
                let mut off = Vec::new();
                for (name, ours) in &ours {
                    let theirs = theirs[name.as_str()];
                    let error = norm(&(wide(ours) - theirs).unwrap());
                    let bar = 1e-3 * norm(theirs).max(1e-6 * all);
                    if error > bar {
                        off.push(format!("{name} by {error:e} > {bar:e}"));
                    }
                }
                assert!(off.is_empty(), "{} in {dtype:?}: {}", case.folder.display(), off.join(", "));
            }
        }
    }
}

#[test]
fn golden_adamw_steps() {
    for case in cases("golden_adamw_steps") {
        for &dtype in case.training_types() {
            three_steps(&case, dtype);
        }
    }
}

fn three_steps(case: &Case, dtype: DType) {
    let at = format!("{} in {dtype:?}", case.folder.display());
    let loaded = case.load_as(dtype, true, false);
    let e = &case.expected;
    assert_eq!(e.step_losses.len(), e.adamw.steps, "{at}");
    let [beta1, beta2] = e.adamw.betas;
    let settings =
        AdamW { lr: e.adamw.lr, beta1, beta2, eps: e.adamw.eps, weight_decay: e.adamw.weight_decay };
    let initial: BTreeMap<_, _> = loaded.vars.iter().map(|(n, v)| (n, wide(&v.copy().unwrap()))).collect();
    let zeros = |v: &Var| v.as_tensor().zeros_like().unwrap();
    let mut moments: BTreeMap<_, _> = loaded.vars.iter().map(|(n, v)| (n, [zeros(v), zeros(v)])).collect();
    for (i, (&loss, &grad_norm)) in e.step_losses.iter().zip(&e.step_grad_norms).enumerate() {
        let (ours, gradients) = gradients(case, &loaded);
        assert!(((ours - loss) / loss).abs() <= 1e-4, "{at}: step {i}: loss {ours} and not {loss}");
        let ours = gradients.values().map(|g| norm(g).powi(2)).sum::<f64>().sqrt();
        let error = ((ours - grad_norm) / grad_norm).abs();
        assert!(error <= 2e-3, "{at}: step {i}: gradient norm {ours} and not {grad_norm}");
        let clip = (e.adamw.max_grad_norm / (ours + 1e-6)).min(1.0); // as torch's clip_grad_norm_
        for (name, var) in &loaded.vars {
            let [m, v] = moments.get_mut(name).unwrap();
            if dtype == DType::F64 {
                wide_step(var, [m, v], &(&gradients[name] * clip).unwrap(), &settings, i as i32 + 1);
            } else {
                adamw_step(var.as_tensor(), m, v, &gradients[name], &settings, i + 1, clip).unwrap();
            }
        }
    }
    let mut off = Vec::new();
    for (name, var) in &loaded.vars {
        let theirs = &case.tensors[&format!("stepped.{name}")];
        let error = norm(&(wide(var.as_tensor()) - theirs).unwrap());
        let bar = 1e-3 * norm(&(theirs - &initial[name]).unwrap());
        // A gradient of zero is rounding in the reference, out of which Adam makes steps.
        let is_zero = norm(&case.tensors[&format!("grad.{name}")]) < 1e-9;
        if !is_zero && error > bar {
            off.push(format!("{name} by {error:e} > {bar:e}"));
        }
    }
    assert!(off.is_empty(), "{at}: {}", off.join(", "));
}

/// AdamW in float64, which the kernel has no form for.
fn wide_step(var: &Var, [m, v]: [&mut Tensor; 2], g: &Tensor, s: &AdamW, step: i32) {
    *m = ((&*m * s.beta1).unwrap() + (g * (1.0 - s.beta1)).unwrap()).unwrap();
    *v = ((&*v * s.beta2).unwrap() + (g.sqr().unwrap() * (1.0 - s.beta2)).unwrap()).unwrap();
    let root = ((&*v / (1.0 - s.beta2.powi(step))).unwrap().sqrt().unwrap() + s.eps).unwrap();
    let change = ((&*m / (1.0 - s.beta1.powi(step))).unwrap() / root).unwrap();
    let decayed = (var.as_tensor() * (1.0 - s.lr * s.weight_decay)).unwrap();
    var.set(&(decayed - (change * s.lr).unwrap()).unwrap().detach()).unwrap();
}
