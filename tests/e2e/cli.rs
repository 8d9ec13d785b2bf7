//! The command line itself.

use crate::invoke::{arg, bench, built, command, finish};
use crate::runs::{TASKS, echo, repeatable};
use std::path::Path;
use tempfile::tempdir;

const COMMANDS: [&str; 11] = [
    "run",
    "list",
    "describe",
    "score",
    "leaderboard",
    "metric",
    "model",
    "data",
    "bench",
    "plugin",
    "completions",
];

#[test]
fn help_names_every_command_and_looks_for_no_plugin() {
    for args in [&["--help"][..], &["-h"], &["run", "--help"], &["--version"], &["help", "metric"]] {
        let mut help = command(args);
        help.env("E2LLM_PLUGIN_PATH", "/no/such/folder").env("E2LLM_CACHE", "/no/such/cache");
        finish(help).code(0);
    }
    let help = bench(&["--help"]).code(0).prints(&COMMANDS).prints(&["Exit codes:", "130 interrupted"]);
    assert!(help.stderr().is_empty());
    let run = bench(&["run", "--help"]).code(0);
    run.prints(&["--tasks", "--backend", "--resume", "--dry-run", "E2LLM_TASKS", "default"]);
    // whereas a command that needs plugins does look
    let mut list = command(&["list", "tasks"]);
    list.env("E2LLM_PLUGIN_PATH", "/no/such/folder");
    finish(list).code(2).says(&["no plugin folder /no/such/folder"]);
    bench(&[]).code(2).says(&["Usage:", "run", "leaderboard"]);
}

#[test]
fn the_bare_form_is_run() {
    let dir = tempdir().unwrap();
    let (bare, run) = (dir.path().join("bare"), dir.path().join("run"));
    bench(&["--tasks", "quality", "--backend", "echo", "--out", arg(&bare), "-q"]).code(0);
    echo(&run, "quality", &["-q"]).code(0);
    assert!(repeatable(&bare) == repeatable(&run));
}

#[test]
fn lists() {
    let tasks = bench(&["list", "tasks"]).code(0).prints(&TASKS);
    assert_eq!(tasks.stdout().lines().count(), TASKS.len());
    assert!(tasks.stderr().is_empty(), "{}", tasks.stderr());
    let metrics = ["rougeL+stem", "f1_squad", "em_triviaqa", "accuracy@official", "rouge_gmean"];
    bench(&["list", "metrics"]).code(0).prints(&metrics);
    bench(&["list", "backends"]).code(0).prints(&["e2llm", "truncate", "no-context", "echo"]);
    bench(&["list", "models"]).code(0).prints(&["e2llm-135m"]);
    bench(&["list", "plugins"]).code(0).prints(&["task qmsum", "metric rouge"]);
    for what in ["tasks", "metrics", "backends", "models", "plugins"] {
        let rows = bench(&["list", what, "--json"]).code(0).json_lines();
        assert!(rows.len() >= 3 && rows.iter().all(|r| r.is_object()), "{what}: {rows:?}");
    }
}

#[test]
fn descriptions() {
    bench(&["describe", "qmsum"]).code(0).prints(&[
        "task qmsum@",
        "licence",
        "splits",
        "default test",
        "metrics",
    ]);
    bench(&["describe", "niah"]).code(0).prints(&["options (--task-option niah.NAME=VALUE)"]);
    bench(&["describe", "rouge"]).code(0).prints(&["metric rouge@", "rougeLsum+stem", "rouge_l_pltrdy"]);
    bench(&["describe", "rougeL+stem"]).code(0).prints(&["metric rouge@"]);
    bench(&["describe", "e2llm"]).code(0).prints(&["backend e2llm"]);
    bench(&["describe", "echo"]).code(0).prints(&["options (--backend-option NAME=VALUE)", "fail_every"]);
    for name in ["qmsum", "rouge", "e2llm"] {
        let described = bench(&["describe", name, "--json"]).code(0).json_lines();
        assert_eq!(described.len(), 1);
    }
    bench(&["model", "info", "e2llm-135m", "--offline"]).code(0).prints(&["e2llm-135m"]);
}

