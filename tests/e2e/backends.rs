//! Several backends in one command.

use crate::invoke::{Ended, arg, bench, command, finish};
use crate::runs::{repeatable, samples, text};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// `echo` three times, the second one's answers being others.
const TABLES: &str = "tasks = [\"quality\", \"niah\"]\nlimit = 2\n\
    [[backend]]\nname = \"echo\"\n\
    [[backend]]\nname = \"echo\"\nlabel = \"fixed\"\noptions = { mode = \"fixed\", text = \"(B)\" }\n\
    [[backend]]\nname = \"echo\"\nlabel = \"head\"\noptions = { mode = \"context-head\" }\n";

fn with_file(folder: &Path, file: &str, more: &[&str]) -> Ended {
    let config = folder.join("run.toml");
    std::fs::write(&config, file).unwrap();
    bench(&[&["run", "--config", arg(&config)], more].concat())
}

/// The first column of a leaderboard, each name once.
fn names(csv: &str) -> Vec<String> {
    let mut names: Vec<String> =
        csv.lines().skip(1).map(|l| l.split(',').next().unwrap().to_owned()).collect();
    names.dedup();
    names
}

#[test]
fn each_has_its_run_and_all_have_one_leaderboard() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("all");
    let ended = with_file(dir.path(), TABLES, &["--out", arg(&out)]).code(0);
    ended.prints(&["| run | backend |", "| fixed |", "| head |"]).says(&["== fixed (2 of 3)"]);
    let csv = text(&out, "leaderboard.csv");
    assert_eq!(names(&csv), ["echo", "fixed", "head"]);
    assert!(text(&out, "leaderboard.md").contains("| head | echo | echo |"));
    // a run of a set is the run that it would be alone
    let alone = dir.path().join("alone");
    let options = ["--backend-option", "mode=fixed;text=(B)", "--limit", "2", "-q", "--out", arg(&alone)];
    bench(&[&["run", "--tasks", "quality,niah", "--backend", "echo"], &options[..]].concat()).code(0);
    assert!(repeatable(&out.join("fixed")) == repeatable(&alone));
    assert_eq!(samples(&out.join("head"), "niah").len(), 2);

    // other commands take the parent folder
    assert_eq!(bench(&["leaderboard", "--format", "csv", arg(&out)]).code(0).stdout(), csv);
    let both = bench(&["leaderboard", "--format", "csv", arg(&out), arg(&alone)]).code(0).stdout();
    assert_eq!(names(&both), ["all/echo", "all/fixed", "all/head", "alone"]);
    std::fs::remove_file(out.join("leaderboard.csv")).unwrap();
    std::fs::remove_file(out.join("head/results.json")).unwrap();
    bench(&["score", arg(&out)]).code(0).prints(&["| head |"]);
    assert_eq!(text(&out, "leaderboard.csv"), csv);

    with_file(dir.path(), TABLES, &["--out", arg(&out)]).code(2).says(&["holds runs already", "--resume"]);
    // what is there is not done again, and what is new is added
    let more = ["--out", arg(&out), "--resume", "--backend", "fixed,no-context"];
    let more = with_file(dir.path(), TABLES, &[&more[..], &["--model", "./no/such"]].concat());
    more.code(1).says(&[
        "quality: 2 of 2 samples were done before",
        "no-context failed",
        "1 of 2 backends failed",
    ]);
    assert_eq!(text(&out, "leaderboard.csv"), csv);
}

#[test]
fn a_backend_that_cannot_be_built_fails_alone() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("all");
    let file = "tasks = \"quality\"\nlimit = 1\n[[backend]]\nname = \"truncate\"\nmodel = \"./no/such/model\"\n\
                [[backend]]\nname = \"echo\"\n";
    let ended = with_file(dir.path(), file, &["--out", arg(&out)]);
    ended.code(1).says(&["1 of 2 backends failed", "truncate:", "no/such/model"]).prints(&["| echo |"]);
    assert_eq!(names(&text(&out, "leaderboard.csv")), ["echo"]);
    assert!(!out.join("truncate/manifest.toml").exists());
}

#[test]
fn mistakes_are_found_before_anything_is_run() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("all");
    let run = |more: &[&str]| bench(&[&["run", "--tasks", "quality", "--out", arg(&out)], more].concat());
    run(&["--backend", "echo,ehco"]).code(2).says(&["unknown backend `ehco`", "did you mean `echo`?"]);
    let both = ["--backend", "echo,no-context", "--backend-option"];
    run(&[&both[..], &["mode=fixed"]].concat()).code(2).says(&["BACKEND.KEY=VALUE"]);
    run(&[&both[..], &["no-context.mode=fixed"]].concat()).code(2).says(&["unknown backend option `mode`"]);
    run(&["--backend", "echo,echo"]).code(2).says(&["two backends are called `echo`"]);
    assert!(!out.exists());
}

#[test]
fn a_set_that_is_killed_goes_on_where_it_was() {
    let dir = tempdir().unwrap();
    let slow = TABLES.replace("name = \"echo\"\n[", "name = \"echo\"\noptions = { delay_ms = 30 }\n[");
    let whole = dir.path().join("whole");
    with_file(dir.path(), &slow, &["-q", "--out", arg(&whole)]).code(0);
    let out = dir.path().join("killed");
    let config = dir.path().join("run.toml");
    let mut run = command(&["run", "-q", "--config", arg(&config), "--out", arg(&out)]);
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !out.join("echo/samples/quality.jsonl").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing is done after a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    with_file(dir.path(), &slow, &["-q", "--resume", "--out", arg(&out)]).code(0);
    assert_eq!(text(&out, "leaderboard.csv"), text(&whole, "leaderboard.csv"));
    for label in ["echo", "fixed", "head"] {
        assert!(repeatable(&out.join(label)) == repeatable(&whole.join(label)), "{label}");
    }
}

#[test]
fn smoke_models_share_their_base_weights() {
    if !crate::models::cached() {
        return;
    }
    let dir = tempdir().unwrap();
    let out = dir.path().join("all");
    let args = ["run", "--tasks", "niah", "--backend", "no-context,truncate", "--limit", "1", "--offline"];
    let mut run = command(&args);
    run.args(["--task-option", "niah.lengths=300", "--max-new-tokens", "4", "--out", arg(&out)]);
    run.env("E2LLM_LOG", "info");
    let ended = finish(run).code(0);
    let stderr = ended.stderr();
    let line = stderr.split_once("base weights:").unwrap_or_else(|| panic!("{stderr}")).1;
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
    let (read, shared) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(read > 100 && shared == read, "{line}");
}
