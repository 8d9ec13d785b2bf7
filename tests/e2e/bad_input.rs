//! Names that do not exist, and data that is missing or broken.

use crate::invoke::{Ended, arg, bench};
use crate::runs::echo;
use serde_json::json;
use std::path::Path;
use tempfile::{TempDir, tempdir};

#[test]
fn unknown_names_come_with_the_nearest_known_one() {
    let run = |tasks: &str, backend: &str, more: &[&str]| {
        let dir = tempdir().unwrap();
        let out = dir.path().join("run");
        let args = ["run", "--tasks", tasks, "--backend", backend, "--out", arg(&out)];
        let ended = bench(&[&args[..], more].concat()).code(2);
        assert!(!out.exists(), "a folder was made");
        ended
    };
    run("qualty", "echo", &[]).says(&["unknown task `qualty`", "did you mean `quality`?"]);
    run("quality,xyzzy", "echo", &[]).says(&["unknown task `xyzzy`", "there are: ", "triviaqa"]);
    run("quality", "ehco", &[]).says(&["unknown backend `ehco`", "did you mean `echo`?"]);
    run("quality", "echo", &["--metrics", "rougel"])
        .says(&["unknown metric `rougel`", "did you mean `rouge"]);
    run("niah", "echo", &["--task-option", "niah.lengths=99999999999999"])
        .says(&["lengths", "99999999999999 is more than 100000000"]);
    run("quality", "echo", &["--backend-option", "mod=fixed"]).says(&["`mod`", "did you mean `mode`?"]);
    bench(&["metric", "qaa", "--input", "-"]).code(2).says(&["unknown metric `qaa`", "did you mean `qa`?"]);
    bench(&["describe", "qmsun"])
        .code(2)
        .says(&["no task, metric or backend `qmsun`", "did you mean `qmsum`?"]);
    bench(&["model", "info", "e2llm-135"]).code(2).says(&["e2llm-135", "did you mean", "e2llm-135m"]);
    bench(&["leaderbord"]).code(2).says(&["unrecognized subcommand 'leaderbord'", "'leaderboard'"]);
    bench(&["run", "--taks", "quality"]).code(2).says(&["unexpected argument '--taks'", "'--tasks'"]);
    bench(&["list", "modles"]).code(2).says(&["invalid value 'modles'", "models"]);
}

#[test]
fn an_unknown_model_is_wrong_usage() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let args =
        ["run", "--tasks", "quality", "--backend", "truncate", "--model", "e2lm-135m", "--offline", "--out"];
    bench(&[&args[..], &[arg(&out)]].concat()).code(2).says(&["e2lm-135m", "did you mean", "e2llm-135m"]);
}

/// A data folder with files of one task.
fn data(task: &str, files: &[(&str, &str)]) -> TempDir {
    let dir = tempdir().unwrap();
    let folder = dir.path().join(task);
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    dir
}

fn lines(n: usize) -> Vec<String> {
    let line = |i: usize| {
        json!({"id": format!("q{i}"), "context": "A text that says that the sky is blue.", "prompt": "Which colour?",
            "answers": ["blue"], "meta": {}})
    };
    (0..n).map(|i| line(i).to_string()).collect()
}

fn run(task: &str, data: &Path, more: &[&str]) -> Ended {
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    echo(&out, task, &[&["-q", "--data", arg(data)], more].concat())
}

#[test]
fn a_data_folder_without_the_files() {
    let empty = tempdir().unwrap();
    run("narrativeqa", empty.path(), &[])
        .code(2)
        .says(&["no data of task `narrativeqa`", "expected a folder"]);
    run("longbench-v2", empty.path(), &[]).code(2).says(&["`longbench-v2` or `longbench_v2`"]);
    run("narrativeqa", &empty.path().join("gone"), &[]).code(2).says(&["no data folder"]);
    let folder = data("narrativeqa", &[("readme.txt", "nothing here")]);
    run("narrativeqa", folder.path(), &[])
        .code(1)
        .says(&["has no split `test`; none of its splits is there"]);
    let named = format!("narrativeqa={}", arg(&folder.path().join("gone")));
    run("narrativeqa", folder.path(), &["--data", &named]).code(2).says(&["no data folder", "gone"]);
}

#[test]
fn a_missing_split_lists_those_found() {
    let text = lines(2).join("\n");
    let folder = data("triviaqa", &[("train.jsonl", &text), ("dev.jsonl", &text)]);
    run("triviaqa", folder.path(), &[]).code(1).says(&[
        "task `triviaqa`",
        "has no split `test`; splits found: dev, train",
        "expected test.jsonl",
    ]);
    run("triviaqa", folder.path(), &["--split", "triviaqa=tset"]).code(1).says(&["has no split `tset`"]);
    let sample = bench(&["run", "--tasks", "triviaqa", "--backend", "echo", "--split", "test", "--dry-run"]);
    sample.code(2).says(&["the embedded sample of task `triviaqa` has no split `test`"]);
}