#[test]
fn an_installed_program_finds_its_plugins() {
    let dir = tempdir().unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy(built().join("e2llm-bench"), bin.join("e2llm-bench")).unwrap();
    let list = || {
        let mut list = std::process::Command::new(bin.join("e2llm-bench"));
        list.args(["list", "tasks"]).env_remove("E2LLM_PLUGIN_PATH").env_remove("E2LLM_PLUGIN_DIR");
        finish(list).code(0)
    };
    let alone = list().says(&["no task plugins found", "cargo build --release --workspace", "--plugin-dir"]);
    assert!(alone.stdout().is_empty());
    let library = format!("libe2llm_task_quality{}", std::env::consts::DLL_SUFFIX);
    for folder in ["lib/e2llm-bench/plugins", "bin/plugins"] {
        let folder = dir.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(built().join(&library), folder.join(&library)).unwrap();
        list().prints(&["quality"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn errors_keep_a_path_in_one_piece_where_no_person_reads() {
    let folder = format!("no/{}/such-folder", "very-long-name/".repeat(12));
    let ended = bench(&["list", "tasks", "--plugin-dir", &folder]).code(2);
    assert!(ended.stderr().contains(&folder), "{}", ended.stderr());
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        bench(&["completions", shell]).code(0).prints(&["e2llm-bench", "leaderboard"]);
    }
    bench(&["completions", "cmd.exe"]).code(2).says(&["invalid value"]);
}

#[test]
fn the_speed_of_the_model_is_told_in_rows() {
    let tiny = |args: &[&str]| bench(&[&["bench", "--shape", "tiny", "--repeats", "1"], args].concat());
    let rows = tiny(&["--max-context", "4096"]).code(0).json_lines();
    let names: Vec<_> = rows.iter().map(|r| r["bench"].as_str().unwrap()).collect();
    assert_eq!(names, ["encode", "prefill", "decode", "train", "context"]);
    let first = ["bench", "shape", "impl", "dtype", "device", "tokens", "peak_gib", "ms", "tokens_per_s"];
    for row in &rows {
        let keys: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys[..first.len()], first);
        assert!(row["ms"].as_f64().unwrap() > 0.0, "{row}");
    }
    let rows = tiny(&["prefill,encode", "--dtype", "bf16", "--merge-lora"]).code(0).json_lines();
    assert_eq!(rows.iter().map(|r| &r["bench"]).collect::<Vec<_>>(), ["prefill", "encode"]);
    assert_eq!((&rows[0]["dtype"], &rows[0]["tokens"]), (&"bf16".into(), &56.into()));
    tiny(&["decoding"]).code(2).says(&["decoding", "decode"]);
    bench(&["bench", "--repeats", "0"]).code(2).says(&["no repeats"]);
    let help = bench(&["bench", "--help"]).code(0).prints(&["135m", "7b"]);
    assert!(!help.stdout().contains("tiny"), "a shape for tests is shown");
}

#[test]
fn stdout_is_for_data_and_quiet_is_quiet() {
    let dir = tempdir().unwrap();
    let quiet = echo(&dir.path().join("quiet"), "quality", &["-q"]).code(0);
    assert_eq!((quiet.stdout(), quiet.stderr()), (String::new(), String::new()));
    let json = echo(&dir.path().join("json"), "quality,niah", &["--json"]).code(0);
    let lines = json.json_lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["tasks"].as_array().unwrap().len(), 2);
    assert!(!json.stderr().is_empty(), "what is being done is told on stderr");
    let file = std::fs::read_to_string(dir.path().join("json/results.json")).unwrap();
    assert_eq!(lines[0], serde_json::from_str::<serde_json::Value>(&file).unwrap());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "\"$BENCH\" list metrics | head -n 1; \"$BENCH\" --help | head -n 1"]);
    let program = command(&[]);
    shell.env("BENCH", program.get_program());
    let ended = finish(shell).code(0);
    assert!(ended.stderr().is_empty(), "{}", ended.stderr());
}

#[test]
fn metrics_score_pairs_in_order() {
    let dir = tempdir().unwrap();
    let pairs = dir.path().join("pairs.jsonl");
    let line = |i: usize| format!("{{\"prediction\":\"word {i}\",\"references\":[\"word {}\"]}}\n", i % 2);
    std::fs::write(&pairs, (0..5000).map(line).collect::<String>()).unwrap();
    let keys = |args: &[&str], n: usize| -> Vec<String> {
        let all = bench(&[args, &["--input", arg(&pairs)]].concat()).code(0).json_lines();
        assert_eq!(all.len(), n);
        all[0].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(&["metric", "qa"], 5000), ["f1_squad", "em_squad", "f1_triviaqa", "em_triviaqa"]);
    let rouge = keys(&["metric", "rouge"], 5000);
    let expected = [
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "rouge1+stem",
        "rouge2+stem",
        "rougeL+stem",
        "rougeLsum+stem",
    ];
    assert!(
        expected.iter().all(|k| rouge.iter().any(|r| r == k)) && rouge.iter().any(|r| r == "rouge_l_pltrdy"),
        "{rouge:?}"
    );
    let of = |threads: &str| {
        bench(&["metric", "qa", "--threads", threads, "--input", arg(&pairs)]).code(0).stdout()
    };
    let one = of("1");
    assert!(one == of("7"), "threads change the order or the values");
    let exact: Vec<bool> = one.lines().map(|l| l.contains("\"em_squad\":1.0")).collect();
    assert_eq!(exact.iter().filter(|e| **e).count(), 2);
    let gmean = bench(&["metric", "rouge_gmean", "--input", arg(&pairs)]).code(0);
    gmean.says(&["rouge_gmean is of all pairs together: see --aggregate"]);
    let mean = bench(&["metric", "em_squad", "--aggregate", "--input", arg(&pairs)]).code(0).json_lines();
    assert_eq!(mean, [serde_json::json!({"em_squad": 0.0004, "n": 5000})]);
}

