//! Runs that are stopped, whatever stops them, and continued.

use crate::invoke::{Ended, arg, bench, command, finish};
use crate::runs::{echo, repeatable, results, samples, text};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::tempdir;

const TASKS: &str = "quality,niah,triviaqa";
const SLOW: [&str; 2] = ["--backend-option", "delay_ms=25"];

/// Continues a run with the options it was started with.
#[track_caller]
fn resume(out: &Path, more: &[&str]) -> Ended {
    echo(out, TASKS, &[&SLOW, &["--resume"][..], more].concat()).code(0)
}

/// A run in the background that takes its time.
fn start(out: &Path, more: &[&str]) -> Child {
    let mut run = command(&["run", "--tasks", TASKS, "--backend", "echo", "--out", arg(out)]);
    run.args(SLOW).args(more).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn lines(run: &Path) -> usize {
    let Ok(files) = run.join("samples").read_dir() else { return 0 };
    files.map(|f| std::fs::read(f.unwrap().path()).unwrap().iter().filter(|b| **b == b'\n').count()).sum()
}

/// Waits until a run has stored so many samples.
#[track_caller]
fn wait_for(run: &Path, samples: usize) {
    let start = Instant::now();
    while !(run.join("manifest.toml").exists() && lines(run) >= samples) {
        assert!(start.elapsed() < Duration::from_secs(60), "{} samples after a minute", lines(run));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal and gives the exit code and stderr.
fn signal(child: Child, name: &str) -> (Option<i32>, String) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// What an uninterrupted run leaves.
fn uninterrupted(folder: &Path, more: &[&str]) -> (String, String) {
    let out = folder.join("uninterrupted");
    echo(&out, TASKS, &[&["-q"], more].concat()).code(0);
    repeatable(&out)
}

/// Starts a run and signals it when it has stored so many samples; anew where it was faster than the signal.
#[track_caller]
fn stopped(out: &Path, samples: usize, name: &str, more: &[&str]) -> (Option<i32>, String) {
    for _ in 0..10 {
        let child = start(out, more);
        wait_for(out, samples);
        let ended = signal(child, name);
        if !out.join("results.json").exists() {
            return ended;
        }
        std::fs::remove_dir_all(out).unwrap();
    }
    panic!("the run is always faster than the signal")
}

#[test]
fn killed_at_any_moment_and_resumed_it_is_the_same_run() {
    for batch in ["1", "3"] {
        let dir = tempdir().unwrap();
        let options = ["--batch-size", batch];
        let expected = uninterrupted(dir.path(), &options);
        for moment in [0, 1, 4, 7, 10] {
            let out = dir.path().join(format!("killed-{moment}"));
            let (code, stderr) = stopped(&out, moment, "-KILL", &options);
            assert_eq!(code, None, "it ended by itself: {stderr}");
            let done = lines(&out);
            let resumed = resume(&out, &options);
            assert!(repeatable(&out) == expected, "killed after {done} samples");
            if batch == "1" && moment > 0 {
                resumed.says(&["samples were done before"]);
            }
        }
    }
}

#[test]
fn killed_again_and_again_it_is_the_same_run() {
    let dir = tempdir().unwrap();
    let expected = uninterrupted(dir.path(), &[]);
    let out = dir.path().join("run");
    for moment in [2, 5, 9] {
        let child = start(&out, &["--resume"]); // also where there is nothing yet
        wait_for(&out, moment);
        signal(child, "-KILL");
    }
    resume(&out, &[]);
    assert!(repeatable(&out) == expected);
    // and once more, with nothing left to do
    resume(&out, &[]);
    assert!(repeatable(&out) == expected);
}

#[test]
fn a_torn_last_line_is_done_again() {
    let dir = tempdir().unwrap();
    let expected = uninterrupted(dir.path(), &[]);
    let out = dir.path().join("uninterrupted");
    let file = out.join("samples/quality.jsonl");
    let whole = std::fs::read(&file).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for torn in [whole.len() - 1, last + 1, last + 40, last] {
        std::fs::write(&file, &whole[..torn]).unwrap();
        std::fs::remove_file(out.join("results.json")).unwrap();
        echo(&out, TASKS, &["-q", "--resume"]).code(0);
        assert!(repeatable(&out) == expected, "torn at {torn}");
    }
    // damage before the end is no torn line: it is told, not guessed at
    let mut broken = whole.clone();
    broken[20] = b'\n';
    std::fs::write(&file, broken).unwrap();
    echo(&out, TASKS, &["-q", "--resume"]).code(1).says(&["quality.jsonl, line 1: damaged"]);
}

#[test]
fn a_sample_of_another_plan_is_done_again() {
    let dir = tempdir().unwrap();
    let expected = uninterrupted(dir.path(), &[]);
    let out = dir.path().join("uninterrupted");
    let file = out.join("samples/quality.jsonl");
    let whole = text(&out, "samples/quality.jsonl");
    let first = whole.lines().next().unwrap();
    let other = "0".repeat(64);
    let stale = format!(
        "{{\"score_error\":\"stale\",\"key\":\"{other}\"{}",
        &first[first.find(",\"index\"").unwrap()..]
    );
    // instead of the one it was, and behind it
    for lines in [whole.replacen(first, &stale, 1), format!("{whole}{stale}\n")] {
        std::fs::write(&file, lines).unwrap();
        echo(&out, TASKS, &["-q", "--resume"]).code(0);
        assert!(repeatable(&out) == expected);
    }
}

#[test]
fn ctrl_c_is_130_and_resumable() {
    let dir = tempdir().unwrap();
    let expected = uninterrupted(dir.path(), &[]);
    for name in ["-INT", "-TERM"] {
        let out = dir.path().join(format!("run{name}"));
        let (code, stderr) = stopped(&out, 3, name, &[]);
        assert_eq!(code, Some(130), "{stderr}");
        assert!(stderr.contains("interrupted") && stderr.contains("--resume"), "{stderr}");
        assert!(lines(&out) >= 3);
        resume(&out, &[]);
        assert!(repeatable(&out) == expected);
    }
}

#[test]
fn a_run_that_is_there_is_not_overwritten() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    echo(&out, "quality", &["-q", "--limit", "1"]).code(0);
    let before = repeatable(&out);
    echo(&out, "quality", &["-q", "--limit", "1"]).code(2).says(&["holds a run already", "--resume"]);
    assert!(repeatable(&out) == before);
    // nor is a folder of somebody else's files
    std::fs::write(dir.path().join("letter.txt"), "x").unwrap();
    echo(dir.path(), "quality", &["--limit", "1"]).code(2).says(&["is not empty and holds no run"]);
}

#[test]
fn other_settings_are_another_run() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    echo(&out, "quality", &["-q", "--limit", "2"]).code(0);
    let before = repeatable(&out);
    let other = [
        "-q",
        "--limit",
        "2",
        "--resume",
        "--seed",
        "5",
        "--backend-option",
        "mode=fixed",
        "--temperature",
        "0.5",
    ];
    echo(&out, "quality", &other).code(2).says(&[
        "was made with other settings",
        "backend option mode: was not set, now fixed",
        "seed: was 0, now 5",
        "temperature: was 0, now 0.5",
        "name another folder with --out",
    ]);
    assert!(repeatable(&out) == before);
    // more samples and more tasks are the same run gone on with
    echo(&out, "quality,triviaqa", &["-q", "--limit", "4", "--resume"]).code(0);
    let grown = dir.path().join("grown");
    echo(&grown, "quality,triviaqa", &["-q", "--limit", "4"]).code(0);
    assert!(repeatable(&out) == repeatable(&grown));
    assert_eq!(samples(&out, "quality").len(), 4);
}

#[test]
fn answers_that_are_there_are_not_dropped() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let quick = ["-q", "--limit", "2", "--task-option", "niah.lengths=300;niah.depths=0"];
    echo(&out, "niah,quality", &quick).code(0);
    let before = (repeatable(&out), text(&out, "manifest.toml"));
    let refused = |tasks: &str, more: &[&str], says: &str| {
        echo(&out, tasks, &[more, &["-q", "--resume"]].concat())
            .code(2)
            .says(&["was made with other settings", says]);
        assert!((repeatable(&out), text(&out, "manifest.toml")) == before, "{more:?}");
    };
    let other = ["--limit", "2", "--task-option", "niah.lengths=300;niah.depths=100"];
    refused("niah,quality", &other, "task option niah.depths: was 0, now 100");
    refused("niah,quality", &[&quick[1..], &["--limit", "1"]].concat()[2..], "limit: was 2, now 1");
    refused("quality", &quick[1..3], "task niah: was run and has answers, now left out");
    refused(
        "niah,quality",
        &[&quick[1..], &["--max-new-tokens", "64"]].concat(),
        "max_new_tokens: was the task's own, now 64",
    );
    echo(&out, "niah,quality", &["--resume", "--max-new-tokens", "0"]).code(2).says(&["max_new_tokens of 0"]);
    // a task that has none may go
    std::fs::remove_file(out.join("samples/niah.jsonl")).unwrap();
    echo(&out, "quality", &["-q", "--limit", "2", "--resume"]).code(0);
    assert_eq!(results(&out)["tasks"].as_array().unwrap().len(), 1);
}

