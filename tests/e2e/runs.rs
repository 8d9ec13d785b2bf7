//! Whole runs with the backend `echo`, which needs no model.

use crate::invoke::{Ended, arg, bench, command, finish};
use serde_json::Value;
use std::path::Path;
use tempfile::tempdir;

pub(crate) const TASKS: [&str; 11] = [
    "govreport",
    "longbench",
    "longbench-v2",
    "multi-lexsum",
    "narrativeqa",
    "niah",
    "qmsum",
    "quality",
    "ruler",
    "squality",
    "triviaqa",
];

/// They never change their order; new ones come at the end.
const COLUMNS: [&str; 28] = [
    "run",
    "backend",
    "model",
    "task",
    "task_version",
    "split",
    "slice",
    "metric",
    "metric_version",
    "primary",
    "unit",
    "value",
    "stderr",
    "ci_low",
    "ci_high",
    "n",
    "n_error",
    "n_null",
    "n_truncated",
    "prompt_style",
    "prompt_hash",
    "truncation",
    "prompt_tokens",
    "context_tokens",
    "compressed_tokens",
    "soft_tokens",
    "sample_data",
    "note",
];

/// Runs `echo` into a folder.
#[track_caller]
pub(crate) fn echo(out: &Path, tasks: &str, more: &[&str]) -> Ended {
    let mut args = vec!["run", "--tasks", tasks, "--backend", "echo", "--out", arg(out)];
    args.extend(more);
    bench(&args)
}

pub(crate) fn text(run: &Path, file: &str) -> String {
    std::fs::read_to_string(run.join(file)).unwrap()
}

pub(crate) fn results(run: &Path) -> Value {
    serde_json::from_str(&text(run, "results.json")).unwrap()
}

/// The lines of a task's samples.
pub(crate) fn samples(run: &Path, task: &str) -> Vec<Value> {
    text(run, &format!("samples/{task}.jsonl")).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The two files that must repeat to the byte.
pub(crate) fn repeatable(run: &Path) -> (String, String) {
    (text(run, "results.json"), text(run, "leaderboard.csv"))
}

/// The rows of a leaderboard by column.
fn rows(csv: &str) -> Vec<std::collections::BTreeMap<String, String>> {
    csv::Reader::from_reader(csv.as_bytes()).deserialize().map(|r| r.unwrap()).collect()
}

/// The slice `all` of a task's results.
fn all<'a>(results: &'a Value, task: &str) -> &'a Value {
    let tasks = results["tasks"].as_array().unwrap();
    let found = tasks.iter().find(|t| t["meta"]["task"] == task).unwrap_or_else(|| panic!("no task {task}"));
    assert_eq!(found["slices"][0]["slice"], "all");
    &found["slices"][0]
}

#[test]
fn all_tasks_from_end_to_end() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let ended = echo(&out, "all", &[]).code(0).prints(&["task metric value", "95 % interval"]);
    let ended =
        ended.says(&["the figures are no benchmark results", "`echo` has no model", "leaderboard.csv"]);
    ended.prints(&TASKS);

    let csv = text(&out, "leaderboard.csv");
    assert_eq!(csv.lines().next().unwrap(), COLUMNS.join(","));
    assert!(csv.ends_with("\r\n") && csv.matches('\n').count() == csv.matches("\r\n").count());
    let rows = rows(&csv);
    let results = results(&out);
    for task in TASKS {
        let of_task: Vec<_> = rows.iter().filter(|r| r["task"] == task && r["slice"] == "all").collect();
        assert_eq!(of_task.iter().filter(|r| r["primary"] == "true").count(), 1, "{task}");
        let all = all(&results, task);
        assert_eq!(all["n"].as_u64().unwrap() as usize, samples(&out, task).len(), "{task}");
        for row in of_task {
            let (value, n) = (row["value"].parse::<f64>().unwrap(), row["n"].parse::<u64>().unwrap());
            assert!(value.is_finite() && n > 2, "{row:?}");
            assert_eq!((&*row["n_error"], &*row["sample_data"], &*row["backend"]), ("0", "true", "echo"));
            assert!(row["note"].contains("`echo` has no model"));
        }
        for sample in samples(&out, task) {
            assert!(sample["outcome"]["answered"]["response"].is_string(), "{sample}");
            assert!(sample.get("prompt").is_none(), "prompts are kept on demand only");
        }
    }
    let timings = text(&out, "timings.csv");
    assert_eq!(timings.lines().count(), 1 + TASKS.len());
    let cells = self::rows(&text(&out, "heatmap.csv"));
    let niah: Vec<_> =
        cells.iter().filter(|c| c["task"] == "niah" && c["metric"] == "needle_recall").collect();
    let at: Vec<_> = niah.iter().map(|c| (&*c["length"], &*c["by"], &*c["level"], &*c["n"])).collect();
    let depths = ["0", "50", "100"];
    let grid = ["1500", "2500"].into_iter().flat_map(|l| depths.map(|d| (l, "depth", d, "1")));
    assert_eq!(at, grid.collect::<Vec<_>>());
    assert!(cells.iter().any(|c| c["task"] == "ruler" && c["by"] == "task" && c["level"] == "vt"));
    let manifest = text(&out, "manifest.toml");
    assert!(
        manifest.contains("format = 1")
            && manifest.contains("metric/rouge")
            && manifest.contains("task/niah")
    );
}

