//! Checkpoints in other programs' layouts.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails its test")]

mod tiny;

use candle_core::{DType, Device, Tensor};
use e2llm::checkpoint::{self, BaseModels, Loaded, Settings, Sources, Trained};
use e2llm::{AdapterKind, E2llmConfig, Example};
use e2llm_lm::{DecoderFiles, EncoderFiles, LoraConfig, PeftAdapter, Precision, Weights};
use std::collections::BTreeMap;
use std::path::Path;

fn config() -> E2llmConfig {
    let lora = |r, targets: &[&str]| LoraConfig {
        r,
        lora_alpha: 6.0,
        target_modules: targets.iter().map(|t| (*t).to_owned()).collect(),
    };
    E2llmConfig {
        adapter: AdapterKind::Mean,
        soft_tokens_per_chunk: 2,
        output_scale: true,
        encoder_lora: lora(3, &["query", "dense"]),
        decoder_lora: lora(2, &["q_proj", "down_proj"]),
        ..E2llmConfig::default()
    }
}

fn load(checkpoint: Option<&Path>, encoder: &Path, decoder: &Path) -> Loaded {
    let sources = Sources {
        checkpoint: checkpoint.map(Path::to_owned),
        encoder: encoder.to_owned(),
        decoder: decoder.to_owned(),
    };
    let settings = Settings {
        device: Device::Cpu,
        encoder: Precision::F32,
        decoder: Precision::F32,
        trainable: checkpoint.is_none(),
        merge_lora: false,
        seed: 3,
        untrained: config(),
    };
    checkpoint::load(&sources, &settings).unwrap()
}

fn loss(loaded: &Loaded) -> f32 {
    let example = Example {
        chunks: vec![vec![1, 70, 80, 90, 2], vec![1, 100, 2]],
        prefix: vec![1, 50],
        suffix: vec![60],
        answer: vec![77, 88, 2],
    };
    loaded.model.answer_loss(&[example]).unwrap().sum.to_scalar().unwrap()
}

/// Base models and a checkpoint on them, whose every trained tensor differs from a start value that does nothing.
fn workshop(root: &Path) {
    tiny::encoder(&root.join("encoder"), 32);
    tiny::decoder(&root.join("decoder"), 64);
    let new = load(None, &root.join("encoder"), &root.join("decoder"));
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for (i, (name, var)) in new.vars.iter().enumerate() {
        let wave = |j: usize| 0.3 * ((i * 31 + j) as f32 * 0.7).sin();
        let values: Vec<f32> = (0..var.elem_count()).map(wave).collect();
        tensors.insert(name.clone(), Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap());
    }
    checkpoint::save(&root.join("checkpoint"), &config(), &tensors, &BaseModels::default(), None).unwrap();
}

#[test]
fn merged_models_answer_alike_and_are_plain() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    workshop(root.path());
    let loaded = load(Some(&at("checkpoint")), &at("encoder"), &at("decoder"));
    checkpoint::merge_lora(&at("checkpoint"), &loaded, &at("merged"), DType::F32).unwrap();
    let merged = load(Some(&at("merged")), &at("merged/encoder"), &at("merged/decoder"));
    let (a, b) = (loss(&loaded), loss(&merged));
    assert!((a - b).abs() < 1e-4 * a, "{a} is not {b}");
    let bare = load(None, &at("encoder"), &at("decoder"));
    assert!((loss(&bare) - a).abs() > 1e-2, "the trained tensors change nothing: this compares nothing");
    for part in ["encoder", "decoder"] {
        let (before, after) =
            (Weights::open(&at(part)).unwrap(), Weights::open(&at("merged").join(part)).unwrap());
        assert_eq!(before.tensors(), after.tensors(), "{part}: names, shapes and types of a plain model");
    }
    assert!(DecoderFiles::open(&at("merged/decoder")).unwrap().tokenizer.unwrap().chat().is_some());
    let left = Weights::open_named(&at("merged"), checkpoint::TRAINED).unwrap();
    assert!(left.tensors().keys().all(|n| n.starts_with("adapter.") || n == "output_scale"));
}

#[test]
fn lora_goes_to_peft_and_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    workshop(root.path());
    let trained = Trained::read(&at("checkpoint")).unwrap();
    trained.write_peft(&at("peft"), &BaseModels::default(), DType::F32).unwrap();
    assert_eq!(PeftAdapter::read(&at("peft/decoder")).unwrap().config, config().decoder_lora);
    let text = std::fs::read_to_string(at("peft/encoder/adapter_config.json")).unwrap();
    assert!(text.contains("FEATURE_EXTRACTION") && text.contains("pooler.dense"), "{text}");

    let (encoder, decoder) =
        (EncoderFiles::open(&at("encoder")).unwrap(), DecoderFiles::open(&at("decoder")).unwrap());
    let mut other = trained.clone();
    other.tensors.retain(|name, _| !name.contains(".lora_"));
    other.config.decoder_lora = LoraConfig::default();
    other.read_peft(&at("peft"), &encoder, &decoder).unwrap();
    other.save(&at("back"), &BaseModels::default(), DType::F32, Some(1000)).unwrap();
    assert!(at("back/e2llm.safetensors.index.json").is_file(), "written in shards");
    let whole = |name: &str| loss(&load(Some(&at(name)), &at("encoder"), &at("decoder")));
    assert_eq!(whole("back"), whole("checkpoint"));

    let mut wrong = trained;
    tiny::decoder(&at("other"), 64);
    let path = at("peft/decoder/adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("q_proj", "k_proj")).unwrap();
    let error = wrong.read_peft(&at("peft"), &encoder, &decoder).unwrap_err().to_string();
    assert!(error.contains("k_proj") && error.contains("q_proj"), "{error}");
    let error = wrong.read_peft(&at("encoder"), &encoder, &decoder).unwrap_err().to_string();
    assert!(error.contains("neither `encoder/` nor `decoder/`"), "{error}");
}
