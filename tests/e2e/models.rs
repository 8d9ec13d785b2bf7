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
