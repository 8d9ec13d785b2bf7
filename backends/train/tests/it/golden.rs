//! Three optimiser steps of the loop against those of the PyTorch reference (`make_golden.py`), on the device
//! `E2LLM_TEST_DEVICE` (`cuda:0`), else on the CPU.

use crate::case::{Case, cases, norm, wide};
use candle_core::{DType, Tensor, Var};
use e2llm::Example;
use e2llm::checkpoint::Loaded;
use e2llm_train::config::{Phase, TrainConfig};
use e2llm_train::{Batch, Item, Objective, Observer, Part, Result, RunOptions, StepReport, Trainable, train};
use std::collections::BTreeMap;
use std::path::Path;

struct Golden<'a> {
    case: &'a Case,
    loaded: Loaded,
}

impl Golden<'_> {
    fn of(&self, part: Part) -> &[Example] {
        match part.objective {
            Objective::Reconstruction => &self.case.reconstruction,
            Objective::Reasoning => &self.case.reasoning,
        }
    }
}

impl Trainable for Golden<'_> {
    fn vars(&self) -> &BTreeMap<String, Var> {
        &self.loaded.vars
    }

    fn items(&self, part: Part) -> Result<Vec<Item>> {
        let k = self.loaded.model.config().soft_tokens_per_chunk;
        let item = |e: &Example| Item {
            encoder: e.chunks.iter().map(Vec::len).sum::<usize>() as u32,
            decoder: (e.prefix.len() + e.chunks.len() * k + e.suffix.len() + e.answer.len()) as u32,
            targets: e.answer.len() as u32,
        };
        Ok(self.of(part).iter().map(item).collect())
    }

    fn loss(&self, batch: &Batch<'_>) -> Result<Tensor> {
        let all = self.of(batch.part);
        let chosen: Vec<_> = batch.items.iter().map(|i| all[*i as usize].clone()).collect();
        Ok(self.loaded.model.answer_loss(&chosen)?.sum)
    }

    fn document(&self, _: Part, _: u32) -> String {
        "golden".into()
    }

    fn describe(&self, part: Part, item: u32) -> String {
        format!("{part:?} {item}")
    }

    fn fingerprint(&self) -> String {
        "golden".into()
    }

    fn save(&self, _: &Path) -> Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Steps(Vec<StepReport>);

impl Observer for Steps {
    fn step(&mut self, report: &StepReport) {
        self.0.push(*report);
    }
}

#[test]
fn golden_steps_through_the_loop() {
    for case in cases("golden_steps_through_the_loop") {
        // Once in one go, once with every example alone and its gradients accumulated: the loss is the same.
        for (micro_positions, checkpointing) in [(0, false), (1, true)] {
            follow(&case, micro_positions, checkpointing);
        }
    }
}

fn follow(case: &Case, micro_positions: usize, checkpointing: bool) {
    let (expected, tensors, folder) = (&case.expected, &case.tensors, case.folder.display());
    let mut golden = Golden { case, loaded: case.load_as(DType::F32, true, false) };
    golden.loaded.model.set_checkpointing(checkpointing);
    let initial: BTreeMap<String, Tensor> =
        golden.vars().iter().map(|(n, v)| (n.clone(), wide(v.as_tensor()).copy().unwrap())).collect();
    let mut config = TrainConfig {
        phase: vec![Phase {
            steps: expected.adamw.steps,
            reasoning_batch: 3,
            reconstruction_batch: 3,
            lambda: expected.lambda,
            ..Phase::default()
        }],
        ..TrainConfig::default()
    };
    let (o, a) = (&mut config.optimizer, &expected.adamw);
    (o.lr, o.warmup_steps, o.min_lr_ratio) = (a.lr, 0, 1.0);
    (o.beta1, o.beta2, o.eps) = (a.betas[0], a.betas[1], a.eps);
    (o.weight_decay, o.max_grad_norm) = (a.weight_decay, a.max_grad_norm);
    config.compute.micro_positions = micro_positions;
    let out = tempfile::tempdir().unwrap();
    let options = RunOptions { folder: out.path().to_owned(), ..RunOptions::default() };
    let mut steps = Steps::default();
    train(&golden, &config, &options, &mut steps).unwrap();
    assert_eq!(steps.0.len(), expected.step_losses.len());
    for ((step, loss), norm) in steps.0.iter().zip(&expected.step_losses).zip(&expected.step_grad_norms) {
        let off = |ours: f64, theirs: f64| ((ours - theirs) / theirs).abs();
        assert!(off(step.loss, *loss) <= 1e-4, "{}: {step:?} and not {loss}", folder);
        assert!(off(step.grad_norm, *norm) <= 2e-3, "{}: {step:?} and not {norm}", folder);
    }
    let all = initial.keys().map(|n| norm(&tensors[&format!("grad.{n}")]).powi(2)).sum::<f64>().sqrt();
    let mut off = Vec::new();
    for (name, start) in &initial {
        // A gradient that is exactly zero (see the specification) is noise in float32.
        if norm(&tensors[&format!("grad.{name}")]) <= 1e-9 * all {
            continue;
        }
        let stepped = &tensors[&format!("stepped.{name}")];
        let error = norm(&(wide(golden.vars()[name].as_tensor()) - stepped).unwrap());
        let bar = 1e-3 * norm(&(stepped - start).unwrap());
        if error > bar {
            off.push(format!("{name} by {error:e} > {bar:e}"));
        }
    }
    assert!(off.is_empty(), "{}: off are {}", folder, off.join(", "));
}
