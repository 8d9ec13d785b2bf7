//! Writing a model as a plain folder in HF layout, its adapters added to its weights.

use crate::{
    BertConfig, BertEncoder, DecoderFiles, EncoderFiles, Llama, LlamaConfig, LmError, RandomWeights, Result,
    Tokenizer, write_safetensors,
};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files of a tokenizer that are taken over as they are.
const TOKENIZER: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.txt",
];

/// Writes a loaded decoder: `config.json`, `model.safetensors` in `dtype`, and its tokenizer, whether it came from an HF
/// folder or from GGUF. The folder must exist.
///
/// # Errors
/// Anything that cannot be written; a source folder that cannot be read.
pub fn write_decoder(folder: &Path, llama: &Llama, files: &DecoderFiles, dtype: DType) -> Result<()> {
    let tensors = llama.merged_tensors()?;
    let mut config = match source_folder(&files.files) {
        Some(source) => read_object(&source.join("config.json"))?,
        None => files.config.to_hf_json().as_object().cloned().unwrap_or_default(),
    };
    // An adapter of the output layer makes it differ from the embedding table that it was tied to.
    if tensors.contains_key("lm_head.weight") {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    write_config(folder, config, dtype)?;
    decoder_tokenizer(folder, files)?;
    write_tensors(folder, tensors, dtype)
}

fn decoder_tokenizer(folder: &Path, files: &DecoderFiles) -> Result<()> {
    match (source_folder(&files.files), &files.tokenizer) {
        (Some(source), _) => copy_tokenizer(&source, folder),
        (None, Some(tokenizer)) => write_tokenizer(folder, tokenizer, files),
        (None, None) => Ok(()),
    }
}

/// Writes a decoder of another size with the tokenizer and vocabulary of `files`, whose weights are random when it is
/// loaded (see [`RandomWeights`]). The folder must exist.
///
/// # Errors
/// Anything that cannot be written; a source folder that cannot be read.
pub fn write_random_decoder(
    folder: &Path,
    shape: &LlamaConfig,
    files: &DecoderFiles,
    weights: RandomWeights,
) -> Result<()> {
    let vocab_size = files.config.vocab_size;
    let (bos_token_id, eos_token_ids) = (files.config.bos_token_id, files.eos_ids());
    let config = LlamaConfig { vocab_size, bos_token_id, eos_token_ids, ..shape.clone() };
    write_json(folder, "config.json", &config.to_hf_json())?;
    decoder_tokenizer(folder, files)?;
    weights.write(folder)
}

/// As [`write_random_decoder`], of an encoder.
///
/// # Errors
/// Anything that cannot be written; a source folder that cannot be read.
pub fn write_random_encoder(
    folder: &Path,
    shape: &BertConfig,
    files: &EncoderFiles,
    weights: RandomWeights,
) -> Result<()> {
    let own = &files.config;
    let (vocab_size, pad_token_id) = (own.vocab_size, own.pad_token_id);
    let config = BertConfig { vocab_size, pad_token_id, ..shape.clone() };
    let value = serde_json::to_value(&config).map_err(|e| LmError::file(folder, e))?;
    write_json(folder, "config.json", &value)?;
    if let Some(source) = source_folder(&files.files) {
        copy_tokenizer(&source, folder)?;
    }
    weights.write(folder)
}

/// Writes a loaded encoder as [`write_decoder`] does. Tensors that this crate does not use (a pooler) are taken over.
///
/// # Errors
/// Anything that cannot be written; a source folder that cannot be read.
pub fn write_encoder(folder: &Path, encoder: &BertEncoder, files: &EncoderFiles, dtype: DType) -> Result<()> {
    let mut tensors = encoder.merged_linears()?;
    for (name, info) in files.weights.tensors() {
        let is_float = matches!(info.dtype.as_str(), "F64" | "F32" | "F16" | "BF16");
        if is_float && !tensors.contains_key(name) {
            tensors.insert(name.clone(), files.weights.load(name, DType::F32, &Device::Cpu)?);
        }
    }
    if let Some(source) = source_folder(&files.files) {
        write_config(folder, read_object(&source.join("config.json"))?, dtype)?;
        copy_tokenizer(&source, folder)?;
    }
    write_tensors(folder, tensors, dtype)
}

/// The folder that a model's files are in; `None` for a `.gguf` file.
fn source_folder(files: &[PathBuf]) -> Option<PathBuf> {
    let config = files.iter().find(|f| f.file_name().is_some_and(|n| n == "config.json"))?;
    config.parent().map(Path::to_owned)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    crate::config::read_json(path)
}

fn write_config(folder: &Path, mut config: Map<String, Value>, dtype: DType) -> Result<()> {
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    config.remove("dtype");
    config.insert("torch_dtype".into(), name.into());
    write_json(folder, "config.json", &Value::Object(config))
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let path = folder.join(name);
    let text = serde_json::to_string_pretty(value).map_err(|e| LmError::file(&path, e))?;
    std::fs::write(&path, text + "\n").map_err(|e| LmError::io(&path, e))
}

fn write_tensors(folder: &Path, tensors: BTreeMap<String, Tensor>, dtype: DType) -> Result<()> {
    let cast = |(name, t): (String, Tensor)| Ok((name, t.to_dtype(dtype)?));
    let tensors = tensors.into_iter().map(cast).collect::<Result<BTreeMap<_, _>>>()?;
    write_safetensors(folder, "model", &tensors, None).map(drop)
}

fn copy_tokenizer(source: &Path, folder: &Path) -> Result<()> {
    for name in TOKENIZER {
        let from = source.join(name);
        if from.is_file() {
            std::fs::copy(&from, folder.join(name)).map_err(|e| LmError::io(&from, e))?;
        }
    }
    Ok(())
}

/// The files that an HF folder has of a tokenizer which came from GGUF.
fn write_tokenizer(folder: &Path, tokenizer: &Tokenizer, files: &DecoderFiles) -> Result<()> {
    tokenizer.write(&folder.join("tokenizer.json"))?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let eos = tokenizer.eos_ids().first().copied();
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(tokenizer.bos_id()),
        "eos_token": text(eos),
        "pad_token": text(eos),
        "clean_up_tokenization_spaces": false,
        "model_max_length": files.config.max_position_embeddings,
        "chat_template": tokenizer.chat().map(crate::ChatTemplate::source),
    });
    write_json(folder, "tokenizer_config.json", &config)?;
    let generation = json!({"bos_token_id": tokenizer.bos_id(), "eos_token_id": files.eos_ids()});
    write_json(folder, "generation_config.json", &generation)
}
