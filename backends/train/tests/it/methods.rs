//! Trained baselines: through the loop, into a checkpoint, and out of their backends.

use crate::support::{CancelAt, config, last, metrics, sources, workshop};
use candle_core::Device;
use e2llm_backend::{
    Backend, BackendSpec, BuildContext, CancelFlag, Generation, ModelFiles, Options, Prompt, Request,
};
use e2llm_lm::LoraConfig;
use e2llm_train::config::{ContextChoice, Method, Phase, TrainConfig};
use e2llm_train::data::Record;
use e2llm_train::{
    Batch, CepeTask, E2llmTask, End, LlocoTask, Objective, Part, RunOptions, Split, Trainable, train,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn open(method: Method, root: &Path, config: &TrainConfig) -> Box<dyn Trainable> {
    match method {
        Method::Cepe => Box::new(CepeTask::open(&sources(root), config, &Device::Cpu).unwrap()),
        Method::Lloco => Box::new(LlocoTask::open(&sources(root), config, &Device::Cpu).unwrap()),
        other => panic!("{other:?} is tested elsewhere"),
    }
}

fn settings(method: Method, root: &Path, steps: usize) -> TrainConfig {
    let mut config = config(root, 1);
    config.model.method = method;
    config.data.max_chunks = 8;
    config.data.context = ContextChoice::Ends;
    config.model.decoder_context = 0;
    config.model.encoder_lora = lora(&["query", "key", "value", "dense"]);
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    config.model.compressor_lora = lora(&all);
    config.model.decoder_lora = lora(&all);
    config.model.segment_tokens = 20;
    config.model.summary_tokens = 6;
    config.optimizer.lr = 1e-2;
    config.compute.micro_positions = 0;
    config.validation.every = 0;
    config.phase = vec![Phase { steps, reasoning_batch: 6, reconstruction_batch: 6, ..Phase::default() }];
    config
}

fn lora(targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|t| (*t).to_owned()).collect();
    LoraConfig { r: 16, lora_alpha: 32.0, target_modules: targets }
}

fn backend(spec: &BackendSpec, root: &Path, checkpoint: PathBuf) -> Box<dyn Backend> {
    let context = BuildContext {
        model: ModelFiles {
            name: "tiny".into(),
            checkpoint: Some(checkpoint),
            encoder: Some(root.join("encoder")),
            decoder: Some(root.join("decoder")),
            window: None,
        },
        options: Options::checked(spec.options, &BTreeMap::new()).unwrap(),
        ..BuildContext::default()
    };
    (spec.build)(&context).unwrap()
}

fn ask(context: &str, instruction: &str) -> Request {
    Request {
        id: "r".into(),
        document: "d".into(),
        prompt: Prompt {
            context: context.into(),
            instruction: instruction.into(),
            template: "{context}\n\n{instruction}".into(),
            chat: true,
            ..Prompt::default()
        },
        generation: Generation { max_new_tokens: 8, ..Generation::default() },
    }
}

/// Tokens of an answer that are compared between training and the backend: fewer than any has, so that no end is learned.
const LEARNT: usize = 4;

/// What the trained items of a finished training cost in it, in nats, with the records they are of.
fn losses<'a>(
    method: Method,
    root: &Path,
    config: &TrainConfig,
    records: &'a [Record],
) -> Vec<(f64, &'a Record)> {
    let mut config = config.clone();
    config.model.start = Some(last(&root.join("out")));
    config.data.max_answer_tokens = LEARNT;
    let task = open(method, root, &config);
    let part = Part { split: Split::Train, objective: Objective::Reasoning, window: 1 };
    let items = task.items(part).unwrap().len() as u32;
    assert!(items >= 6, "{items} items");
    let loss = |item: u32| {
        let loss = task.loss(&Batch { part, items: &[item], draw: 0 }).unwrap();
        let document = task.document(part, item);
        let about = |r: &&Record| document.ends_with(r.document.as_deref().unwrap());
        let record = records.iter().filter(about).nth(item as usize % 2).unwrap();
        (f64::from(loss.to_scalar::<f32>().unwrap()), record)
    };
    (0..items).map(loss).collect()
}