#[test]
fn other_metrics_are_made_of_the_answers_that_are_there() {
    let dir = tempdir().unwrap();
    let (out, whole) = (dir.path().join("run"), dir.path().join("whole"));
    echo(&out, "qmsum", &["-q", "--limit", "2", "--metrics", "rouge1"]).code(0);
    let answers = text(&out, "samples/qmsum.jsonl");
    echo(&whole, "qmsum", &["-q", "--limit", "4"]).code(0);
    // and once more, with nothing left to do
    for _ in 0..2 {
        echo(&out, "qmsum", &["-q", "--limit", "4", "--resume"]).code(0);
        assert!(repeatable(&out) == repeatable(&whole));
    }
    assert!(text(&out, "samples/qmsum.jsonl").starts_with(&answers), "nothing is asked again");
}

#[test]
fn one_process_writes_a_run() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let mut child = start(&out, &["--backend-option", "delay_ms=200"]);
    wait_for(&out, 1);
    echo(&out, TASKS, &["--resume"]).code(1).says(&["another process is writing the run"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_folder_that_cannot_be_written_is_told_before_anything_is_done() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let out = file.join("run");
    echo(&out, "quality", &[]).code(1).says(&["cannot create", arg(&out)]);
    use std::os::unix::fs::PermissionsExt;
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o555)).unwrap();
    if std::fs::write(closed.join("probe"), "").is_ok() {
        eprintln!("SKIPPED: permissions do not bind this user, so a closed folder cannot be tested");
        return;
    }
    echo(&closed.join("run"), "quality", &[]).code(1).says(&["cannot create", "ermission"]);
}

