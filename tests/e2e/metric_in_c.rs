//! A metric written in C: the boundary is no matter of Rust.

use crate::invoke::{arg, bench};
use crate::libraries::{compile, folder};
use serde_json::{Value, json};

#[test]
fn it_conforms_and_is_used_like_any_other() {
    let dir = folder();
    let library = dir.path().join("libexact_match_c.so");
    compile("exact_match.c", &library, &[]);
    let plugins = arg(dir.path());
    let verified =
        bench(&["plugin", "verify", arg(&library)]).code(0).prints(&["metric exact-match-c@1.0.0"]);
    assert!(!verified.stdout().contains("FAILED"));
    bench(&["list", "metrics", "--plugin-dir", plugins])
        .code(0)
        .prints(&["exact_match_c exact-match-c@1.0.0"]);
    bench(&["describe", "exact_match_c", "--plugin-dir", plugins])
        .code(0)
        .prints(&["Exact match, written in C"]);

    let pairs = dir.path().join("pairs.jsonl");
    let lines = [
        json!({"prediction": "a \"b\" \u{2028} {[", "references": ["x", "a \"b\" \u{2028} {["]}),
        json!({"prediction": "a", "references": ["A", "aa"], "meta": {"prediction": "A", "k": [1, {"z": "]"}]}}),
        json!({"references": ["last"], "prediction": "last"}),
    ];
    std::fs::write(&pairs, lines.map(|l| l.to_string() + "\n").concat()).unwrap();
    let args = ["metric", "exact-match-c", "--input", arg(&pairs), "--plugin-dir", plugins];
    let values: Vec<Value> =
        bench(&args).code(0).json_lines().iter().map(|v| v["exact_match_c"].clone()).collect();
    assert_eq!(values, [json!(1.0), json!(0.0), json!(1.0)]);
    let all = bench(&[&args[..], &["--aggregate"]].concat()).code(0).json_lines();
    assert_eq!(all, [json!({"exact_match_c": 2.0 / 3.0, "n": 3})]);
}

#[test]
fn a_run_reports_it_beside_others() {
    let dir = folder();
    compile("exact_match.c", &dir.path().join("libexact_match_c.so"), &[]);
    let out = dir.path().join("run");
    bench(&[
        "run",
        "--tasks",
        "quality",
        "--backend",
        "echo",
        "--backend-option",
        "mode=fixed",
        "--backend-option",
        "text=(B)",
        "--metrics",
        "exact_match_c,accuracy@official",
        "--plugin-dir",
        arg(dir.path()),
        "--out",
        arg(&out),
        "-q",
    ])
    .code(0);
    let results: Value = serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    let metrics = results["tasks"][0]["slices"][0]["metrics"].as_array().unwrap();
    let ids: Vec<_> = metrics.iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["exact_match_c", "accuracy@official"]);
    // the prediction is the letter B, the reference a letter
    assert_eq!(metrics[0]["value"], metrics[1]["value"]);
    let value = metrics[0]["value"].as_f64().unwrap();
    assert!(value > 0.0 && value < 100.0, "{value}");
    let manifest = std::fs::read_to_string(out.join("manifest.toml")).unwrap();
    assert!(manifest.contains("metric/exact-match-c"), "{manifest}");
}
