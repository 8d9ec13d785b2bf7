//! Rotary frequencies against transformers' (`golden/rope`).

use crate::support::{llama_json, shared};
use e2llm_lm::LlamaConfig;
use serde_json::{Value, json};

#[test]
fn golden_rope_frequencies_and_attention_factors() {
    let Some(path) = shared("golden/rope/rope.json") else { return };
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 18);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    for case in &cases {
        let window = case["window"].as_u64().unwrap() as usize;
        let theta = case["theta"].as_f64().unwrap();
        // Both spellings that configurations use: the old one beside `rope_theta`, the new one around it.
        for new in [false, true] {
            let mut config = llama_json();
            config["max_position_embeddings"] = json!(window);
            config["head_dim"] = case["head_dim"].clone();
            let mut params = case["params"].clone();
            if new {
                params["rope_theta"] = json!(theta);
                config["rope_parameters"] = params;
                config.as_object_mut().unwrap().remove("rope_theta");
            } else {
                let kind = params.as_object_mut().unwrap().remove("rope_type").unwrap();
                params["type"] = kind;
                config["rope_scaling"] = params;
                config["rope_theta"] = json!(theta);
            }
            std::fs::write(&file, config.to_string()).unwrap();
            let config = LlamaConfig::from_file(&file).unwrap();
            assert_eq!(config.rope_theta, theta);
            let positions = case["seq_len"].as_u64().map_or(window, |n| n as usize);
            let got = config.rope_scaling.inverse_frequencies(theta, config.head_dim, positions);
            let want: Vec<f64> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs().max(1e-3),
                    "{got} {want} in {}",
                    case["params"]
                );
            }
            let factor = case["attention_factor"].as_f64().unwrap();
            assert!((config.rope_scaling.attention_factor() - factor).abs() < 1e-6);
        }
    }
}
