//! Models of a few thousand parameters with a tokenizer of one token per byte, written to a folder.

use candle_core::{Device, Tensor};
use e2llm_lm::{BertConfig, LlamaConfig, TensorSpec};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// `{role}:{content}` for each message, between `<s>` and `</s>`, then `assistant:`.
const CHAT_TEMPLATE: &str = "{% for m in messages %}<s>{{ m.role }}:{{ m.content | trim }}</s>{% endfor %}\
                             {% if add_generation_prompt %}<s>assistant:{% endif %}";

/// Ids: 0 padding, 1 `<s>`, 2 `</s>`, then one for each byte.
pub(crate) const VOCABULARY: usize = 259;
const FIRST_BYTE: u32 = 3;

/// A Llama of the given window in `folder`.
pub(crate) fn decoder(folder: &Path, window: usize) {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
        "max_position_embeddings": window, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    });
    write_json(folder, "config.json", &config);
    let specs = LlamaConfig::from_file(&folder.join("config.json")).unwrap().tensors();
    weights(folder, &specs);
    tokenizer(folder, false);
}

/// A BERT of the given window in `folder`.
#[allow(dead_code, reason = "some who share these helpers have no encoder")]
pub(crate) fn encoder(folder: &Path, window: usize) {
    let config = json!({
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": window,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
    });
    write_json(folder, "config.json", &config);
    let specs = BertConfig::from_file(&folder.join("config.json")).unwrap().tensors();
    weights(folder, &specs);
    tokenizer(folder, true);
}

/// A JSON file in `folder`, which is made where it is missing.
pub(crate) fn write_json(folder: &Path, name: &str, value: &serde_json::Value) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join(name), value.to_string()).unwrap();
}

/// Values that differ from each other and from tensor to tensor, the same in every run.
pub(crate) fn weights(folder: &Path, specs: &[TensorSpec]) {
    let mut tensors = HashMap::new();
    for (i, spec) in specs.iter().enumerate() {
        let is_norm = spec.name.contains("norm") || spec.name.contains("LayerNorm");
        let value = |j: usize| {
            let wave = ((j * 7919 + i * 104_729 + 13) as f32 * 0.7351).sin();
            if is_norm && spec.name.ends_with("weight") { 1.0 + 0.1 * wave } else { 0.4 * wave }
        };
        let values: Vec<f32> = (0..spec.len()).map(value).collect();
        tensors
            .insert(spec.name.clone(), Tensor::from_vec(values, spec.shape.clone(), &Device::Cpu).unwrap());
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

/// GPT-2's printable names of the 256 bytes.
fn byte_names() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut name = |b: u32| {
        if printable(b) {
            return char::from_u32(b).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(&mut name).collect()
}

/// A tokenizer of one token per byte, which puts `<s>` before a text and, where it `wraps`, `</s>` behind it.
pub(crate) fn tokenizer(folder: &Path, wraps: bool) {
    let special = ["<pad>", "<s>", "</s>"];
    let mut vocabulary: BTreeMap<String, usize> = BTreeMap::new();
    vocabulary.extend(special.iter().enumerate().map(|(i, s)| ((*s).to_owned(), i)));
    vocabulary.extend(byte_names().iter().enumerate().map(|(i, c)| (c.to_string(), i + FIRST_BYTE as usize)));
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let token = |id: usize| json!({"SpecialToken": {"id": special[id], "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single = if wraps { vec![token(1), text.clone(), token(2)] } else { vec![token(1), text.clone()] };
    let name = |id: usize| json!({"id": special[id], "ids": [id], "tokens": [special[id]]});
    let tokenizer = json!({
        "version": "1.0",
        // As all-MiniLM's file has it: a reader that does not switch it off loses text.
        "truncation": if wraps { json!({"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}) } else { json!(null) },
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": [text],
                           "special_tokens": {"<s>": name(1), "</s>": name(2)}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary, "merges": []},
    });
    write_json(folder, "tokenizer.json", &tokenizer);
    let config = json!({"chat_template": CHAT_TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"});
    write_json(folder, "tokenizer_config.json", &config);
}