fn learns(method: Method, spec: &BackendSpec, (steps, lr): (usize, f64), bars: [f64; 2], least: f64) {
    let root = workshop(4);
    let mut config = settings(method, root.path(), steps);
    config.optimizer.lr = lr;
    let folder = root.path().join("out");
    let options = RunOptions { folder: folder.clone(), ..RunOptions::default() };
    let task = open(method, root.path(), &config);
    let outcome = train(&*task, &config, &options, &mut ()).unwrap();
    let metrics = metrics(&folder);
    let steps: Vec<_> = metrics.iter().filter(|l| l.get("loss").is_some()).collect();
    for (name, bar) in ["reasoning", "reconstruction"].iter().zip(bars) {
        let at = |i: usize| steps[i][*name].as_f64().unwrap();
        assert!(at(steps.len() - 1) < bar * at(0), "{name}: from {} to {}", at(0), at(steps.len() - 1));
    }
    let mut backend = backend(spec, root.path(), outcome.last);
    let trained: usize = task.vars().values().map(|v| v.elem_count()).sum();
    assert_eq!(backend.info().trained_parameters, trained as u64);
    assert_eq!(backend.info().warnings, [""; 0]);
    let records: Vec<_> = crate::support::records(4).into_iter().map(|r| r.record.unwrap()).collect();
    for (loss, record) in losses(method, root.path(), &config, &records) {
        let request = ask(&record.context, &record.instruction);
        let choice = backend.choose(&request, &[record.answer[..LEARNT].to_owned()]).unwrap();
        let difference = (loss + choice.log_likelihoods[0]).abs();
        assert!(difference < 1e-3 * loss.max(1.0), "{}: {loss} in training, {choice:?}", record.answer);
    }
    let mut gained = 0.0;
    for (i, record) in records.iter().enumerate() {
        let request = ask(&record.context, &record.instruction);
        let usage = backend.generate(std::slice::from_ref(&request)).remove(0).unwrap().usage;
        assert_eq!((usage.context_seen, usage.context_dropped), (0, 0), "{usage:?}");
        assert!(usage.context_compressed == usage.context_tokens && usage.soft_tokens > 0, "{usage:?}");
        // The same question about another text, of which the answer is not.
        let other = ask(&records[(i + 2) % records.len()].context, &record.instruction);
        let mut score = |request: &Request| {
            backend.choose(request, std::slice::from_ref(&record.answer)).unwrap().log_likelihoods[0]
        };
        let (own, other) = (score(&request), score(&other));
        println!("{method:?} {i}: {own} of its own text, {other} of another");
        gained += own - other;
    }
    assert!(gained > least, "the answers' own texts make them likelier by {gained} nats, {least} expected");
}

fn resumes(method: Method, file: &str) {
    let root = workshop(8);
    let mut config = settings(method, root.path(), 7);
    config.output.checkpoint_every = 2;
    let run = |folder: &Path, stop: Option<usize>| {
        let options = RunOptions { folder: folder.to_owned(), resume: true, cancel: CancelFlag::default() };
        let mut observer = CancelAt { step: stop.unwrap_or(0), cancel: options.cancel.clone() };
        train(&*open(method, root.path(), &config), &config, &options, &mut observer).unwrap().end
    };
    let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
    assert_eq!(run(&whole, None), End::Finished);
    assert_eq!((run(&parts, Some(3)), run(&parts, None)), (End::Cancelled, End::Finished));
    for file in [&format!("{file}.safetensors"), "state.safetensors", &format!("{file}_config.json")] {
        let read = |folder: &Path| std::fs::read(last(folder).join(file)).unwrap();
        assert!(read(&parts) == read(&whole), "{file} differs");
    }
    // What was trained is the start of another training.
    let mut next = config.clone();
    next.model.start = Some(last(&whole));
    next.model.decoder_context = 999; // the checkpoint's settings win
    let (again, first) = (open(method, root.path(), &next), last(&whole));
    let text = std::fs::read_to_string(first.join(format!("{file}_config.json"))).unwrap();
    again.save(&root.path().join("again")).unwrap();
    let saved = root.path().join("again").join(format!("{file}_config.json"));
    assert_eq!(std::fs::read_to_string(saved).unwrap(), text);
}

#[test]
fn cepe_learns_to_restate_and_to_answer() {
    learns(Method::Cepe, &e2llm_baselines::cepe::spec(), (500, 4e-3), [0.5, 0.8], 5.0);
}

#[test]
fn cepe_resumes_bit_for_bit() {
    resumes(Method::Cepe, "cepe");
}

#[test]
fn lloco_learns_to_restate_and_to_answer() {
    learns(Method::Lloco, &e2llm_baselines::lloco::spec(), (250, 1e-2), [0.3, 0.7], 5.0);
}

#[test]
fn lloco_resumes_bit_for_bit() {
    resumes(Method::Lloco, "lloco");
}

#[test]
fn lloco_trains_the_lora_of_another_domain_only() {
    let root = workshop(6);
    let first = settings(Method::Lloco, root.path(), 2);
    let task = LlocoTask::open(&sources(root.path()), &first, &Device::Cpu).unwrap();
    let start = root.path().join("start");
    task.save(&start).unwrap();
    let mut config = first;
    config.model.start = Some(start.clone());
    config.model.train_compressor = false;
    let task = open(Method::Lloco, root.path(), &config);
    assert!(task.vars().keys().all(|name| name.starts_with("decoder.")) && !task.vars().is_empty());
    let options = RunOptions { folder: root.path().join("out"), ..RunOptions::default() };
    let end = train(&*task, &config, &options, &mut ()).unwrap().last;
    let load = |folder: &Path| -> BTreeMap<String, candle_core::Tensor> {
        let all = candle_core::safetensors::load(folder.join("lloco.safetensors"), &Device::Cpu);
        all.unwrap().into_iter().collect()
    };
    let (before, after) = (load(&start), load(&end));
    assert_eq!(before.len(), after.len());
    for (name, tensor) in &before {
        let values = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let same = values(tensor) == values(&after[name]);
        assert!(same || name.starts_with("decoder."), "{name} was trained");
    }
}

#[test]
fn data_of_another_window_is_refused() {
    let root = workshop(4);
    for method in [Method::Cepe, Method::E2llm] {
        let config = settings(method, root.path(), 2);
        crate::tiny::encoder(&root.path().join("encoder"), 32);
        let sources = sources(root.path());
        let error = match method {
            Method::Cepe => CepeTask::open(&sources, &config, &Device::Cpu).err(),
            _ => E2llmTask::open(&sources, &crate::support::config(root.path(), 2), &Device::Cpu).err(),
        };
        let error = error.unwrap().to_string();
        assert!(error.contains("reads 20 tokens") && error.contains("reads 32"), "{error}");
    }
}
