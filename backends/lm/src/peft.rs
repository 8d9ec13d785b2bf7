//! LoRA adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

use crate::config::read_json;
use crate::{LlamaConfig, LmError, LoraConfig, Result, TensorSpec, Weights, write_safetensors};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const STEM: &str = "adapter_model";
/// What PEFT puts before the base model's own names.
const PREFIX: &str = "base_model.model.";

/// An adapter of a model.
#[derive(Debug, Clone)]
pub struct PeftAdapter {
    /// Rank, scaling and targets.
    pub config: LoraConfig,
    /// Last names of the modules that were trained in full (`embed_tokens`, `norm`).
    pub modules_to_save: Vec<String>,
    /// By the base model's names: `model.layers.0.self_attn.q_proj.lora_A.weight`, `model.norm.weight`.
    pub tensors: BTreeMap<String, Tensor>,
}

/// What kind of model an adapter is for, in PEFT's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeftTask {
    /// A decoder.
    CausalLm,
    /// An encoder.
    FeatureExtraction,
}

impl PeftTask {
    fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::FeatureExtraction => "FEATURE_EXTRACTION",
        }
    }

    /// Modules whose last name may be a target's but which have no adapter here: BERT's pooler is not part of the encoder.
    fn excluded(self) -> &'static [&'static str] {
        match self {
            Self::CausalLm => &[],
            Self::FeatureExtraction => &["pooler.dense"],
        }
    }
}

/// What is read of `adapter_config.json`.
#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    target_modules: Targets,
    modules_to_save: Option<Vec<String>>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    List(Vec<String>),
    Pattern(String),
}

#[derive(Serialize)]
struct Write<'a> {
    peft_type: &'a str,
    task_type: &'a str,
    base_model_name_or_path: &'a str,
    r: usize,
    lora_alpha: f64,
    lora_dropout: f64,
    target_modules: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    exclude_modules: &'a [&'a str],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    modules_to_save: &'a [String],
    bias: &'a str,
    fan_in_fan_out: bool,
    inference_mode: bool,
    use_rslora: bool,
    use_dora: bool,
}

impl PeftAdapter {
    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// Files that are missing or damaged; kinds of adapters that a plain `W + alpha / r B A` cannot express.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let read: Read = read_json(&path)?;
        let unsupported = |what: String| Err(LmError::file(&path, format!("not supported: {what}")));
        if read.peft_type != "LORA" {
            return unsupported(format!("peft_type `{}`", read.peft_type));
        }
        for (key, value) in &read.other {
            let plain = match key.as_str() {
                "use_dora" | "use_rslora" | "fan_in_fan_out" | "lora_bias" => value.as_bool() != Some(true),
                "bias" => value.as_str().is_none_or(|v| v == "none"),
                "rank_pattern" | "alpha_pattern" => value.as_object().is_none_or(serde_json::Map::is_empty),
                _ => true,
            };
            if !plain {
                return unsupported(format!("`{key}` = {value}"));
            }
        }
        let target_modules = match read.target_modules {
            Targets::List(list) => list,
            Targets::Pattern(pattern) => {
                return unsupported(format!("`target_modules` as a pattern, `{pattern}`"));
            }
        };
        let weights = Weights::open_named(folder, STEM)?;
        let mut tensors = BTreeMap::new();
        for name in weights.tensors().keys() {
            let tensor = weights.load(name, DType::F32, &Device::Cpu)?;
            tensors.insert(name.strip_prefix(PREFIX).unwrap_or(name).to_owned(), tensor);
        }
        let config = LoraConfig { r: read.r, lora_alpha: read.lora_alpha, target_modules };
        Ok(Self { config, modules_to_save: read.modules_to_save.unwrap_or_default(), tensors })
    }

    /// The tensors that an adapter with these settings has for a decoder.
    pub fn specs(config: &LlamaConfig, lora: &LoraConfig, modules_to_save: &[String]) -> Vec<TensorSpec> {
        let mut specs = config.lora_tensors(lora, "");
        specs.extend(config.module_tensors(modules_to_save, ""));
        specs
    }

    /// The base model that an adapter's folder names, if it names one.
    ///
    /// # Errors
    /// A configuration that is missing or damaged.
    pub fn base_of(folder: &Path) -> Result<Option<String>> {
        let config: serde_json::Map<String, Value> = read_json(&folder.join(CONFIG))?;
        let name = config.get("base_model_name_or_path").and_then(Value::as_str);
        Ok(name.filter(|n| !n.is_empty()).map(str::to_owned))
    }

    /// Writes an adapter's folder, which must exist. `base` names the base model.
    ///
    /// # Errors
    /// Anything that cannot be written.
    pub fn write(&self, folder: &Path, base: &str, task: PeftTask) -> Result<()> {
        let write = Write {
            peft_type: "LORA",
            task_type: task.name(),
            base_model_name_or_path: base,
            r: self.config.r,
            lora_alpha: self.config.lora_alpha,
            lora_dropout: 0.0,
            target_modules: &self.config.target_modules,
            exclude_modules: task.excluded(),
            modules_to_save: &self.modules_to_save,
            bias: "none",
            fan_in_fan_out: false,
            inference_mode: true,
            use_rslora: false,
            use_dora: false,
        };
        let path = folder.join(CONFIG);
        let text = serde_json::to_string_pretty(&write).map_err(|e| LmError::file(&path, e))?;
        std::fs::write(&path, text + "\n").map_err(|e| LmError::io(&path, e))?;
        let named = self.tensors.iter().map(|(n, t)| (format!("{PREFIX}{n}"), t.clone()));
        write_safetensors(folder, STEM, &named.collect(), None).map(drop)
    }
}