/// In a file system of 48 KiB of its own, which ends with the shell.
#[test]
fn a_full_disk_keeps_what_was_finished() {
    let dir = tempdir().unwrap();
    let unshare = |script: &str| {
        let mut shell = Command::new("unshare");
        shell.args(["--map-root-user", "--mount", "sh", "-c", script]).current_dir(dir.path());
        let program = command(&[]);
        shell.env("BENCH", program.get_program()).env("TASKS", TASKS);
        shell
    };
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    let possible = unshare("mount -t tmpfs -o size=48k tmpfs disk").output();
    if !possible.is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: no file system can be mounted here, so a full disk cannot be tested");
        return;
    }
    let expected = uninterrupted(dir.path(), &["--store-prompts"]);
    let script = r#"
        set -u
        mount -t tmpfs -o size=48k tmpfs disk || exit 99
        run() { "$BENCH" run --tasks "$TASKS" --backend echo --store-prompts --out disk/run "$@"; }
        run -q; echo "first: $?"
        ls disk/run/results.json 2>/dev/null
        mount -o remount,size=16m disk || exit 99
        run -q --resume; echo "second: $?"
        cp -r disk/run kept
    "#;
    let ended = finish(unshare(script));
    let ended = ended.code(0).prints(&["first: 1 second: 0"]);
    ended.says(&["cannot write disk/run/samples/", "the disk is full; what was finished is kept"]);
    assert!(repeatable(&dir.path().join("kept")) == expected);
    assert!(text(&dir.path().join("kept"), "manifest.toml").contains("format = 1"));
    assert_eq!(results(&dir.path().join("kept"))["tasks"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_missing_of_a_run_is_said() {
    let dir = tempdir().unwrap();
    let expected = uninterrupted(dir.path(), &[]);
    let out = dir.path().join("uninterrupted");
    let whole = text(&out, "samples/quality.jsonl");
    let all = [samples(&out, "quality").len(), samples(&out, "niah").len()];
    std::fs::write(
        out.join("samples/quality.jsonl"),
        whole.split_inclusive('\n').take(2).collect::<String>(),
    )
    .unwrap();
    std::fs::remove_file(out.join("samples/niah.jsonl")).unwrap();
    let [quality, niah] =
        [format!("2 of {} samples finished", all[0]), format!("niah: 0 of {} samples", all[1])];
    bench(&["score", arg(&out)]).code(0).prints(&[&format!("2 of {}", all[0])]).says(&[
        &format!("quality: {quality}"),
        &niah,
        "goes on with --resume",
    ]);
    assert!(text(&out, "leaderboard.csv").contains(&quality));
    bench(&["leaderboard", arg(&out)]).code(0).prints(&[&quality, &niah]);
    bench(&["leaderboard", "--format", "csv", arg(&out)]).code(0).prints(&[&quality]).says(&[&niah]);
    echo(&out, TASKS, &["-q", "--resume"]).code(0);
    assert!(repeatable(&out) == expected);
}

#[test]
fn score_takes_what_an_interrupted_run_has() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    stopped(&out, 3, "-KILL", &[]);
    let json = bench(&["score", arg(&out), "--json"]).code(0).json_lines();
    let n: u64 =
        json[0]["tasks"].as_array().unwrap().iter().map(|t| t["slices"][0]["n"].as_u64().unwrap()).sum();
    assert_eq!(n as usize, lines(&out));
}
