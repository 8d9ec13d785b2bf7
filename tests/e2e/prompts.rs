//! `--prompt`: the benchmarks' own wordings, read from the user's files.

use crate::invoke::{arg, bench, repository};
use crate::runs::{results, samples};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn shared() -> Option<PathBuf> {
    let folder = repository("../shared/data");
    if !folder.is_dir() {
        eprintln!("SKIPPED: ../shared/data not found");
        return None;
    }
    Some(folder)
}

/// What a model might have answered to question `i` whose answer is `gold`: right, wrong and unreadable.
fn response(i: usize, gold: &str) -> String {
    let wrong = ["B", "C", "D", "A"]["ABCD".find(gold).unwrap()];
    match i * i % 11 % 8 {
        0 => format!("The correct answer is ({gold})."),
        1 => format!("**The correct answer is {gold}**"),
        2 => format!("The correct answer is ({wrong}), not ({gold})"),
        3 => format!("({gold})"),
        4 => format!("The correct answer is Apple, or ({gold})"),
        5 => format!("the correct answer is ({gold})"),
        6 => String::new(),
        _ => format!("Let me see. The correct answer is ({gold})\nThe correct answer is ({wrong})"),
    }
}

/// A file of answers to all questions of a data folder's LongBench v2.
fn answers(data: &Path, dir: &Path) -> PathBuf {
    let plain = dir.join("plain");
    bench(&["data", "import", "longbench-v2", "--data", arg(data), "--out", arg(&plain)]).code(0);
    let records = std::fs::read_to_string(plain.join("longbench-v2/test.jsonl")).unwrap();
    let lines = records.split('\n').filter(|l| !l.is_empty()).enumerate().map(|(i, line)| {
        let record: Value = serde_json::from_str(line).unwrap();
        let response = response(i, record["answers"][0].as_str().unwrap());
        json!({"id": record["id"], "response": response}).to_string() + "\n"
    });
    let path = dir.join("answers.jsonl");
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

/// The figures below are those of LongBench v2's `pred.py` and `result.py`, run over the same answers.
#[test]
fn the_official_table_of_longbench_v2_is_reproduced() {
    let Some(data) = shared() else { return };
    let dir = tempdir().unwrap();
    let answers = format!("answers={}", answers(&data, dir.path()).display());
    let out = dir.path().join("run");
    let replay = ["--backend", "echo", "--backend-option", "mode=replay", "--backend-option", &answers];
    let run = [
        "run",
        "--tasks",
        "longbench-v2",
        "--prompt",
        "official",
        "--data",
        arg(&data),
        "--out",
        arg(&out),
        "-q",
    ];
    bench(&[&run[..], &replay].concat()).code(0);
    let task = results(&out)["tasks"][0].clone();
    assert_eq!(
        (&task["meta"]["prompt_style"], &task["meta"]["prompt_hash"]),
        (&json!("official"), &json!("68a162252bc9ff71"))
    );
    let leaderboard = std::fs::read_to_string(out.join("leaderboard.csv")).unwrap();
    assert!(leaderboard.contains(",official,68a162252bc9ff71,"), "{leaderboard}");
    let manifest = std::fs::read_to_string(out.join("manifest.toml")).unwrap();
    assert!(
        manifest.contains("raw/prompts/0shot.txt") && manifest.contains("68a162252bc9ff71"),
        "{manifest}"
    );
    let value = |slice: &str, metric: &str| {
        let slice = task["slices"].as_array().unwrap().iter().find(|s| s["slice"] == slice).unwrap();
        let metric = slice["metrics"].as_array().unwrap().iter().find(|m| m["id"] == metric).unwrap();
        format!("{:.1}", metric["value"].as_f64().unwrap())
    };
    for (slice, official, compensated) in [
        ("all", "46.3", "55.5"),
        ("difficulty=easy", "45.2", "54.0"),
        ("difficulty=hard", "46.9", "56.2"),
        ("length=short", "45.6", "54.7"),
        ("length=medium", "46.2", "55.8"),
        ("length=long", "66.7", "75.0"),
    ] {
        assert_eq!(value(slice, "accuracy@official"), official, "{slice}");
        assert_eq!(value(slice, "accuracy@compensated"), compensated, "{slice}");
    }
}

#[test]
fn reasoning_is_asked_for_and_then_answered_from() {
    let Some(data) = shared() else { return };
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let base =
        ["run", "--tasks", "longbench-v2", "--data", arg(&data), "--backend", "echo", "--limit", "2", "-q"];
    bench(&[&base[..], &["--prompt", "longbench-v2=official-cot", "--out", arg(&out)]].concat()).code(0);
    // `echo` answers with the instruction's first words: those of the second turn, which has the first one's in it
    let all = samples(&out, "longbench-v2");
    let responses: Vec<_> =
        all.iter().map(|s| s["outcome"]["answered"]["response"].as_str().unwrap()).collect();
    assert!(responses.iter().all(|r| r.contains("The text is too long and omitted here.")), "{responses:?}");
    assert_eq!(
        responses[0].matches("What is the correct answer to this question").count(),
        2,
        "{}",
        responses[0]
    );
    // another wording is another run
    bench(&[&base[..], &["--resume", "--out", arg(&out)]].concat())
        .code(2)
        .says(&["prompt of longbench-v2: was official-cot"]);
}

#[test]
fn an_answer_can_be_chosen_by_likelihood() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let choose = ["--task-option", "quality.output=choose", "--out", arg(&out), "-q"];
    bench(&[&["run", "--tasks", "quality", "--backend", "echo"][..], &choose].concat()).code(0);
    for sample in samples(&out, "quality") {
        let answer = &sample["outcome"]["answered"];
        assert_eq!(
            (&answer["finish"], &answer["prediction"]["rule"]),
            (&json!("chosen"), &json!("likelihood"))
        );
        let options = sample["meta"]["options"].as_array().unwrap();
        assert!(options.contains(&answer["response"]), "{answer}");
    }
    assert_eq!(results(&out)["tasks"][0]["slices"][0]["n_null"], 0);
}

