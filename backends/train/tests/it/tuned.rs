//! Plain decoders: LongLoRA, and training in a stretched window.

use crate::support::{CancelAt, config, last, metrics, sources, workshop};
use candle_core::{DType, Device};
use e2llm_backend::CancelFlag;
use e2llm_lm::{
    DecoderFiles, DecoderModel, LoraConfig, Precision, RopeScaling, Segment, Stretch, TunedDecoder,
};
use e2llm_train::config::{Method, Phase, TrainConfig};
use e2llm_train::{Batch, End, Objective, Part, RunOptions, SftTask, Split, Trainable, train};
use std::path::Path;

fn settings(root: &Path, method: Method, scaling: &str, steps: usize) -> TrainConfig {
    let mut config = config(root, 1);
    config.model.method = method;
    config.model.rope = Some(Stretch { scaling: scaling.into(), factor: 2.0, ..Stretch::default() });
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj"].map(Into::into).into();
    config.model.decoder_lora = LoraConfig { r: 4, lora_alpha: 8.0, target_modules: targets };
    config.optimizer.lr = 1e-2;
    config.data.max_context_tokens = 40;
    config.phase = vec![Phase { steps, reasoning_batch: 6, ..Phase::default() }];
    config
}

fn open(root: &Path, config: &TrainConfig) -> SftTask {
    SftTask::open(&sources(root), config, &Device::Cpu).unwrap()
}

fn options(folder: &Path, resume: bool) -> RunOptions {
    RunOptions { folder: folder.to_owned(), resume, cancel: CancelFlag::default() }
}

#[test]
fn longlora_learns_goes_on_where_it_was_and_leaves_a_model() {
    let root = workshop(6);
    let root = root.path();
    let mut config = settings(root, Method::Longlora, "linear", 24);
    config.compute.checkpointing = true;
    let (whole, parts) = (root.join("whole"), root.join("parts"));
    train(&open(root, &config), &config, &options(&whole, false), &mut ()).unwrap();
    let first = options(&parts, false);
    let mut observer = CancelAt { step: 5, cancel: first.cancel.clone() };
    let outcome = train(&open(root, &config), &config, &first, &mut observer).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Cancelled, 5));
    train(&open(root, &config), &config, &options(&parts, true), &mut ()).unwrap();
    assert_eq!(metrics(&parts), metrics(&whole));
    let file = |folder: &Path| std::fs::read(last(folder).join("adapter_model.safetensors")).unwrap();
    assert!(file(&parts) == file(&whole), "the adapters differ");
    let losses: Vec<f64> = metrics(&whole).iter().filter_map(|l| l["reasoning"].as_f64()).collect();
    assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");

    // The folder says all that inference needs.
    let tuned = TunedDecoder::read(&last(&whole)).unwrap();
    assert_eq!((tuned.method.as_str(), &tuned.rope), ("longlora", &config.model.rope));
    assert_eq!(tuned.adapter.config, config.model.decoder_lora);
    let base = std::fs::read_to_string(last(&whole).join("decoder/source.toml")).unwrap();
    assert!(base.contains("source = \"decoder\"") && base.contains("sha256"), "{base}");
    let mut files = DecoderFiles::open(&root.join("decoder")).unwrap();
    let load = |name| files.weights.load(name, DType::F32, &Device::Cpu).unwrap();
    for name in ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"] {
        let moved = (load(name) - &tuned.adapter.tensors[name]).unwrap().abs().unwrap();
        assert!(moved.max_all().unwrap().to_scalar::<f32>().unwrap() > 1e-3, "{name}");
    }
    tuned.rope.unwrap().apply(&mut files.config).unwrap();
    assert_eq!(files.config.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    let adapter = Some(tuned.adapter);
    let model = DecoderModel::with_adapter(files, adapter, &Device::Cpu, Precision::F32).unwrap();
    assert_eq!(model.window, 800);
    model.generate(&[Segment::Ids(vec![5; 500])], &Default::default(), &|| false).unwrap();

    // It is the start of another training; one of LoRA alone is not.
    config.model.start = Some(last(&whole));
    let again = open(root, &config);
    let before = open(root, &settings(root, Method::Longlora, "linear", 1));
    assert_eq!(again.vars().keys().collect::<Vec<_>>(), before.vars().keys().collect::<Vec<_>>());
    let asked = config.model.rope.take();
    assert_eq!(open(root, &config).stretch(), asked.as_ref(), "a start brings its stretch along");
    config.model.rope = Some(Stretch { factor: 4.0, ..Stretch::default() });
    let error = SftTask::open(&sources(root), &config, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("linear by 2"), "{error}");
    config.model.rope = asked;
    config.model.method = Method::SftTruncate;
    let error = SftTask::open(&sources(root), &config, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("model.embed_tokens.weight"), "{error}");
}

#[test]
fn longlora_learns_in_groups_and_is_validated_in_full() {
    let root = workshop(12);
    let root = root.path();
    let loss = |method, split| {
        let task = open(root, &settings(root, method, "linear", 1));
        let part = Part { split, objective: Objective::Reasoning, window: 1 };
        let batch = Batch { part, items: &[0, 1], draw: 0 };
        task.loss(&batch).unwrap().to_scalar::<f32>().unwrap()
    };
    let both = |split| (loss(Method::Longlora, split), loss(Method::SftTruncate, split));
    let (grouped, full) = both(Split::Train);
    assert!((grouped - full).abs() > 1e-3, "{grouped} {full}");
    let (validated, full) = both(Split::Validation);
    assert!((validated - full).abs() < 1e-5 * full, "{validated} {full}");
}

#[test]
fn lora_is_trained_in_a_stretched_window() {
    let root = workshop(6);
    let root = root.path();
    let config = settings(root, Method::SftTruncate, "yarn", 3);
    let folder = root.join("yarn");
    train(&open(root, &config), &config, &options(&folder, false), &mut ()).unwrap();
    let tuned = TunedDecoder::read(&last(&folder)).unwrap();
    assert_eq!((tuned.method.as_str(), &tuned.rope), ("sft-truncate", &config.model.rope));
    assert!(tuned.adapter.modules_to_save.is_empty());
    // The stretch is trained with: it changes the first loss.
    let mut plain = config.clone();
    plain.model.rope = None;
    let other = root.join("plain");
    train(&open(root, &plain), &plain, &options(&other, false), &mut ()).unwrap();
    assert_ne!(metrics(&folder)[0]["loss"], metrics(&other)[0]["loss"]);
}
