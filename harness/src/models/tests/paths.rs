//! Names and paths, and what is told of them.

use super::*;

/// A safetensors file with one tensor of each of the given dtypes and shapes.
fn safetensors(tensors: &[(&str, &str, &str)]) -> Vec<u8> {
    let entries: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,0]}}"#)
        })
        .collect();
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes
}

#[test]
fn paths_resolve_to_what_they_hold() {
    let machine = Machine::new();
    let fetcher = machine.fetcher();
    let resolve = |name: &str| fetcher.resolve(machine.path(name).to_str().unwrap());
    write(&machine.path("hf/config.json"), CONFIG);
    let files = resolve("hf").unwrap();
    assert_eq!((files.decoder, files.window), (Some(machine.path("hf")), Some(77)));
    write(&machine.path("bert/config.json"), br#"{"model_type": "bert", "max_position_embeddings": 512}"#);
    assert_eq!(resolve("bert").unwrap().encoder, Some(machine.path("bert")));
    write(&machine.path("one.gguf"), b"GGUF");
    assert_eq!(resolve("one.gguf").unwrap().decoder, Some(machine.path("one.gguf")));
    write(&machine.path("folder/a.gguf"), b"GGUF");
    assert_eq!(resolve("folder").unwrap().decoder, Some(machine.path("folder/a.gguf")));
    write(&machine.path("folder/b.gguf"), b"GGUF");
    assert!(resolve("folder").unwrap_err().to_string().contains("several .gguf files"));
    write(&machine.path("w.safetensors"), b"");
    assert!(resolve("w.safetensors").unwrap_err().help().unwrap().contains("HF layout"));
    write(&machine.path("empty/readme"), b"");
    assert!(resolve("empty").unwrap_err().to_string().contains("neither e2llm_config.json"));
    write(&machine.path("broken/config.json"), b"{");
    assert!(resolve("broken").unwrap_err().to_string().contains("config.json` is no usable model"));
    assert!(matches!(resolve("absent").unwrap_err(), ModelError::Unknown { .. }));
}

#[test]
fn checkpoint_parts_are_folders_or_references() {
    let mut machine = Machine::new();
    machine.settings.local = Some(machine.path("local"));
    write(&machine.path("local/tiny/config.json"), CONFIG);
    write(&machine.path("local/tiny/model.safetensors"), WEIGHTS);
    let fetcher = machine.fetcher();
    let ckpt = machine.path("ckpt");
    let resolve = || fetcher.resolve(ckpt.to_str().unwrap());
    write(&ckpt.join("e2llm_config.json"), b"{}");
    assert!(resolve().unwrap_err().to_string().contains("there is no folder `encoder`"));
    write(&ckpt.join("encoder/config.json"), br#"{"type_vocab_size": 2, "max_position_embeddings": 64}"#);
    let source = |source: &str, sha: &str| format!("source = \"{source}\"\nsha256 = \"{sha}\"\n");
    let reference = ckpt.join("decoder/source.toml");

    write(&reference, source("tiny", &sha256(WEIGHTS)).as_bytes());
    let files = resolve().unwrap();
    assert_eq!(files.checkpoint, Some(ckpt.clone()));
    assert_eq!(files.encoder, Some(ckpt.join("encoder")));
    assert_eq!(files.decoder, Some(machine.path("local/tiny")));
    assert_eq!(files.window, Some(77));

    write(&reference, source("tiny", &sha256(b"other weights")).as_bytes());
    let error = resolve().unwrap_err().to_string();
    assert!(error.contains("the checkpoint was made on `tiny` with sha256"), "{error}");
    write(&reference, source("tinny", &sha256(WEIGHTS)).as_bytes());
    assert_eq!(resolve().unwrap_err().help().unwrap(), "did you mean `tiny`?");
    write(&reference, source("all-minilm-l6-v2", &sha256(WEIGHTS)).as_bytes());
    assert!(resolve().unwrap_err().to_string().contains("is of kind `encoder`"));
    write(&reference, b"source = \"tiny\"\n");
    assert!(resolve().unwrap_err().to_string().contains("missing field `sha256`"));

    fs::remove_file(&reference).unwrap();
    let json = format!(r#"{{"source": "../../local/tiny", "sha256": "{}"}}"#, sha256(WEIGHTS));
    write(&ckpt.join("decoder/source.json"), json.as_bytes());
    assert_eq!(resolve().unwrap().decoder, Some(ckpt.join("decoder/../../local/tiny")));
    write(&machine.path("local/tiny/model.safetensors"), b"changed");
    assert!(resolve().unwrap_err().to_string().contains("but that has"), "weights are compared");
}

#[test]
fn info_counts_parameters_and_tells_the_state_of_files() {
    let machine = Machine::new();
    let fetcher = machine.fetcher();
    write(&machine.cached("config.json"), CONFIG);
    write(&machine.cached("model.safetensors"), b"short");
    let info = fetcher.info("tiny").unwrap();
    assert_eq!(info.architecture.as_deref(), Some("LlamaForCausalLM"));
    assert_eq!(info.files[0].state, FileState::Verified);
    assert_eq!(info.files[1].state, FileState::Corrupt("has 5 bytes, not 47".into()));
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["files"][0]["state"], "verified");
    assert_eq!(json["files"][1]["detail"], "has 5 bytes, not 47");
    assert_eq!(json["kind"], "decoder");

    let ckpt = machine.path("ckpt");
    write(&ckpt.join("e2llm_config.json"), b"{}");
    write(&ckpt.join("e2llm.safetensors"), &safetensors(&[("adapter.a", "F32", "[3,4]")]));
    write(&ckpt.join("encoder/config.json"), br#"{"model_type": "bert", "max_position_embeddings": 64}"#);
    let weights =
        safetensors(&[("w", "BF16", "[5,2]"), ("scale", "F32", "[]"), ("position_ids", "I64", "[1,64]")]);
    write(&ckpt.join("encoder/model.safetensors"), &weights);
    write(&ckpt.join("decoder/config.json"), CONFIG);
    write(&ckpt.join("decoder/model.safetensors"), &safetensors(&[("w", "F16", "[100]")]));
    let info = fetcher.info(ckpt.to_str().unwrap()).unwrap();
    assert_eq!((info.kind, info.trained, info.window), (Kind::E2llm, Some(true), Some(77)));
    assert_eq!(info.parameters, Some(12 + 11 + 100));
    assert!(info.to_string().contains("architecture bert"), "{info}");

    // A header that claims more than there is must not be believed.
    write(&ckpt.join("e2llm.safetensors"), &u64::MAX.to_le_bytes());
    let error = fetcher.info(ckpt.to_str().unwrap()).unwrap_err();
    assert!(error.to_string().contains("safetensors header of 18446744073709551615 bytes"), "{error}");
}

#[test]
fn a_model_of_parts_says_whether_it_is_trained() {
    let machine = Machine::new();
    let info = machine.fetcher().info("e2llm-135m").unwrap();
    assert_eq!((info.parts.len(), info.window), (2, Some(8192)));
    assert_eq!(info.parameters, Some(134_515_008 + 22_713_216 + 11_650_177));
    assert!(info.to_string().contains("trained      yes"), "{info}");
    let mut catalogue = Catalogue::built_in().unwrap();
    let text = "[raw]\nkind = \"e2llm\"\ndescription = \"\"\nlicence = \"\"\nencoder = \"all-minilm-l6-v2\"\n\
                decoder = \"smollm2-135m-instruct\"\ntrained = false\n";
    catalogue.add_text(text, "raw.toml").unwrap();
    let info = Fetcher::new(catalogue, FetchSettings::with_cache(machine.path("cache"))).info("raw").unwrap();
    assert!(info.to_string().contains("NO: adapter and LoRA are random"), "{info}");
}
