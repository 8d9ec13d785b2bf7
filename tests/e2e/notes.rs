//! What is told on stderr.

use crate::invoke::{arg, bench, command};
use crate::runs::samples;
use std::process::Stdio;
use tempfile::tempdir;

#[test]
fn a_stderr_that_is_gone_ends_nothing() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut run = command(&["run", "--tasks", "qmsum,quality", "--backend", "echo", "--out", arg(&out)]);
    // the run's own lines and a log's
    run.args(["--backend-option", "fail_every=3"]).env("E2LLM_LOG", "debug");
    let status = run.stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(3));
    for task in ["qmsum", "quality"] {
        assert!(samples(&out, task).len() > 2, "{task}");
    }
    assert!(out.join("leaderboard.csv").exists());
}

#[test]
fn a_plugins_warnings_are_told_once_and_plainly() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let args = ["run", "--tasks", "ruler", "--backend", "echo", "--limit", "1", "-q", "--out", arg(&out)];
    let ended = bench(&[&args[..], &["--task-option", "ruler.lengths=1000"]].concat()).code(0);
    let text = ended.stderr();
    let mut lines: Vec<_> = text.lines().collect();
    assert!(lines.len() > 1 && lines.iter().all(|l| l.starts_with("warning: ruler: ")), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), all, "told twice: {text}");
}
