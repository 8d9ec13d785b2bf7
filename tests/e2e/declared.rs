//! Benchmarks in TOML files, from the file to the table.

use crate::invoke::{arg, bench, repository};
use crate::runs::{echo, repeatable, results, samples, text};
use std::path::Path;
use tempfile::tempdir;

const RECORDS: &str = r#"{"question": "Who spoke first?", "options": ["A. Ann", "B. Bob"], "answer": "B", "content": "Bob: Good morning.\nAnn: Hello."}
{"question": "Who spoke last?", "options": ["A. Ann", "B. Bob"], "answer": "A", "content": "Bob: Good morning.\nAnn: Hello."}
{"question": "What was decided?", "options": ["A. nothing", "B. all"], "answer": "A", "content": "Cy: Let us go home."}
"#;

/// A folder with MeetingQA's file layout.
fn meetings(dir: &Path) -> String {
    let folder = dir.join("data/meetingqa");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("meetingqa_4k.jsonl"), RECORDS).unwrap();
    arg(&dir.join("data")).to_owned()
}

#[test]
fn a_file_is_a_benchmark() {
    let dir = tempdir().unwrap();
    let data = meetings(dir.path());
    let file = repository("configs/tasks/meetingqa.toml");
    let out = dir.path().join("run");
    let fixed = ["--backend-option", "mode=fixed", "--backend-option", "text=(B) Bob"];
    let run = |out: &Path, more: &[&str]| {
        echo(out, arg(&file), &[&["-q", "--data", &data][..], &fixed, more].concat()).code(0)
    };
    run(&out, &[]);
    let results = results(&out);
    let task = &results["tasks"][0];
    assert_eq!((&task["meta"]["task"], &task["meta"]["sample_data"]), (&"meetingqa".into(), &false.into()));
    let all = &task["slices"][0];
    assert_eq!((&all["n"], &all["groups"]), (&3.into(), &2.into()));
    assert_eq!(
        (&all["metrics"][0]["id"], all["metrics"][0]["value"].as_f64()),
        (&"accuracy@official".into(), Some(33.3333333333))
    );
    let first = &samples(&out, "meetingqa")[0];
    assert!(
        first["instruction"].as_str().unwrap().contains("Who spoke first?\n(A) Ann\n(B) Bob\n"),
        "{first}"
    );
    let manifest = text(&out, "manifest.toml");
    assert!(manifest.contains("task/meetingqa") && manifest.contains("meetingqa_4k.jsonl"), "{manifest}");

    // like any other task: resumed, scored again, compared, imported
    let half = dir.path().join("half");
    run(&half, &["--limit", "1"]);
    run(&half, &["--resume"]);
    assert_eq!(repeatable(&out), repeatable(&half));
    bench(&["score", arg(&out), "-q"]).code(0);
    bench(&["compare", arg(&out), arg(&half)]).code(0).prints(&["meetingqa", "0.00 to 0.00"]);
    bench(&["data", "info", arg(&file), "--data", &data]).code(0).prints(&["samples 3", "documents 2"]);
    let plain = dir.path().join("plain");
    bench(&["data", "import", arg(&file), "--data", &data, "--out", arg(&plain)]).code(0);
    assert!(text(&plain, "meetingqa/test.jsonl").lines().count() == 3);
    bench(&["describe", arg(&file)]).code(0).prints(&[
        "task meetingqa@1",
        "accuracy@official",
        "meetingqa_4k.jsonl",
    ]);
}

#[test]
fn files_in_a_plugin_folder_are_found_by_their_ids() {
    let dir = tempdir().unwrap();
    let plugins = dir.path().join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    std::fs::copy(repository("configs/tasks/multi-lexsum-short.toml"), plugins.join("lexsum.toml")).unwrap();
    std::fs::write(plugins.join("notes.toml"), "x = 1\n").unwrap();
    let folder = dir.path().join("data/multi_lexsum_short");
    std::fs::create_dir_all(&folder).unwrap();
    let line = "{\"document\": \"A sued B over C. The court dismissed it.\", \"summary\": \"A sued B.\"}\n";
    std::fs::write(folder.join("test.jsonl"), line).unwrap();
    let (plugins, data) = (arg(&plugins).to_owned(), arg(&dir.path().join("data")).to_owned());
    bench(&["list", "tasks", "--plugin-dir", &plugins])
        .code(0)
        .prints(&["multi-lexsum-short 1 Summarises", "qmsum"]);
    let out = dir.path().join("run");
    let with = ["-q", "--plugin-dir", &plugins, "--data", &data, "--backend-option", "mode=context-head"];
    echo(&out, "multi-lexsum-short", &with).code(0);
    let value = results(&out)["tasks"][0]["slices"][0]["metrics"][0]["value"].as_f64().unwrap();
    assert!(value > 30.0, "{value}");
    echo(&dir.path().join("none"), "multi-lexsum-short", &["--plugin-dir", &plugins])
        .code(2)
        .says(&["has no sample records", "--data DIR"]);
    let option = ["--plugin-dir", &plugins, "--data", &data, "--task-option", "multi-lexsum-short.x=1"];
    echo(&dir.path().join("none"), "multi-lexsum-short", &option).code(2).says(&["unknown task option `x`"]);
    std::fs::copy(dir.path().join("plugins/lexsum.toml"), dir.path().join("plugins/twin.toml")).unwrap();
    bench(&["list", "tasks", "--plugin-dir", &plugins])
        .code(0)
        .says(&["twin.toml declares task", "lexsum.toml does"]);
}