#[test]
fn backends_are_measured_by_length() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("curves");
    let into = |out: &Path, more: &[&str]| {
        bench(&[&["bench", "backend", "--out", arg(out), "--backend", "echo"], more].concat())
    };
    let measure = |more: &[&str]| into(&dir.path().join("more"), more);
    let rows = into(&out, &["--lengths", "1k,100", "--new-tokens", "3"]).code(0).json_lines();
    let lengths: Vec<_> = rows.iter().map(|r| r["length"].as_u64().unwrap()).collect();
    assert_eq!(lengths, [100, 1024]);
    assert!(
        rows.iter().all(|r| r["backend"] == "echo" && r["context_tokens"].as_u64() >= r["length"].as_u64())
    );
    let csv = std::fs::read_to_string(out.join("points.csv")).unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
    assert!(csv.lines().nth(2).unwrap().starts_with("echo,1024,"), "{csv}");
    for picture in ["ttft.svg", "decode.svg", "memory.svg"] {
        assert!(std::fs::read_to_string(out.join(picture)).unwrap().starts_with("<svg"), "{picture}");
    }
    into(&out, &["--lengths", "100"]).code(2).says(&["is not empty", "--out"]);
    assert_eq!(std::fs::read_to_string(out.join("points.csv")).unwrap(), csv);
    for flag in ["--repeats", "--new-tokens"] {
        measure(&[flag, "0"]).code(2).says(&[flag, "at least 1"]);
    }
    // a length that fails is a point without figures, what is longer is not tried, and all of them are a failure
    let failing = ["--lengths", "100,200", "--backend-option", "fail_every=1"];
    let ended = measure(&failing).code(1).says(&["echo: length 100: "]);
    let rows = ended.json_lines();
    assert!(rows[0]["error"].as_str().unwrap().len() > 3, "{rows:?}");
    for figure in ["context_tokens", "prompt_tokens", "time_to_first_token", "seconds_per_token"] {
        assert!(rows[0][figure].is_null(), "{rows:?}");
    }
    assert!(rows[1]["error"].as_str().unwrap().starts_with("not tried: "), "{rows:?}");
    measure(&["--lengths", "4.5k"]).code(2).says(&["--lengths 4.5k", "4096"]);
    bench(&["bench", "backend", "--out", arg(&out), "--backend", "ecco"]).code(2).says(&["echo"]);
    bench(&["bench", "context", "--max-context", "1"]).code(2).says(&["--max-context 1", "4096 tokens"]);
}

#[test]
fn negative_numbers_are_wrong_values_and_switches_are_read_from_the_environment() {
    let run = ["run", "--tasks", "quality", "--backend", "echo"];
    for flag in ["--limit", "--seed", "--bootstrap"] {
        let named = format!("invalid value '-1' for '{flag}");
        bench(&[&run[..], &[flag, "-1"]].concat()).code(2).says(&[&named]);
    }
    let lengths = ["bench", "backend", "--backend", "echo", "--out", "never", "--lengths", "-5"];
    bench(&lengths).code(2).says(&["--lengths -5"]);
    let dir = tempdir().unwrap();
    for (i, (value, quiet)) in [("1", true), ("yes", true), ("0", false), ("false", false)].iter().enumerate()
    {
        let out = dir.path().join(i.to_string());
        let mut run = command(&[&run[..], &["--limit", "1", "--out", arg(&out)]].concat());
        run.env("E2LLM_QUIET", value);
        assert_eq!(finish(run).code(0).stderr().is_empty(), *quiet, "{value}");
    }
    let mut run = command(&run);
    run.env("E2LLM_QUIET", "perhaps");
    finish(run).code(2).says(&["'perhaps'", "--quiet"]);
}
