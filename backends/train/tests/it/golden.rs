//! Three optimiser steps of the loop against those of the PyTorch reference (`make_golden.py`), on the device
//! `E2LLM_TEST_DEVICE` (`cuda:0`), else on the CPU.

use candle_core::{DType, Device, Tensor, Var};
use e2llm::checkpoint::{self, Loaded, Settings, Sources};
use e2llm::{E2llmConfig, Example};
use e2llm_backend::ModelFiles;
use e2llm_lm::Precision;
use e2llm_train::config::{Phase, TrainConfig};
use e2llm_train::{Batch, Item, Objective, Observer, Part, Result, RunOptions, StepReport, Trainable, train};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct RawExample {
    chunks: Vec<Vec<u32>>,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    answer: Vec<u32>,
}

#[derive(Deserialize)]
struct Inputs {
    reasoning: Vec<RawExample>,
    reconstruction: Vec<RawExample>,
}

#[derive(Deserialize)]
struct Expected {
    lambda: f64,
    step_losses: Vec<f64>,
    step_grad_norms: Vec<f64>,
    adamw: Settled,
}

#[derive(Deserialize)]
struct Settled {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    steps: usize,
}

struct Case {
    loaded: Loaded,
    examples: [Vec<Example>; 2],
}

impl Case {
    fn open(folder: &Path) -> Self {
        let files = ModelFiles { checkpoint: Some(folder.to_owned()), ..ModelFiles::default() };
        let device = std::env::var("E2LLM_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
        let settings = Settings {
            device: e2llm_lm::open_device(device.parse().unwrap()).unwrap(),
            encoder: Precision::F32,
            decoder: Precision::F32,
            trainable: true,
            merge_lora: false,
            seed: 0,
            untrained: E2llmConfig::default(),
        };
        let text = std::fs::read_to_string(folder.join("inputs.json")).unwrap();
        let inputs: Inputs = serde_json::from_str(&text).unwrap();
        let example = |e: RawExample| Example {
            chunks: e.chunks,
            prefix: e.prefix,
            suffix: e.suffix,
            answer: e.answer,
        };
        let examples = |all: Vec<RawExample>| all.into_iter().map(example).collect();
        Self {
            loaded: checkpoint::load(&Sources::find(&files).unwrap(), &settings).unwrap(),
            examples: [examples(inputs.reasoning), examples(inputs.reconstruction)],
        }
    }

    fn of(&self, part: Part) -> &[Example] {
        &self.examples[usize::from(part.objective == Objective::Reconstruction)]
    }
}

impl Trainable for Case {
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

/// All cases, or none and a loud word about it.
fn cases(test: &str) -> Vec<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/e2llm");
    let given = std::env::var_os("E2LLM_GOLDEN").map(PathBuf::from);
    let folder = given.clone().unwrap_or(default);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        assert!(given.is_none(), "E2LLM_GOLDEN names {}, which cannot be read", folder.display());
        eprintln!("SKIPPED: {test}: {} not found", folder.display());
        return Vec::new();
    };
    let mut folders: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    folders.retain(|f| f.join("expected.json").exists());
    folders.sort();
    assert!(!folders.is_empty(), "no cases in {}", folder.display());
    folders
}

fn norm(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

fn difference(a: &Tensor, b: &Tensor) -> Tensor {
    let wide = |t: &Tensor| t.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    (wide(a) - wide(b)).unwrap()
}

#[test]
fn golden_steps_through_the_loop() {
    for folder in cases("golden_steps_through_the_loop") {
        // Once in one go, once with every example alone and its gradients accumulated: the loss is the same.
        for (micro_positions, checkpointing) in [(0, false), (1, true)] {
            follow(&folder, micro_positions, checkpointing);
        }
    }
}

fn follow(folder: &Path, micro_positions: usize, checkpointing: bool) {
    let expected: Expected =
        serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let mut case = Case::open(folder);
    case.loaded.model.set_checkpointing(checkpointing);
    let initial: BTreeMap<String, Tensor> =
        case.vars().iter().map(|(n, v)| (n.clone(), v.as_tensor().copy().unwrap())).collect();
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
    (o.beta1, o.beta2, o.eps) = (a.betas.0, a.betas.1, a.eps);
    (o.weight_decay, o.max_grad_norm) = (a.weight_decay, a.max_grad_norm);
    config.compute.micro_positions = micro_positions;
    let out = tempfile::tempdir().unwrap();
    let options = RunOptions { folder: out.path().to_owned(), ..RunOptions::default() };
    let mut steps = Steps::default();
    train(&case, &config, &options, &mut steps).unwrap();
    assert_eq!(steps.0.len(), expected.step_losses.len());
    for ((step, loss), norm) in steps.0.iter().zip(&expected.step_losses).zip(&expected.step_grad_norms) {
        let off = |ours: f64, theirs: f64| ((ours - theirs) / theirs).abs();
        assert!(off(step.loss, *loss) <= 1e-4, "{}: {step:?} and not {loss}", folder.display());
        assert!(off(step.grad_norm, *norm) <= 2e-3, "{}: {step:?} and not {norm}", folder.display());
    }
    let all = initial.keys().map(|n| norm(&tensors[&format!("grad.{n}")]).powi(2)).sum::<f64>().sqrt();
    let mut off = Vec::new();
    for (name, start) in &initial {
        // A gradient that is exactly zero (see the specification) is noise in float32.
        if norm(&tensors[&format!("grad.{name}")]) <= 1e-9 * all {
            continue;
        }
        let stepped = &tensors[&format!("stepped.{name}")];
        let error = norm(&difference(case.vars()[name].as_tensor(), stepped));
        let bar = 1e-3 * norm(&difference(stepped, start));
        if error > bar {
            off.push(format!("{name} by {error:e} > {bar:e}"));
        }
    }
    assert!(off.is_empty(), "{}: off are {}", folder.display(), off.join(", "));
}
