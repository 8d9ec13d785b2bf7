//! Plugins written in Rust that panic: an error with the panic's words, never the end of the program.

use crate::invoke::{Ended, arg, bench};
use crate::libraries::{cargo, folder};
use crate::runs::results;
use std::path::Path;
use tempfile::TempDir;

/// A folder with the task and the metric that panic.
fn touchy() -> TempDir {
    let built = cargo(&["build", "--lib", "--examples"], "touchy");
    let dir = folder();
    for library in ["libtouchy.so", "examples/libtouchy_metric.so"] {
        let name = Path::new(library).file_name().unwrap();
        std::fs::copy(built.join(library), dir.path().join(name)).unwrap();
    }
    dir
}

fn run(dir: &TempDir, panic_in: &str, more: &[&str]) -> Ended {
    let (out, option) = (dir.path().join("run"), format!("touchy.panic_in={panic_in}"));
    let plugins = arg(dir.path());
    let mut args =
        vec!["run", "--tasks", "touchy", "--backend", "echo", "--out", arg(&out), "--plugin-dir", plugins];
    args.extend(["--task-option", &option]);
    args.extend(more);
    bench(&args)
}

#[test]
fn before_the_first_sample_it_ends_the_run() {
    for place in ["create", "info", "open", "next", "prompt"] {
        let dir = touchy();
        let message = format!("the plugin panicked: touched in {place}");
        run(&dir, place, &[]).code(1).says(&[&message, "this is a bug of the plugin"]);
        assert!(!dir.path().join("run/results.json").exists());
    }
}

#[test]
fn in_the_middle_it_costs_the_sample_and_not_the_run() {
    for place in ["next_turn", "extract"] {
        let dir = touchy();
        run(&dir, place, &[]).code(3).says(&[&format!("the plugin panicked: touched in {place}")]);
        let all = results(&dir.path().join("run"))["tasks"][0]["slices"][0].clone();
        assert_eq!((&all["n"], &all["n_error"]), (&3.into(), &1.into()), "{place}");
    }
}

#[test]
fn when_it_ends_nobody_is_hurt() {
    let dir = touchy();
    run(&dir, "destroy", &[]).code(0);
    assert!(dir.path().join("run/leaderboard.csv").exists());
}

#[test]
fn in_a_metric_it_costs_the_samples_and_not_the_run() {
    let dir = touchy();
    let options = ["--metrics", "calm", "--backend-option", "mode=fixed", "--backend-option", "text=panic"];
    run(&dir, "nowhere", &options).code(3).says(&["the plugin panicked: touched in score"]);
    let out = dir.path().join("run");
    let all = &results(&out)["tasks"][0]["slices"][0];
    assert_eq!((&all["n"], &all["n_error"]), (&3.into(), &3.into()));
    assert_eq!(all["metrics"][0]["value"], 0.0);
    bench(&["score", arg(&out), "--plugin-dir", arg(dir.path())]).code(3).says(&["touched in score"]);
}

#[test]
fn in_the_metric_command_it_is_an_error() {
    let dir = touchy();
    let pairs = dir.path().join("pairs.jsonl");
    let metric = |text: &str, more: &[&str]| {
        std::fs::write(&pairs, text).unwrap();
        let mut args = vec!["metric", "calm", "--input", arg(&pairs), "--plugin-dir", arg(dir.path())];
        args.extend(more);
        bench(&args)
    };
    let (good, bad) =
        ("{\"prediction\":\"a\",\"references\":[]}\n", "{\"prediction\":\"panic\",\"references\":[]}\n");
    metric(good, &[]).code(0).prints(&["{\"calm\":1.0}"]);
    metric(&good.replace("[]", "[\"a\"]").repeat(2), &["--aggregate"])
        .code(1)
        .says(&["the plugin panicked: touched in aggregate"]);
    metric(&format!("{good}{bad}"), &[]).code(1).says(&["the plugin panicked: touched in score"]);
}

#[test]
fn verifying_it_reports_it() {
    let dir = touchy();
    let metric = dir.path().join("libtouchy_metric.so");
    bench(&["plugin", "verify", arg(&metric)]).code(1).prints(&["FAILED an empty answer gets the minimum"]);
}
