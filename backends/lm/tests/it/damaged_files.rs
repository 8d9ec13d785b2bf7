//! Damaged, truncated and foreign files: clear errors, no panic, no huge allocation.

use crate::support::{
    bert_config, bert_json, folder, llama_config, llama_json, random_tensors, real_model, save,
};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use e2llm_lm::{BertEncoder, DecoderFiles, Gguf, Llama, LmError, Precision, Weights};
use std::path::Path;

fn open_error(path: &Path) -> String {
    let error = Weights::open(path).unwrap_err().to_string();
    assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error} does not name the file");
    error
}

#[test]
fn all_misfits_are_listed_at_once() {
    let config = llama_config(&llama_json());
    let mut tensors = random_tensors(&config.tensors());
    tensors.remove("model.norm.weight");
    tensors.remove("model.layers.1.mlp.up_proj.weight");
    tensors.insert("model.layers.2.extra".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    tensors.insert(
        "model.layers.0.self_attn.q_proj.weight".into(),
        Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap(),
    );
    tensors.insert(
        "model.layers.0.input_layernorm.weight".into(),
        Tensor::zeros(32, DType::U32, &Device::Cpu).unwrap(),
    );
    let folder = folder(&llama_json(), &[]);
    save(&folder.path().join("model.safetensors"), &tensors);
    let weights = Weights::open(folder.path()).unwrap();
    let LmError::Tensors { problems, .. } =
        Llama::load(&config, &weights, None, &Device::Cpu, Precision::F32).unwrap_err()
    else {
        panic!("another error")
    };
    assert_eq!(problems.missing.len(), 2);
    assert_eq!(problems.unexpected, ["model.layers.2.extra"]);
    assert_eq!(problems.mismatched.len(), 2);
    let text = problems.to_string();
    assert!(text.contains("[2, 3], expected [64, 32]") && text.contains("holds U32"), "{text}");
}

#[test]
fn names_of_whole_bert_models_are_accepted() {
    let config = bert_config(&bert_json());
    let mut tensors = random_tensors(&config.tensors());
    tensors.insert("pooler.dense.weight".into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
    tensors.insert("embeddings.position_ids".into(), Tensor::zeros(3, DType::U32, &Device::Cpu).unwrap());
    let prefixed = tensors.into_iter().map(|(name, t)| (format!("bert.{name}"), t)).collect();
    let folder = folder(&bert_json(), &[]);
    save(&folder.path().join("model.safetensors"), &prefixed);
    let weights = Weights::open(folder.path()).unwrap();
    BertEncoder::load(&config, &weights, None, &Device::Cpu, Precision::F32).unwrap();
}

#[test]
fn shards_are_found_by_their_index() {
    let config = llama_config(&llama_json());
    let mut first = random_tensors(&config.tensors());
    let second = first.split_off("model.layers.1");
    let folder = tempfile::tempdir().unwrap();
    let index = |names: [&str; 2]| {
        let map = serde_json::json!({"weight_map": {"a": names[0], "b": names[1]}});
        std::fs::write(folder.path().join("model.safetensors.index.json"), map.to_string()).unwrap();
    };
    assert!(open_error(folder.path()).contains("model.safetensors.index.json"));
    save(&folder.path().join("one.safetensors"), &first);
    save(&folder.path().join("two.safetensors"), &second);
    index(["one.safetensors", "two.safetensors"]);
    let weights = Weights::open(folder.path()).unwrap();
    assert_eq!((weights.files().len(), weights.tensors().len()), (2, config.tensors().len()));
    Llama::load(&config, &weights, None, &Device::Cpu, Precision::F32).unwrap();
    index(["one.safetensors", "../two.safetensors"]);
    assert!(Weights::open(folder.path()).unwrap_err().to_string().contains("no file name"));
    index(["one.safetensors", "three.safetensors"]);
    assert!(Weights::open(folder.path()).unwrap_err().to_string().contains("three.safetensors"));
}

#[test]
fn cut_and_absurd_safetensors_are_refused() {
    let config = bert_config(&bert_json());
    let folder = folder(&bert_json(), &config.tensors());
    let file = folder.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 7, 8, 8 + header / 2, 8 + header, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        open_error(&file);
    }
    for length in [u64::MAX, 1 << 40, whole.len() as u64] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        open_error(&file);
    }
    // A tensor that says it is larger than the file.
    let head = r#"{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,16]}}"#;
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head.as_bytes());
    bytes.extend([0; 16]);
    std::fs::write(&file, bytes).unwrap();
    open_error(&file);
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(Weights::open(&file).unwrap_err(), LmError::Io { .. }));
}

