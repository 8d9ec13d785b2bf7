//! RULER fitted with a real tokenizer, where the model is in the cache already; this test downloads nothing.

use crate::invoke::{arg, bench};
use crate::runs::samples;
use serde_json::Value;
use tempfile::tempdir;

#[test]
fn prompts_fitted_with_a_real_tokenizer_are_within_their_length_and_the_same_again() {
    let fetched = bench(&["model", "fetch", "smollm2-135m-instruct", "--offline", "-q"]);
    if fetched.stdout().is_empty() {
        eprintln!("SKIPPED: smollm2-135m-instruct cannot be had without the network: {}", fetched.stderr());
        return;
    }
    let dir = tempdir().unwrap();
    let run = |out: &str, backend: &str, lengths: &str, extra: &[&str]| {
        let (out, lengths) = (dir.path().join(out), format!("ruler.lengths={lengths}"));
        let base = [
            "run",
            "--tasks",
            "ruler",
            "--backend",
            backend,
            "--model",
            "smollm2-135m-instruct",
            "--offline",
        ];
        let short = ["--task-option", "ruler.samples=1", "--task-option", &lengths, "--max-new-tokens", "1"];
        bench(&[&base[..], &short, &["--store-prompts", "-q", "--out", arg(&out)], extra].concat()).code(0);
        samples(&out, "ruler")
    };
    // the context is counted by the backend and not read, which would take minutes
    let all = run("all", "no-context", "4k,8k", &[]);
    assert_eq!(all.len(), 22);
    for sample in &all {
        let meta = &sample["meta"];
        let length = meta["length"].as_u64().unwrap();
        assert_eq!(
            (meta["length"] == 4096 || meta["length"] == 8192, &meta["length_unit"]),
            (true, &"tokens".into())
        );
        let context = used(sample, "context_tokens");
        assert!(
            context + answer(sample) < length && context > length * 8 / 10,
            "{}: {context}",
            sample["id"]
        );
        let filled = meta["prompt_length"].as_u64().unwrap();
        assert!(filled <= length && filled > length * 9 / 10, "{}: {filled}", sample["id"]);
        let prompt = sample["prompt"].as_str().unwrap();
        assert!(prompt.ends_with(meta["answer_prefix"].as_str().unwrap()));
        for answer in sample["references"].as_array().unwrap() {
            assert!(prompt.contains(answer.as_str().unwrap()), "{}: {answer}", sample["id"]);
        }
    }
    // again, and in other company: the same bytes
    for sample in run("again", "no-context", "8k", &["--task-option", "ruler.tasks=fwe,niah_multikey_3,cwe"])
    {
        let before = all.iter().find(|s| s["id"] == sample["id"]).unwrap();
        assert_eq!((&sample["prompt"], &sample["key"]), (&before["prompt"], &before["key"]));
    }
    // all that a decoder reads, its chat template included
    for sample in run("read", "truncate", "1k", &["--task-option", "ruler.tasks=niah_single_2,vt"]) {
        let whole = used(&sample, "prompt_tokens") + answer(&sample);
        assert!((900..=1024).contains(&whole), "{}: {whole}", sample["id"]);
        assert_eq!(used(&sample, "context_dropped"), 0);
    }
}

fn used(sample: &Value, key: &str) -> u64 {
    sample["outcome"]["answered"]["usage"][key].as_u64().unwrap()
}

/// RULER's `tokens_to_generate`.
fn answer(sample: &Value) -> u64 {
    match sample["meta"]["task"].as_str().unwrap() {
        "vt" => 30,
        "cwe" => 120,
        "fwe" => 50,
        _ => 128,
    }
}
