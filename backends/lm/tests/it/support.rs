//! Small models with random weights, and where the real ones are.

use candle_core::{DType, Device, Tensor};
use e2llm_lm::{BertConfig, LlamaConfig, TensorSpec};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder of shared test data; says so where it is missing.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !full.exists() {
        eprintln!("SKIPPED: {} not found", full.display());
        return None;
    }
    Some(full)
}

/// A file of a real model in the cache folder; says so where it is missing.
pub(crate) fn real_model(path: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("E2LLM_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        let base = base.unwrap_or_else(|| {
            home().join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" })
        });
        base.join("e2llm-bench")
    });
    let full = cache.join("models").join(path);
    if !full.exists() {
        eprintln!("SKIPPED: {} not found (see the README on fetching models)", full.display());
        return None;
    }
    Some(full)
}

/// Where the goldens are computed: `E2LLM_TEST_DEVICE` (`cuda:0`), else the CPU.
pub(crate) fn golden_device() -> Device {
    let name = std::env::var("E2LLM_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    e2llm_lm::open_device(name.parse().unwrap()).unwrap()
}

pub(crate) fn never() -> bool {
    false
}

/// Numbers between -1 and 1 that look random and are the same everywhere.
pub(crate) fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Tensors of the given names and shapes; norms around 1, everything else small.
pub(crate) fn random_tensors(specs: &[TensorSpec]) -> BTreeMap<String, Tensor> {
    let make = |(seed, spec): (usize, &TensorSpec)| {
        let norm = spec.shape.len() == 1 && spec.name.ends_with("weight");
        let values: Vec<f32> = noise(seed as u64 + 1, spec.len())
            .into_iter()
            .map(|x| if norm { 1.0 + 0.1 * x } else { 0.3 * x })
            .collect();
        (spec.name.clone(), Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu).unwrap())
    };
    specs.iter().enumerate().map(make).collect()
}

pub(crate) fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let all: HashMap<_, _> = tensors.clone().into_iter().collect();
    candle_core::safetensors::save(&all, path).unwrap();
}

/// A folder with a configuration and random weights for it.
pub(crate) fn folder(config: &serde_json::Value, specs: &[TensorSpec]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    save(&folder.path().join("model.safetensors"), &random_tensors(specs));
    folder
}

pub(crate) fn llama_json() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
    })
}

pub(crate) fn llama_config(json: &serde_json::Value) -> LlamaConfig {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, json.to_string()).unwrap();
    LlamaConfig::from_file(&path).unwrap()
}

pub(crate) fn bert_json() -> serde_json::Value {
    serde_json::json!({
        "model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 40,
    })
}

pub(crate) fn bert_config(json: &serde_json::Value) -> BertConfig {
    serde_json::from_value(json.clone()).unwrap()
}

/// Greatest difference between two tensors.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    let difference = (wide(a) - wide(b)).unwrap().abs().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}