/// A small GGUF decoder file.
fn small_gguf() -> Vec<u8> {
    let tensor = |shape: &[usize], dtype| {
        let n: usize = shape.iter().product();
        let t = Tensor::from_vec(crate::support::noise(3, n), shape, &Device::Cpu).unwrap();
        QTensor::quantize(&t, dtype).unwrap()
    };
    let matrix = |rows, columns| tensor(&[rows, columns], GgmlDType::Q4_1);
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), tensor(&[20, 32], GgmlDType::Q8_0)),
        ("output_norm.weight".to_owned(), tensor(&[32], GgmlDType::F32)),
    ];
    for (name, rows, columns) in [
        ("attn_q", 32, 32),
        ("attn_k", 16, 32),
        ("attn_v", 16, 32),
        ("attn_output", 32, 32),
        ("ffn_gate", 64, 32),
        ("ffn_up", 64, 32),
        ("ffn_down", 32, 64),
    ] {
        tensors.push((format!("blk.0.{name}.weight"), matrix(rows, columns)));
    }
    for name in ["attn_norm", "ffn_norm"] {
        tensors.push((format!("blk.0.{name}.weight"), tensor(&[32], GgmlDType::F32)));
    }
    let tokens: Vec<_> = (0..20u8).map(|i| Value::String(char::from(b'a' + i).to_string())).collect();
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("general.alignment", Value::U32(32)),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(32)),
        ("llama.feed_forward_length", Value::U32(64)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", Value::Array(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1); 20])),
        ("tokenizer.ggml.merges", Value::Array(vec![])),
    ];
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut out = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut out, &metadata, &tensors).unwrap();
    out.into_inner()
}

#[test]
fn a_small_gguf_loads_dense_and_quantised() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    std::fs::write(&path, small_gguf()).unwrap();
    let hidden = |precision| {
        let files = DecoderFiles::open(&path);
        let files = files.unwrap_or_else(|e| panic!("{e}"));
        let llama = Llama::load(&files.config, &files.weights, None, &Device::Cpu, precision).unwrap();
        llama.forward_hidden(&llama.embed(&[1, 2, 3, 4, 5]).unwrap(), None, None).unwrap()
    };
    let gap = crate::support::distance(&hidden(Precision::F32), &hidden(Precision::Quantised));
    assert!(gap < 0.1, "{gap}");
}

#[test]
fn cut_ggufs_are_refused_at_every_length() {
    let whole = small_gguf();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    for length in (0..whole.len() - 32).step_by(7) {
        std::fs::write(&path, &whole[..length]).unwrap();
        open_error(&path);
    }
}

#[test]
fn flipped_bytes_in_a_gguf_header_never_panic() {
    let whole = small_gguf();
    let header = 1200.min(whole.len());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    for at in 0..header {
        for value in [0x00, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            std::fs::write(&path, bytes).unwrap();
            // Either it is refused with the file's name, or it is still a file that can be loaded or refused later.
            match DecoderFiles::open(&path) {
                Err(error) => assert!(error.to_string().contains("small.gguf"), "byte {at}: {error}"),
                Ok(files) => {
                    let _ =
                        Llama::load(&files.config, &files.weights, None, &Device::Cpu, Precision::Quantised);
                }
            }
        }
    }
}

#[test]
fn absurd_gguf_counts_are_refused() {
    let whole = small_gguf();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    // Number of tensors, number of metadata entries, length of the first key.
    for at in [8, 16, 24] {
        for value in [u64::MAX, 1 << 40, 1 << 20] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            assert!(open_error(&path).contains("do not suffice"));
        }
    }
    let key = b"general.alignment";
    let at = whole.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
    for value in [0u32, 3, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert!(open_error(&path).contains("alignment"));
    }
    std::fs::write(&path, b"GGML").unwrap();
    assert!(open_error(&path).contains("GGUF"));
}

#[test]
fn a_real_gguf_cut_short_is_refused() {
    let Some(real) = real_model("smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let bytes = std::fs::read(real).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = Gguf::open(&path).unwrap_err().to_string();
    assert!(error.contains("cut.gguf") && error.contains("beyond the file's end"), "{error}");
}
