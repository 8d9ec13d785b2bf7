//! Real models, where they are in the cache already; these tests download nothing.

use crate::invoke::{arg, bench};
use crate::runs::{results, samples};
use tempfile::tempdir;

/// Whether the default model can be had without the network.
pub(crate) fn cached() -> bool {
    let fetched = bench(&["model", "fetch", "e2llm-135m", "--offline", "-q"]);
    let is_there = !fetched.stdout().is_empty();
    if !is_there {
        eprintln!("SKIPPED: e2llm-135m cannot be had without the network: {}", fetched.stderr());
    }
    is_there
}

#[test]
fn smoke_models_answer_in_every_backend_that_has_one() {
    if !cached() {
        return;
    }
    for backend in
        ["e2llm", "truncate", "no-context", "full", "yarn", "rag", "streaming", "snapkv", "longllmlingua"]
    {
        let dir = tempdir().unwrap();
        let out = dir.path().join("run");
        bench(&[
            "run",
            "--tasks",
            "quality",
            "--backend",
            backend,
            "--limit",
            "1",
            "--max-new-tokens",
            "8",
            "--offline",
            "--out",
            arg(&out),
        ])
        .code(0)
        .prints(&["quality", "accuracy@official"]);
        let usage = &samples(&out, "quality")[0]["outcome"]["answered"]["usage"];
        let tokens = |key: &str| usage[key].as_u64().unwrap_or_else(|| panic!("{backend}: {usage}"));
        assert!((1..=8).contains(&tokens("generated_tokens")), "{backend}: {usage}");
        let seen = (tokens("context_compressed") > 0, tokens("context_seen") > 0);
        let reads = !matches!(backend, "e2llm" | "no-context");
        assert_eq!(seen, (backend == "e2llm", reads), "{backend}: {usage}");
        let run = &results(&out)["run"];
        assert!(run["parameters"].as_u64().unwrap() > 100_000_000, "{run}");
        if backend == "e2llm" && run["trained_parameters"] == 0 {
            assert!(run["warnings"].to_string().to_lowercase().contains("untrained"), "{run}");
        }
    }
}

#[test]
fn random_weights_of_any_size_stand_in_for_a_model_in_every_method() {
    if !cached() {
        return;
    }
    let dir = tempdir().unwrap();
    let (model, out) = (dir.path().join("model"), dir.path().join("curves"));
    let random = ["model", "random", "--shape", "tiny", "--offline", "--out", arg(&model)];
    bench(&random).code(0).says(&["random weights of shape tiny"]);
    bench(&random).code(2).says(&["is not empty"]);
    bench(&["model", "info", arg(&model)]).code(0).prints(&["random weights (seed 0)", "NO: adapter"]);
    let methods = ["e2llm", "full", "rag", "streaming", "snapkv", "selfextend", "cepe", "lloco"];
    let (listed, lengths) = (methods.join(","), ["300", "600"]);
    let of = ["--model", arg(&model), "--backend", &listed, "--out", arg(&out)];
    let how = ["--lengths", "300,600", "--new-tokens", "2", "--repeats", "1", "-q"];
    let points = bench(&[&["bench", "backend"], &of[..], &how[..]].concat()).code(0).json_lines();
    assert_eq!(points.len(), methods.len() * lengths.len());
    for point in points {
        assert!(point["error"].is_null() && point["prompt_tokens"].as_u64() > Some(0), "{point}");
    }
    let answers =
        ["run", "--tasks", "niah", "--limit", "1", "--max-new-tokens", "1", "--backend", "truncate"];
    let to = dir.path().join("run");
    let run = ["--model", arg(&model), "--out", arg(&to)];
    bench(&[&answers[..], &run].concat()).code(0).says(&["decoder are RANDOM"]);
    assert!(std::fs::read_to_string(to.join("manifest.toml")).unwrap().contains("are RANDOM"));
    // without the file that stands in for them there are no weights
    std::fs::remove_file(model.join("decoder/random_weights.json")).unwrap();
    let again = dir.path().join("again");
    let without = ["--model", arg(&model), "--backend", "full", "--lengths", "300", "--out", arg(&again)];
    bench(&[&["bench", "backend"], &without[..]].concat()).code(1).says(&["model.safetensors"]);
}