#[test]
fn a_broken_line_is_named() {
    let cut = lines(1)[0][..40].to_owned();
    for (broken, message) in [
        ("{\"id\": \"q57\", \"context\": ", "test.jsonl, line 57: not JSON"),
        (&*cut, "test.jsonl, line 57: not JSON"),
        (
            "{\"id\": \"q57\", \"context\": \"c\", \"prompt\": 3, \"answers\": [\"a\"]}",
            "line 57: field `prompt` is a number",
        ),
        (
            "{\"id\": \"q57\", \"context\": \"c\", \"prompt\": \"p\", \"answers\": []}",
            "line 57: field `answers` is empty",
        ),
        ("[1, 2]", "test.jsonl, line 57"),
        ("\u{feff}", "test.jsonl, line 57: not JSON"),
    ] {
        let mut all = lines(60);
        all[56] = broken.to_owned();
        let folder = data("narrativeqa", &[("test.jsonl", &all.join("\n"))]);
        run("narrativeqa", folder.path(), &[]).code(1).says(&["task `narrativeqa`", message]);
        let info = bench(&["data", "info", "narrativeqa", "--data", arg(folder.path())]);
        info.code(1).says(&[message]);
    }
    // a line that is not read is in nobody's way
    let mut all = lines(300);
    all[299] = "{".to_owned();
    let folder = data("narrativeqa", &[("test.jsonl", &all.join("\n"))]);
    run("narrativeqa", folder.path(), &["--limit", "3"]).code(0);
}

#[test]
fn odd_files() {
    let folder = data("narrativeqa", &[("test.jsonl", "")]);
    run("narrativeqa", folder.path(), &[]).code(1).says(&["test.jsonl is empty"]);
    let folder = data("narrativeqa", &[("test.jsonl", "\n\n")]);
    run("narrativeqa", folder.path(), &[]).code(1).says(&["test.jsonl is empty"]);
    for name in ["test.jsonl.zst", "test.jsonl.gz"] {
        let folder = data("narrativeqa", &[(name, "this is not compressed")]);
        run("narrativeqa", folder.path(), &[]).code(1).says(&[name]);
    }
    let folder = tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("narrativeqa/test.jsonl")).unwrap();
    run("narrativeqa", folder.path(), &[]).code(1).says(&["test.jsonl"]);
    let latin = tempdir().unwrap();
    std::fs::create_dir(latin.path().join("narrativeqa")).unwrap();
    let mut bytes = lines(2).join("\n").into_bytes();
    let at = bytes.iter().rposition(|b| *b == b'k').unwrap();
    bytes[at] = 0xe9;
    std::fs::write(latin.path().join("narrativeqa/test.jsonl"), bytes).unwrap();
    run("narrativeqa", latin.path(), &[]).code(1).says(&["test.jsonl, line 2: not UTF-8"]);
    let twice = [lines(2), lines(1)].concat().join("\n");
    let folder = data("narrativeqa", &[("test.jsonl", &twice)]);
    run("narrativeqa", folder.path(), &[]).code(1).says(&["sample id `q0` occurs twice"]);
}

#[test]
fn only_line_feeds_end_a_line() {
    let mut all = lines(3);
    all[1] = all[1].replace("A text", "A text \u{2028} with \u{85} odd \u{2029} ends of");
    let text = all.join("\r\n");
    let folder = data("narrativeqa", &[("test.jsonl", &text)]);
    let info =
        bench(&["data", "info", "narrativeqa", "--json", "--data", arg(folder.path())]).code(0).json_lines();
    assert_eq!(info[0]["samples"], 3);
}

#[test]
fn pairs_that_are_none_are_named_by_their_line() {
    let dir = tempdir().unwrap();
    let pairs = dir.path().join("pairs.jsonl");
    let good = "{\"prediction\":\"a\",\"references\":[\"a\"]}\n";
    for (bad, message) in [
        ("nonsense\n", "pairs.jsonl, line 3: not JSON"),
        ("{\"references\":[\"a\"]}\n", "line 3: field `prediction` is missing"),
        ("{\"prediction\":\"a\"}\n", "line 3: field `references` is missing"),
        ("{\"prediction\":\"a\",\"references\":[1]}\n", "line 3: field `references` holds a number"),
        ("{\"prediction\":\"a\",\"references\":[]}\n", "line 3: metric `qa`"),
    ] {
        std::fs::write(&pairs, format!("{good}{good}{bad}{good}")).unwrap();
        bench(&["metric", "qa", "--input", arg(&pairs)]).code(1).says(&[message]);
    }
    bench(&["metric", "qa", "--input", "no/such.jsonl"]).code(2).says(&["no file no/such.jsonl"]);
    std::fs::write(&pairs, "").unwrap();
    bench(&["metric", "qa", "--aggregate", "--input", arg(&pairs)]).code(2).says(&["holds no pairs"]);
}

#[test]
fn models_that_are_broken() {
    let dir = tempdir().unwrap();
    let folder = |name: &str, files: &[(&str, &[u8])]| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        files.iter().for_each(|(file, bytes)| std::fs::write(folder.join(file), bytes).unwrap());
        folder
    };
    let config = br#"{"model_type":"llama","architectures":["LlamaForCausalLM"]}"#;
    let mut long_header = u64::MAX.to_le_bytes().to_vec();
    long_header.extend(b"{}");
    let gguf = dir.path().join("truncated.gguf");
    std::fs::write(&gguf, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f").unwrap();
    for model in [
        folder("empty", &[]),
        folder("no-weights", &[("config.json", config)]),
        folder("bad-config", &[("config.json", b"{"), ("model.safetensors", b"")]),
        folder("bad-weights", &[("config.json", config), ("model.safetensors", &long_header)]),
        folder("cut-weights", &[("config.json", config), ("model.safetensors", &[40, 0, 0])]),
        gguf,
    ] {
        let out = dir.path().join("run");
        let args =
            ["run", "--tasks", "quality", "--limit", "1", "--offline", "--backend", "truncate", "--model"];
        let ended = bench(&[&args[..], &[arg(&model), "--out", arg(&out)]].concat());
        ended.code(1).says(&[model.file_name().unwrap().to_str().unwrap()]);
        assert!(!out.join("results.json").exists());
        let _ = std::fs::remove_dir_all(&out);
    }
}