#[test]
fn results_repeat_to_the_byte_whatever_the_batches_and_the_folder() {
    let dir = tempdir().unwrap();
    let out = |name: &str| dir.path().join(name);
    echo(&out("first"), "all", &["-q"]).code(0);
    echo(&out("second"), "all", &["-q"]).code(0);
    echo(&out("batches"), "all", &["-q", "--batch-size", "4", "--backend-option", "delay_ms=1"]).code(0);
    let first = repeatable(&out("first"));
    assert!(repeatable(&out("second")) == first, "a second run differs");
    assert!(repeatable(&out("batches")) == first, "larger batches differ");
    // and they do depend on what they should
    echo(&out("mode"), "all", &["-q", "--backend-option", "mode=context-head"]).code(0);
    assert!(repeatable(&out("mode")).0 != first.0);
}

#[test]
fn a_limit_takes_the_first_samples() {
    let dir = tempdir().unwrap();
    echo(&dir.path().join("all"), "quality,niah", &["-q"]).code(0);
    echo(&dir.path().join("two"), "quality,niah", &["-q", "--limit", "2"]).code(0);
    for task in ["quality", "niah"] {
        let ids = |run: &str| -> Vec<Value> {
            samples(&dir.path().join(run), task).iter().map(|s| s["id"].clone()).collect()
        };
        assert_eq!(ids("two"), ids("all")[..2]);
    }
    echo(&dir.path().join("none"), "quality", &["--limit", "0"]).code(2).says(&["a limit of 0"]);
}

#[test]
fn samples_are_chosen_by_id() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let plan =
        bench(&["run", "--tasks", "quality,qmsum", "--backend", "echo", "--dry-run", "--json"]).code(0);
    let plan = plan.json_lines();
    let id = |task: usize, i: usize| plan[task]["ids"][i].as_str().unwrap().to_owned();
    let asked = format!("{},qmsum:{}", id(0, 3), id(1, 1));
    echo(&out, "quality,qmsum", &["-q", "--samples", &asked]).code(0);
    for (i, (task, expected)) in [("quality", id(0, 3)), ("qmsum", id(1, 1))].into_iter().enumerate() {
        assert_eq!(plan[i]["task"], task);
        let found = samples(&out, task);
        assert_eq!((found.len(), &found[0]["id"]), (1, &Value::from(expected)));
    }
    let asked = format!("{},no-such-sample", id(0, 3));
    let ended = echo(&dir.path().join("none"), "quality", &["--samples", &asked]);
    ended.code(2).says(&["--samples: `no-such-sample` not in `quality`"]);
    let ended = echo(&dir.path().join("empty"), "quality,qmsum", &["--samples", "niah:1,"]);
    ended.code(2).says(&["--samples: `niah:1`, `` not in `quality`, `qmsum`"]);
}

#[test]
fn a_seed_decides_what_is_generated() {
    let dir = tempdir().unwrap();
    let references = |name: &str, seed: &str| -> Vec<Value> {
        let out = dir.path().join(name);
        echo(&out, "niah", &["-q", "--limit", "3", "--seed", seed]).code(0);
        samples(&out, "niah").iter().map(|s| s["references"].clone()).collect()
    };
    let first = references("a", "7");
    assert_eq!(first, references("b", "7"));
    assert_ne!(first, references("c", "8"));
}

#[test]
fn scoring_again_gives_the_same_and_needs_no_backend() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    echo(&out, "qmsum,triviaqa,longbench-v2", &["-q"]).code(0);
    let before = repeatable(&out);
    for file in ["results.json", "leaderboard.csv", "timings.csv"] {
        std::fs::remove_file(out.join(file)).unwrap();
    }
    let missing = bench(&["leaderboard", arg(&out)]);
    missing.code(1).says(&["results.json", "e2llm-bench score"]);
    bench(&["score", arg(&out)]).code(0).prints(&TASKS[6..7]);
    assert!(repeatable(&out) == before);
    // other metrics from the same answers
    let json = bench(&["score", arg(&out), "--metrics", "em_squad,f1_squad", "--json"]).code(0).json_lines();
    let ids: Vec<_> =
        all(&json[0], "qmsum")["metrics"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["em_squad", "f1_squad"]);
    bench(&["score", arg(&out), "--metrics", "em_sqad"]).code(2).says(&["did you mean `em_squad`?"]);
    bench(&["score", arg(dir.path())]).code(2).says(&["manifest.toml", "is that the folder of a run?"]);
}