#[test]
fn the_hash_of_a_wording_does_not_depend_on_the_samples() {
    let dir = tempdir().unwrap();
    let hash = |limit: &str| {
        let out = dir.path().join(limit);
        let vt = ["--task-option", "ruler.tasks=vt", "--task-option", "ruler.lengths=1k", "--limit", limit];
        let run = ["run", "--tasks", "ruler", "--backend", "echo", "-q", "--out", arg(&out)];
        bench(&[&run[..], &vt].concat()).code(0);
        let meta = results(&out)["tasks"][0]["meta"].clone();
        assert_eq!(meta["prompt_style"], "e2llm");
        meta["prompt_hash"].clone()
    };
    // every sample's answer is begun with words of its own
    assert_eq!(hash("1"), hash("3"));
}

#[test]
fn a_wording_that_is_not_there_is_named() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let run = |args: &[&str]| bench(&[&["run", "--backend", "echo", "--out", arg(&out)], args].concat());
    run(&["--tasks", "quality", "--prompt", "official"])
        .code(2)
        .says(&["no prompts of style `official`", "it has: e2llm, scrolls"]);
    run(&["--tasks", "niah", "--prompt", "official"]).code(2).says(&["task `niah`", "it has: e2llm"]);
    run(&["--tasks", "longbench-v2", "--prompt", "official"])
        .code(1)
        .says(&["needs 0shot.txt, a file of the official release", "--data"]);
    run(&["--tasks", "niah", "--prompt", "quality=scrolls"])
        .code(2)
        .says(&["names task `quality`, which is not run"]);
    run(&["--tasks", "niah", "--prompt", "e2llm", "--limit", "1", "-q"]).code(0);
    bench(&["describe", "longbench-v2"])
        .code(0)
        .prints(&["wording of the prompts: e2llm, official, official-cot"]);
}