#[test]
fn mistakes_point_at_their_line() {
    let dir = tempdir().unwrap();
    let data = meetings(dir.path());
    let good = std::fs::read_to_string(repository("configs/tasks/meetingqa.toml")).unwrap();
    let path = dir.path().join("mine.toml");
    let out = dir.path().join("run");
    for (from, to, said) in [
        (
            "content\"",
            "contents\"",
            &["meetingqa_4k.jsonl, line 1", "field `contents` (fields.context) is missing"][..],
        ),
        ("extract =", "extrct =", &["unknown field `extrct`", "did you mean `extract`?", "mine.toml:"]),
        (
            "accuracy@lenient",
            "accuracy@lenent",
            &["unknown metric `accuracy@lenent`", "did you mean `accuracy@lenient`?", "mine.toml:"],
        ),
        ("id = \"meetingqa\"", "id = \"qmsum\"", &["task `qmsum` is there twice", "libe2llm_task_qmsum"]),
    ] {
        assert!(good.contains(from));
        std::fs::write(&path, good.replace(from, to)).unwrap();
        echo(&out, arg(&path), &["--data", &data]).says(said);
        assert!(!out.join("results.json").exists());
        let _ = std::fs::remove_dir_all(&out);
    }
    bench(&["describe", arg(&dir.path().join("none.toml"))]).code(2).says(&["cannot read task file"]);
}

#[test]
fn a_csv_file_beside_the_task_needs_no_data_flag() {
    let dir = tempdir().unwrap();
    let task = "[task]\nid = \"capitals\"\nversion = \"1\"\ndescription = \"d\"\nmetrics = [\"em_squad\"]\nslices = [\"size\"]\n\
                [source]\nfiles = [\"capitals.csv\"]\nfolder = \".\"\n\
                [fields]\ncontext = \"text\"\nreferences = [\"answer\"]\nmeta = { size = \"size\" }\n\
                [prompt]\ninstruction = \"Capital of {{ country }}?\"\nmax_new_tokens = 5\n\
                [answer]\nextract = \"regex\"\npattern = 'is (\\w+)'\n";
    std::fs::write(dir.path().join("capitals.toml"), task).unwrap();
    let rows = "country,text,answer,size\nFrance,\"Paris, in the north.\",Paris,big\nMalta,Valletta is small.,Valletta,small\n";
    std::fs::write(dir.path().join("capitals.csv"), rows).unwrap();
    let out = dir.path().join("run");
    let fixed = ["-q", "--backend-option", "mode=fixed", "--backend-option", "text=It is Paris."];
    echo(&out, arg(&dir.path().join("capitals.toml")), &fixed).code(0);
    let slices = results(&out)["tasks"][0]["slices"].clone();
    let values: Vec<_> = slices
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["slice"].as_str().unwrap().to_owned(), s["metrics"][0]["value"].as_f64().unwrap()))
        .collect();
    let pair = |name: &str, value| (name.to_owned(), value);
    assert_eq!(values, [pair("all", 50.0), pair("size=big", 100.0), pair("size=small", 0.0)]);
}

#[test]
fn the_shipped_files_read_real_records() {
    let dir = tempdir().unwrap();
    for (task, from, to, n) in [
        ("meetingqa", "bamboo_meetingqa/raw/meetingqa_4k.head2.jsonl", "meetingqa_4k.jsonl", 2),
        ("multi-lexsum-short", "multilexsum/raw/test.head3.jsonl", "test.jsonl", 3),
    ] {
        let from = repository("../shared/data").join(from);
        if !from.is_file() {
            eprintln!("SKIPPED: no {}", from.display());
            continue;
        }
        let folder = dir.path().join(task);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(from, folder.join(to)).unwrap();
        let file = repository(&format!("configs/tasks/{task}.toml"));
        let out = dir.path().join(format!("run-{task}"));
        echo(&out, arg(&file), &["-q", "--data", arg(dir.path()), "--max-new-tokens", "60"]).code(0);
        assert_eq!(results(&out)["tasks"][0]["slices"][0]["n"], n, "{task}");
    }
}
