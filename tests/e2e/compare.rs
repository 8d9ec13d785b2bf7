//! `compare`: runs of `echo` in other modes against each other.

use crate::invoke::{arg, bench};
use crate::runs::{echo, text};
use std::path::Path;
use tempfile::tempdir;

const TASKS: &str = "qmsum,quality,triviaqa";

/// Two runs in a folder: `head` answers with the context's beginning, `echo` with the question.
fn two(dir: &Path) -> (String, String) {
    let (head, plain) = (dir.join("head"), dir.join("echo"));
    echo(&head, TASKS, &["-q", "--backend-option", "mode=context-head"]).code(0);
    echo(&plain, TASKS, &["-q"]).code(0);
    (arg(&head).to_owned(), arg(&plain).to_owned())
}

/// Makes a run look like one of another backend.
fn pass_off(run: &Path, backend: &str) {
    let manifest = text(run, "manifest.toml");
    let changed = manifest.replacen("name = \"echo\"", &format!("name = \"{backend}\""), 1);
    assert_ne!(manifest, changed);
    std::fs::write(run.join("manifest.toml"), changed).unwrap();
}

#[test]
fn a_run_against_itself_and_another() {
    let dir = tempdir().unwrap();
    let (head, plain) = two(dir.path());
    let same = bench(&["compare", &head, &head, "--json"]).code(0);
    let same = &same.json_lines()[0];
    assert_eq!(same["differences"].as_array().unwrap().len(), 3);
    for d in same["differences"].as_array().unwrap() {
        assert_eq!((d["difference"].as_f64(), d["p"].as_f64()), (Some(0.0), Some(1.0)), "{d}");
        assert_eq!((d["ci_low"].as_f64(), d["ci_high"].as_f64()), (Some(0.0), Some(0.0)), "{d}");
    }
    let compared = bench(&["compare", &head, &plain, "--metrics", "rouge", "--tasks", "qmsum", "--json"]);
    let compared = &compared.code(0).json_lines()[0];
    let differences = compared["differences"].as_array().unwrap();
    let gmean = differences.iter().find(|d| d["metric"] == "rouge_gmean").unwrap();
    assert!(differences.len() > 10, "all values of a family are compared");
    let ends = [gmean["ci_low"].as_f64().unwrap(), gmean["ci_high"].as_f64().unwrap()];
    let difference = gmean["difference"].as_f64().unwrap();
    assert!(ends[0] <= difference && difference <= ends[1] && ends[0] < ends[1], "{gmean}");
    let value = |d: &serde_json::Value, key: &str| d[key].as_f64().unwrap();
    assert!((value(gmean, "value") - value(gmean, "baseline_value") - difference).abs() < 1e-9);
    assert!(differences.iter().all(|d| d["p_holm"].as_f64() >= d["p"].as_f64()));
    let text = bench(&["compare", &head, &plain]).code(0);
    text.prints(&["task metric baseline run difference", "qmsum rouge_gmean (%)"]).says(&[
        "paired permutation test",
        "`head`: sample records, not a benchmark result: qmsum, quality, triviaqa",
    ]);
    let csv = bench(&["compare", &head, &plain, "--format", "csv"]).code(0).stdout();
    assert_eq!(csv.matches("\r\ndifference,").count(), 3, "{csv}");
    assert_eq!(csv, bench(&["compare", &head, &plain, "--format", "csv"]).code(0).stdout());
    bench(&["compare", &head, &plain, "--format", "md"])
        .code(0)
        .prints(&["| quality | accuracy@official (%) |"]);
}

#[test]
fn runs_of_other_samples_and_prompts_are_refused() {
    let dir = tempdir().unwrap();
    let (head, _) = two(dir.path());
    let short = dir.path().join("short");
    echo(&short, "qmsum,niah", &["-q", "--limit", "2"]).code(0);
    let short = arg(&short);
    bench(&["compare", &head, short]).code(2).says(&[
        "the runs of task `qmsum` cannot be compared as they are",
        "samples only in `head`",
        "--allow-differences compares the 2 samples they share",
    ]);
    bench(&["compare", &head, short, "--allow-differences"]).code(0).prints(&["2 ("]).says(&[
        "qmsum: ",
        "samples only in `head`",
        "quality: not in `short`",
        "niah: not in `head`",
    ]);
    bench(&["compare", &head]).code(2).says(&["one run cannot be compared"]);
    bench(&["compare", &head, short, "--tasks", "qmsun"]).code(2).says(&["did you mean `qmsum`?"]);
    bench(&["compare", &head, short, "--tasks", "niah"])
        .code(2)
        .says(&["no task of `head` is in another run"]);
    bench(&["compare", &head, &head, "--metrics", "n_null", "--tasks", "qmsum"])
        .code(2)
        .says(&["task `qmsum`: no answer can be scored", "choice"]);
    bench(&["compare", &head, arg(dir.path())]).code(2).says(&["is that the folder of a run?"]);
    bench(&["compare", &head, &head, "--metrics", "rogue1"]).code(2).says(&["did you mean `rouge1`?"]);
}

#[test]
fn a_method_is_placed_between_no_context_and_full() {
    let dir = tempdir().unwrap();
    let (head, plain) = two(dir.path());
    let fixed = dir.path().join("fixed");
    echo(&fixed, TASKS, &["-q", "--backend-option", "mode=fixed"]).code(0);
    let all = ["compare", &head, &plain, arg(&fixed), "--tasks", "qmsum", "--normalise"];
    bench(&all).code(2).says(&["--normalise needs a run of backend `no-context`", "among the others"]);
    pass_off(&fixed, "no-context");
    pass_off(Path::new(&head), "full");
    let made = &bench(&[&all[..], &["--json"]].concat()).code(0).json_lines()[0];
    let rows = made["normalised"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "the anchors themselves are not placed");
    let value = |key: &str| rows[0][key].as_f64().unwrap();
    let expected = (value("value") - value("no_context")) / (value("full") - value("no_context"));
    assert!((value("normalised") - expected).abs() < 1e-6 && rows[0]["run"] == "echo", "{}", rows[0]);
    bench(&all).code(0).prints(&["no-context full normalised"]);
    bench(&[&all[..], &["--format", "csv"]].concat()).code(0).prints(&["normalised,qmsum,"]);
}
