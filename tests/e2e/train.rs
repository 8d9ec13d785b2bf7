//! Training decoders and evaluating what came out.

use crate::invoke::{arg, bench, command, finish};
use crate::tiny;
use std::path::Path;
use tempfile::tempdir;

/// Prepares a few records with tiny models in `root`.
fn prepare(root: &Path) {
    tiny::encoder(&root.join("encoder"), 64);
    tiny::decoder(&root.join("decoder"), 512);
    let record = |i: usize| {
        let words: Vec<_> = (0..20).map(|w| format!("word{}", (w * 31 + i * 17) % 100)).collect();
        let record = serde_json::json!({
            "context": words.join(" "), "prompt": format!("Which is number {i}?"), "answer": words[i % 20],
        });
        record.to_string() + "\n"
    };
    std::fs::write(root.join("records.jsonl"), (0..12).map(record).collect::<String>()).unwrap();
    let mut prepare =
        command(&["prepare", "--input", "records.jsonl", "--out", "data", "--validation", "0.3"]);
    prepare.args(["--encoder", "encoder", "--decoder", "decoder", "--chunk-chars", "40", "-q"]);
    finish(in_folder(prepare, root)).code(0);
}

fn in_folder(mut command: std::process::Command, root: &Path) -> std::process::Command {
    command.current_dir(root);
    command
}

fn settings(method: &str, scaling: &str) -> String {
    format!(
        "[model]\nmethod = \"{method}\"\ndecoder = \"decoder\"\n\
         rope = {{ scaling = \"{scaling}\", factor = 4 }}\n\
         decoder_lora = {{ r = 2, lora_alpha = 4, target_modules = [\"q_proj\", \"o_proj\"] }}\n\
         [[phase]]\nsteps = 3\nreasoning_batch = 4\n\
         [validation]\nevery = 1\n[output]\ncheckpoint_every = 1\nkeep = 5\n"
    )
}

#[test]
fn trained_decoders_are_resumed_and_answer() {
    let dir = tempdir().unwrap();
    let root = dir.path();
    prepare(root);
    for (name, method, scaling, backend) in
        [("longlora", "longlora", "linear", "longlora"), ("yarn", "sft-truncate", "yarn", "yarn")]
    {
        std::fs::write(root.join(format!("{name}.toml")), settings(method, scaling)).unwrap();
        let train = |out: &str, more: &[&str]| {
            let config = format!("{name}.toml");
            let args = ["train", "--config", &config, "--data", "data", "--out", out, "--json", "-q"];
            finish(in_folder(command(&[&args[..], more].concat()), root)).code(0).json_lines().remove(0)
        };
        let (whole, parts) = (format!("{name}-whole"), format!("{name}-parts"));
        assert_eq!(train(&whole, &[])["steps"], 3);
        train(&parts, &[]);
        // As if it had been killed behind its second step.
        std::fs::remove_dir_all(root.join(&parts).join("checkpoints/step-00000003")).unwrap();
        assert_eq!(train(&parts, &["--resume"])["steps"], 3);
        let weights = |of: &str| {
            std::fs::read(root.join(of).join("checkpoints/step-00000003/adapter_model.safetensors")).unwrap()
        };
        assert!(weights(&whole) == weights(&parts), "{name}: the resumed training is another one");

        let model = root.join(&whole).join("last");
        let out = root.join(format!("run-{name}"));
        let run = ["run", "--tasks", "niah", "--task-option", "niah.lengths=1200", "--limit", "2", "-q"];
        let asked =
            ["--backend", backend, "--model", arg(&model), "--max-new-tokens", "4", "--out", arg(&out)];
        bench(&[&run[..], &asked].concat()).code(0);
        let manifest = std::fs::read_to_string(out.join("manifest.toml")).unwrap();
        assert!(manifest.contains("window = 2048"), "{manifest}");
        let trained = if name == "longlora" { 512 + 259 * 32 + 5 * 32 } else { 512 };
        assert!(manifest.contains(&format!("trained_parameters = {trained}")), "{manifest}");
        let info = bench(&["model", "info", arg(&model)]).code(0).stdout();
        assert!(info.contains("512 in decoder LoRA") && info.contains("window       2048"), "{info}");
        assert_eq!(info.contains("8288 in embeddings") && info.contains("160 in norms"), name == "longlora");
    }
    let base = root.join("decoder");
    let run =
        ["run", "--tasks", "niah", "--limit", "1", "--backend", "longlora", "--model", arg(&base), "-q"];
    bench(&[&run[..], &["--out", arg(&root.join("none"))]].concat()).says(&["method = \"longlora\""]);
}

#[test]
fn what_cannot_be_trained_is_said_before_anything_is_loaded_or_lost() {
    let dir = tempdir().unwrap();
    let root = dir.path();
    prepare(root);
    let write = |name: &str, model: &str| {
        let text = format!(
            "[model]\nencoder = \"encoder\"\ndecoder = \"decoder\"\nsoft_tokens_per_chunk = 2\n{model}\n\
             [model.decoder_lora]\nr = 2\ntarget_modules = [\"q_proj\"]\n\
             [[phase]]\nsteps = 1\nreasoning_batch = 2\n[validation]\nevery = 0\n"
        );
        std::fs::write(root.join(name), text).unwrap();
    };
    let train = |config: &str, more: &[&str]| {
        let args = ["train", "--config", config, "--out", "out"];
        finish(in_folder(command(&[&args[..], more].concat()), root))
    };
    write("nowhere.toml", "start = \"nowhere\"");
    train("nowhere.toml", &["--data", "data"]).code(2).says(&["model.start", "nowhere", "e2llm.safetensors"]);
    assert!(!root.join("out/config.toml").exists());
    let all = ["prepare", "--input", "records.jsonl", "--out", "all", "--validation", "0"];
    let models = ["--encoder", "encoder", "--decoder", "decoder"];
    finish(in_folder(command(&[&all[..], &models].concat()), root)).code(0).says(&["nothing to validate on"]);
    let validate = ["validate", "--config", "nowhere.toml", "--data", "all", "--start", "out/last"];
    write("good.toml", "");
    train("good.toml", &["--data", "all"]).code(0).says(&["nothing was validated", "last checkpoint"]);
    assert!(root.join("out/best/e2llm.safetensors").exists(), "without a validation the last is the best");
    train("good.toml", &["--data", "all"]).code(2).says(&["already", "--resume"]);
    finish(in_folder(command(&validate), root)).code(2).says(&["nothing to validate on in all"]);
    let device = ["train", "--config", "good.toml", "--data", "all", "--device", "gpu", "--out", "new"];
    finish(in_folder(command(&device), root)).code(2).says(&["`gpu`", "cuda:N"]);
    let nodata = ["train", "--config", "good.toml", "--data", "nodata", "--out", "new"];
    finish(in_folder(command(&nodata), root)).code(2).says(&["nodata", "prepare"]);
}