#[test]
fn a_leaderboard_sets_runs_side_by_side() {
    let dir = tempdir().unwrap();
    let (a, b) = (dir.path().join("plain"), dir.path().join("fixed-b"));
    echo(&a, "quality,niah", &["-q"]).code(0);
    echo(&b, "quality", &["-q", "--backend-option", "mode=fixed", "--backend-option", "text=(B)"]).code(0);
    let csv = bench(&["leaderboard", "--format", "csv", arg(&a), arg(&b)]).code(0).stdout();
    assert_eq!(csv.lines().next().unwrap(), COLUMNS.join(","));
    let runs: std::collections::BTreeSet<_> = rows(&csv).iter().map(|r| r["run"].clone()).collect();
    assert_eq!(runs.into_iter().collect::<Vec<_>>(), ["fixed-b", "plain"]);
    let markdown =
        bench(&["leaderboard", arg(&a), arg(&b)]).code(0).prints(&["plain", "fixed-b", "quality", "niah"]);
    assert!(markdown.stdout().lines().any(|l| l.starts_with('|')));
    // folders of one name are told apart
    let (one, two) = (dir.path().join("one/plain"), dir.path().join("two/plain"));
    for (to, from) in [(&one, &a), (&two, &b)] {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(from, to).unwrap();
    }
    bench(&["leaderboard", arg(&one), arg(&two)]).code(0).prints(&[arg(&one), arg(&two)]);
    let a = one;
    bench(&["leaderboard", arg(&a), "no/such/run"]).code(2).says(&["no/such/run"]);
}

#[test]
fn errors_are_counted_and_stay_in_the_denominator() {
    let dir = tempdir().unwrap();
    let options = |n: &str| {
        vec!["-q".to_owned(), "--backend-option".into(), format!("mode=fixed;text=(B);fail_every={n}")]
    };
    let run = |name: &str, n: &str| {
        let out = dir.path().join(name);
        let options = options(n);
        (echo(&out, "quality", &options.iter().map(String::as_str).collect::<Vec<_>>()), out)
    };
    let (ended, out) = run("all", "1");
    ended.code(3);
    let of_all = results(&out);
    let all_failed = all(&of_all, "quality");
    assert_eq!(all_failed["n"], all_failed["n_error"]);
    assert_eq!(all_failed["metrics"][0]["value"], 0.0);
    assert!(of_all["tasks"][0]["first_error"]["message"].as_str().unwrap().contains("fail_every"));

    let (ended, out) = run("some", "2");
    ended.code(3);
    let lines = samples(&out, "quality");
    let failed = lines.iter().filter(|s| s["outcome"].get("failed").is_some()).count();
    assert!(failed > 0 && failed < lines.len(), "the option fails {failed} of {}", lines.len());
    let right: f64 = lines.iter().filter_map(|s| s["scores"]["accuracy@official"].as_f64()).sum();
    let some = results(&out);
    let some = all(&some, "quality");
    assert_eq!((&some["n"], &some["n_error"]), (&lines.len().into(), &failed.into()));
    let value = |key: &str| some["metrics"][0][key].as_f64().unwrap();
    assert!((value("value") - 100.0 * right / lines.len() as f64).abs() < 1e-9);
    assert!((value("value_completed") - 100.0 * right / (lines.len() - failed) as f64).abs() < 1e-9);
    for row in rows(&text(&out, "leaderboard.csv")).iter().filter(|r| r["slice"] == "all") {
        assert_eq!(row["n_error"], failed.to_string());
    }
    // they stay errors when scored again
    bench(&["score", arg(&out), "-q"]).code(3);
}

#[test]
fn a_dry_run_shows_the_prompts_and_leaves_nothing() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    echo(&out, "all", &["--dry-run"])
        .code(0)
        .prints(&TASKS)
        .prints(&["first prompt", "samples, context words"]);
    assert!(!out.exists());
    // no weights are needed to see what would be asked
    let mut dry = command(&["run", "--tasks", "quality", "--backend", "e2llm", "--dry-run", "--offline"]);
    dry.env("E2LLM_CACHE", dir.path()).current_dir(dir.path());
    finish(dry).code(0).prints(&["Reply with the letter of your choice"]);
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn folders_are_numbered_where_none_is_named() {
    let dir = tempdir().unwrap();
    let args = ["--tasks", "triviaqa", "--backend", "echo", "--limit", "1", "-q"];
    for more in [&[][..], &[], &["--resume"]] {
        let mut run = command(&args);
        finish({
            run.args(more).current_dir(dir.path());
            run
        })
        .code(0);
    }
    let mut names: Vec<_> = dir
        .path()
        .join("runs")
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("echo") && names[1] == format!("{}-2", names[0]), "{names:?}");
}

#[test]
fn prompts_are_stored_on_demand() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    echo(&out, "narrativeqa", &["-q", "--limit", "1", "--store-prompts"]).code(0);
    let sample = samples(&out, "narrativeqa").remove(0);
    let prompt = sample["prompt"].as_str().unwrap();
    assert!(prompt.split_whitespace().count() > 500 && !prompt.contains("{context}"), "{prompt}");
}
