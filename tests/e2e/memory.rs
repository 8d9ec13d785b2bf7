//! Data sets larger than memory: what a run holds does not grow with its files.
#![cfg(target_os = "linux")]

use crate::invoke::{arg, command};
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tempfile::tempdir;

/// Writes a split of `records` records of 256 KiB each.
fn data(folder: &Path, records: usize) {
    std::fs::create_dir_all(folder).unwrap();
    let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join("test.jsonl")).unwrap());
    let context = "All of this is read and none of it is kept. ".repeat((256 << 10) / 44);
    for i in 0..records {
        let more = r#""prompt":"What is kept?","answers":["none"],"meta":{}}"#;
        writeln!(file, r#"{{"id":"{i}","context":"{i} {context}",{more}"#).unwrap();
    }
}

/// The most memory in MiB that a run over `records` records had.
fn peak(task: &str, records: usize) -> u64 {
    let dir = tempdir().unwrap();
    data(&dir.path().join("records"), records);
    let id = if task.ends_with(".toml") { "plain" } else { task };
    let (out, folder) = (dir.path().join("run"), format!("{id}={}", arg(&dir.path().join("records"))));
    let args = ["run", "--tasks", task, "--backend", "echo", "-q", "--out", arg(&out), "--data", &folder];
    let mut run = command(&args).spawn().unwrap();
    let status = format!("/proc/{}/status", run.id());
    let mut peak = 0;
    let ended = loop {
        // the high-water mark never falls: the last one seen misses only what came within a few milliseconds of the end
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak = mark.and_then(|kib| kib.parse().ok()).unwrap_or(peak);
        if let Some(ended) = run.try_wait().unwrap() {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success(), "{task}: {ended}");
    assert!(peak > 0);
    peak >> 10
}

#[test]
fn memory_does_not_grow_with_the_files() {
    let dir = tempdir().unwrap();
    let declared = dir.path().join("plain.toml");
    let text = "[task]\nid = \"plain\"\nversion = \"1\"\ndescription = \"d\"\nmetrics = [\"f1_squad\"]\n\
        [source]\nfiles = [\"{split}.jsonl\"]\n\
        [fields]\nid = \"id\"\ncontext = \"context\"\nreferences = [\"answers\"]\n\
        [prompt]\ninstruction = \"{{ prompt }}\"\nmax_new_tokens = 8\n";
    std::fs::write(&declared, text).unwrap();
    for task in ["narrativeqa", arg(&declared)] {
        // 32 and 128 MiB: both more than is fetched at once
        let (small, large) = (peak(task, 128), peak(task, 512));
        assert!(
            large < small + 32,
            "{task}: {small} MiB of memory for 32 MiB of data, {large} MiB for 128 MiB"
        );
    }
}
