//! Runs over real records beside the repository; where they are missing the tests say so and pass.

use crate::invoke::{arg, bench, repository};
use crate::runs::{TASKS, results, samples};
use std::path::PathBuf;
use tempfile::tempdir;

fn shared() -> Option<PathBuf> {
    let folder = repository("../shared/data");
    if !folder.is_dir() {
        eprintln!("SKIPPED: ../shared/data not found");
        return None;
    }
    Some(folder)
}

#[test]
fn all_tasks_read_real_records() {
    let Some(data) = shared() else { return };
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    // RULER has no records
    let tasks: Vec<_> = TASKS.into_iter().filter(|t| *t != "ruler").collect();
    bench(&[
        "run",
        "--tasks",
        &tasks.join(","),
        "--data",
        arg(&data),
        "--split",
        "qmsum=validation,squality=validation,quality=test",
        "--backend",
        "echo",
        "--limit",
        "3",
        "--out",
        arg(&out),
        "-q",
    ])
    .code(0);
    let results = results(&out);
    for (i, task) in tasks.into_iter().enumerate() {
        let meta = &results["tasks"][i]["meta"];
        assert_eq!((&meta["task"], &meta["sample_data"]), (&task.into(), &false.into()));
        assert_eq!(samples(&out, task).len(), 3, "{task}");
    }
    let manifest = std::fs::read_to_string(out.join("manifest.toml")).unwrap();
    assert!(manifest.contains("qmsum/validation.jsonl.zst"), "{manifest}");
}

#[test]
fn a_missing_split_of_real_records_lists_those_found() {
    let Some(data) = shared() else { return };
    let dir = tempdir().unwrap();
    let out = dir.path().join("run");
    let args = ["run", "--tasks", "qmsum", "--data", arg(&data), "--backend", "echo", "--out", arg(&out)];
    bench(&args).code(1).says(&["no split `test`; splits found:", "train", "validation"]);
}

#[test]
fn imported_records_are_read_as_the_originals() {
    let Some(data) = shared() else { return };
    let dir = tempdir().unwrap();
    let imported = dir.path().join("data");
    let split = ["quality", "--split", "test"];
    let import = [&["data", "import"], &split[..], &["--data", arg(&data), "--out", arg(&imported)]].concat();
    bench(&import).code(0).prints(&["202 samples written"]);
    bench(&import).code(2).says(&["exists already"]);
    let info = |folder| {
        let mut row = bench(&[&["data", "info"], &split[..], &["--json", "--data", arg(folder)]].concat())
            .code(0)
            .json_lines()
            .remove(0);
        row.as_object_mut().unwrap().remove("files").unwrap();
        row
    };
    assert_eq!(info(&data), info(&imported));
}
