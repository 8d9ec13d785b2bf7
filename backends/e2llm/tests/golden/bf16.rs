//! The model in bf16, which may be 1.5 times as far from float64 as PyTorch's bf16 is on the same case and device.
//!
//! States, soft tokens and logits are held against PyTorch's of their case. A loss is one number, near by luck now and then, and
//! the cases' sharp attention makes gradients chaotic (of 32 fresh cases ours were 0.13 to 2.05 times as far, 1.0 in the
//! median): these two are held against PyTorch's over all cases.
//!
//! How far that is stands in `torch_bf16.json` for the cases handed out, and in a file of this name beside the cases of
//! `E2LLM_GOLDEN` (`scripts/golden_bf16.py` writes both).

use crate::case::{Case, cases, chunks, device, distance, gradients, scalar};
use candle_core::{DType, Tensor};
use serde::Deserialize;
use std::collections::HashMap;

const ALLOWED: f64 = 1.5;

#[derive(Deserialize)]
struct OneDevice {
    cases: HashMap<String, Distances>,
}

/// `|ours - float64| / |float64|` over all tensors of a kind.
#[derive(Debug, Deserialize)]
struct Distances {
    hidden: f64,
    soft: f64,
    logits: f64,
    gradients: f64,
    loss: [f64; 2],
}

fn theirs(case: &Case) -> Distances {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/torch_bf16.json").into();
    let beside = case.folder.with_file_name("torch_bf16.json");
    let path = if case.handed_out { committed } else { beside };
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut all: HashMap<String, OneDevice> = serde_json::from_slice(&text).unwrap();
    let kind = if device().is_cuda() { "cuda" } else { "cpu" };
    let mut of = all.remove(kind).unwrap_or_else(|| panic!("no `{kind}` in {}", path.display()));
    let name = case.folder.file_name().unwrap().to_str().unwrap();
    of.cases.remove(name).unwrap_or_else(|| panic!("no `{name}` in {}", path.display()))
}

fn forward(case: &Case, merge_lora: bool) -> (f64, f64, f64) {
    let model = case.load_as(DType::BF16, false, merge_lora).model;
    let chunks = chunks(&case.reasoning);
    let (padded, lengths) = model.encoder().forward(&chunks).unwrap();
    let row = |t: &Tensor, i: usize, n: usize| t.get(i).unwrap().narrow(0, 0, n).unwrap();
    let hidden =
        (0..chunks.len()).map(|i| (row(&padded, i, lengths[i]), &case.tensors[&format!("hidden.{i}")]));
    let soft = (model.soft_tokens(&chunks).unwrap(), &case.tensors["soft"]);
    let lengths = model.inputs(&case.reasoning).unwrap().lengths;
    let logits = model.loss(&case.reasoning).unwrap().1;
    let logits =
        (0..lengths.len()).map(|i| (row(&logits, i, lengths[i]), &case.tensors[&format!("logits.{i}")]));
    (distance(hidden), distance([soft]), distance(logits))
}

fn training(case: &Case) -> (f64, [f64; 2]) {
    let loaded = case.load_as(DType::BF16, true, false);
    let gradients = gradients(case, &loaded).1;
    let gradients = distance(gradients.into_iter().map(|(n, g)| (g, &case.tensors[&format!("grad.{n}")])));
    let loss =
        [(&case.reasoning, case.expected.reasoning), (&case.reconstruction, case.expected.reconstruction)]
            .map(|(batch, want)| {
                let ours = scalar(&loaded.model.answer_loss(batch).unwrap().mean().unwrap());
                ((ours - want) / want).abs()
            });
    (gradients, loss)
}

#[test]
fn golden_bf16_is_as_near_as_pytorchs() {
    let (mut off, mut all) = (Vec::new(), [("losses", 0.0, 0.0), ("gradients", 0.0, 0.0)]);
    let mut check = |what: String, ours: f64, theirs: f64| {
        let told = format!("{what} are off by {ours:.2e}, PyTorch's by {theirs:.2e}");
        println!("{told}");
        if ours.is_nan() || ours > ALLOWED * theirs {
            off.push(told);
        }
    };
    let cases = cases("golden_bf16_is_as_near_as_pytorchs");
    for case in &cases {
        let (theirs, name) = (theirs(case), case.folder.display());
        for merged in [false, true] {
            let (hidden, soft, logits) = forward(case, merged);
            check(format!("{name}: hidden states"), hidden, theirs.hidden);
            check(format!("{name}: soft tokens"), soft, theirs.soft);
            check(format!("{name}: logits"), logits, theirs.logits);
        }
        let (gradients, loss) = training(case);
        let squares = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        let new = [(&loss[..], &theirs.loss[..]), (&[gradients], &[theirs.gradients])];
        for ((_, ours, theirs), (a, b)) in all.iter_mut().zip(new) {
            *ours += squares(a);
            *theirs += squares(b);
        }
    }
    if !cases.is_empty() {
        for (what, ours, theirs) in all {
            check(format!("all {what}"), ours.sqrt(), theirs.sqrt());
        }
    }
    assert!(off.is_empty(), "{}", off.join("\n"));
}
