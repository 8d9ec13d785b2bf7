//! Trained baselines: from records to answers, through the program.

use crate::invoke::{arg, bench, repository};
use crate::runs::{results, samples};
use std::fmt::Write;
use std::path::Path;
use tempfile::tempdir;

/// A configuration of the repository with steps that two cores make in seconds.
fn short(name: &str, folder: &Path) -> std::path::PathBuf {
    let text = std::fs::read_to_string(repository(&format!("configs/{name}.toml"))).unwrap();
    let (model, rest) = text.split_once("[[phase]]").unwrap();
    let optimizer = rest.split_once("[optimizer]").unwrap().1;
    let phase = "[[phase]]\nsteps = 2\nreasoning_batch = 1\nreconstruction_batch = 1\n";
    let text = format!("{model}{phase}\n[optimizer]{optimizer}")
        .replace("items = 256", "items = 1")
        .replace("decoder_context = 512", "decoder_context = 16")
        .replace("segment_tokens = 1536", "segment_tokens = 64")
        .replace("summary_tokens = 50", "summary_tokens = 4")
        .replace("checkpoint_every = 100", "checkpoint_every = 1");
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn smoke_models_are_trained_and_answer() {
    if !crate::models::cached() {
        return;
    }
    let dir = tempdir().unwrap();
    let mut records = String::new();
    for i in 0..8 {
        let context = format!("The keeper of house {i} has {} lamps. ", i + 2).repeat(12);
        let record = serde_json::json!({"context": context, "prompt": "How many lamps?", "answer": (i + 2).to_string()});
        writeln!(records, "{record}").unwrap();
    }
    let (input, data) = (dir.path().join("records.jsonl"), dir.path().join("data"));
    std::fs::write(&input, records).unwrap();
    let prepare = ["--input", arg(&input), "--out", arg(&data), "--validation", "0.3", "--offline"];
    bench(&[&["prepare"], &prepare[..]].concat()).code(0);
    for method in ["cepe", "lloco"] {
        let config = short(method, dir.path());
        let out = dir.path().join(method);
        let train =
            ["train", "--config", arg(&config), "--data", arg(&data), "--out", arg(&out), "--offline", "-q"];
        bench(&[&train[..], &["--steps", "1"]].concat()).code(0);
        // Other settings are refused by name, the same ones go on.
        bench(&[&train[..], &["--resume"]].concat()).code(2).says(&["phase"]);
        std::fs::remove_dir_all(&out).unwrap();
        bench(&train).code(0);
        bench(&[&train[..], &["--resume"]].concat()).code(0);
        let model = out.join("last");
        let run = dir.path().join(format!("run-{method}"));
        let args = ["run", "--tasks", "niah", "--task-option", "niah.lengths=300", "--backend", method];
        let more = ["--limit", "1", "--max-new-tokens", "3", "--offline", "--model", arg(&model)];
        bench(&[&args[..], &more[..], &["--out", arg(&run)]].concat()).code(0).prints(&["niah"]);
        let other = if method == "cepe" { "lloco" } else { "cepe" };
        let wrong = ["run", "--tasks", "niah", "--backend", other, "--offline", "--model", arg(&model)];
        let wrong_out = dir.path().join("wrong");
        bench(&[&wrong[..], &["--out", arg(&wrong_out)]].concat()).code(2).says(&["checkpoint of", method]);
        let usage = &samples(&run, "niah")[0]["outcome"]["answered"]["usage"];
        let tokens = |key: &str| usage[key].as_u64().unwrap_or_else(|| panic!("{method}: {usage}"));
        assert_eq!(tokens("context_compressed"), tokens("context_tokens"), "{usage}");
        assert!(tokens("context_tokens") > 50 && tokens("soft_tokens") > 0, "{usage}");
        assert_eq!(tokens("context_dropped"), 0, "{usage}");
        let run = &results(&run)["run"];
        assert!(run["trained_parameters"].as_u64().unwrap() > 1_000_000, "{run}");
    }
}
