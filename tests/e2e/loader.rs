//! The loader's test matrix: every way a library can be wrong is a clear error with a documented exit code, and the
//! program goes on with the libraries that are sound.

use crate::invoke::{Ended, arg, bench};
use crate::libraries::{Stress, folder, identity};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const FILE: &str = "libstress.so";
const PAIRS: &str = "{\"prediction\":\"a\",\"references\":[\"a\"]}\n";

/// Scores one pair with the metric `stress` of a folder.
fn metric(folder: &Path) -> Ended {
    let pairs = folder.join("pairs.jsonl");
    std::fs::write(&pairs, PAIRS).unwrap();
    bench(&["metric", "stress", "--input", arg(&pairs), "--plugin-dir", arg(folder)])
}

fn verify(library: &Path) -> Ended {
    bench(&["plugin", "verify", arg(library)])
}

fn list(folder: &Path) -> Ended {
    bench(&["plugin", "list", "--plugin-dir", arg(folder)])
}

/// Builds a variant and scores with it.
#[track_caller]
fn scored_by(variant: &str) -> Ended {
    let dir = folder();
    Stress::new(variant).build(dir.path(), FILE);
    metric(dir.path())
}

#[test]
fn a_good_library_is_listed_loaded_and_used() {
    let dir = folder();
    let library = Stress::new("GOOD").build(dir.path(), FILE);
    list(dir.path()).code(0).prints(&["metric stress 1.0.0", FILE]);
    let scored = metric(dir.path()).code(0);
    assert_eq!(scored.stdout(), "{\"stress_value\":1.0}\n");
    // that it loads does not mean that it is right: it gives an empty answer 1
    verify(&library).code(1).prints(&["FAILED an empty answer gets the minimum", "ok info is complete"]);
}

#[test]
fn a_library_of_a_newer_minor_version_works() {
    let dir = folder();
    let mut section = identity("stress");
    section["abi_minor"] = 3.into();
    section["what_a_later_version_says"] = "unknown".into();
    let library = Stress { section: Some(section.to_string()), ..Stress::new("NEWER_MINOR") };
    library.build(dir.path(), FILE);
    assert_eq!(metric(dir.path()).code(0).stdout(), "{\"stress_value\":1.0}\n");
}

#[test]
fn a_wrong_descriptor_is_refused_when_loaded() {
    for (variant, message) in [
        ("NULL_DESCRIPTOR", "the entry function returned null"),
        ("WRONG_MAGIC", "does not begin with `E2LLMPLG`"),
        ("WRONG_MAJOR", "was built for ABI 2.0, this program has ABI 1.0"),
        ("SHORT_STRUCT", "its descriptor has 64 bytes, at least"),
        ("WRONG_KIND", "its kind is 9, expected 1 (task) or 2 (metric)"),
        ("NULL_FUNCTION", "a function of its descriptor is null"),
        ("NULL_ID", "its id: a null pointer with length 6"),
        ("EMPTY_VERSION", "its version is empty"),
        ("NOT_UTF8_ID", "its id: not UTF-8"),
        ("OTHER_KIND", "its file says metric `stress` 1.0.0, its code task `stress` 1.0.0"),
        ("UNRESOLVED_SYMBOL", "cannot be loaded: "),
    ] {
        let dir = folder();
        let library = Stress::new(variant).build(dir.path(), FILE);
        metric(dir.path()).code(1).says(&[arg(&library), message]);
        verify(&library).code(1).says(&[arg(&library), message]);
    }
}

#[test]
fn a_library_without_the_entry_function_is_refused() {
    let dir = folder();
    let flags = vec!["-De2llm_plugin_entry=another_entry".to_owned()];
    let library = Stress { flags, ..Stress::new("GOOD") }.build(dir.path(), FILE);
    metric(dir.path()).code(1).says(&[arg(&library), "does not export e2llm_plugin_entry"]);
}

#[test]
fn create_that_fails_is_an_error_with_the_plugins_words() {
    for (variant, texts) in [
        ("CREATE_FAILS", &["no stress today", "come back tomorrow"][..]),
        ("CREATE_FAILS_SILENTLY", &["`create` failed with status 6 and no message"]),
        ("CREATE_WITHOUT_INSTANCE", &["`create` succeeded without an instance"]),
        ("INFO_NOT_JSON", &["plugin `stress`: `info`: its reply cannot be read"]),
    ] {
        scored_by(variant).code(1).says(texts);
    }
}

#[test]
fn a_wrong_reply_is_an_error_that_says_what_is_wrong() {
    for (variant, message) in [
        ("NULL_WITH_LENGTH", "is a null pointer with length 7"),
        ("LENGTH_OVER_CAPACITY", "in a buffer of"),
        ("OVERSIZE", "has 268435457 bytes, at most 268435456 are accepted"),
        ("NO_FREE", "has no `free` function"),
        ("NOT_UTF8", "is not UTF-8"),
        ("NOT_JSON", "cannot be read: expected value at line 1 column 1"),
        ("WRONG_SCHEMA", "cannot be read: invalid type: string \"high\", expected f64"),
        ("EMPTY_REPLY", "cannot be read: EOF"),
        ("FAILS", "too much stress"),
        ("FAILS_SILENTLY", "`score` failed with status 6 and no message"),
        ("FAILS_IN_PLAIN_TEXT", "`score` failed with status 4: out of paper"),
        ("UNKNOWN_STATUS", "`score` failed with status 99 and no message"),
        ("ENDS_A_STREAM", "`score` ended a stream that is none"),
    ] {
        scored_by(variant).code(1).says(&["line 1: metric `stress`: plugin `stress`", message]);
    }
}

#[test]
fn a_wrong_reply_in_a_run_costs_the_sample_and_not_the_run() {
    let dir = folder();
    Stress::new("OVERSIZE").build(dir.path(), FILE);
    let out = dir.path().join("run");
    let ended = bench(&[
        "run",
        "--tasks",
        "quality",
        "--backend",
        "echo",
        "--limit",
        "2",
        "--metrics",
        "stress_value",
        "--plugin-dir",
        arg(dir.path()),
        "--out",
        arg(&out),
    ]);
    ended.code(3).says(&["metric `stress`", "at most 268435456 are accepted"]);
    let results = std::fs::read_to_string(out.join("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    let all = &results["tasks"][0]["slices"][0];
    assert_eq!((&all["n"], &all["n_error"]), (&2.into(), &2.into()));
}

/// Replaces a sound library by what `damage` makes of its bytes.
fn damaged(dir: &Path, damage: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let library = Stress::new("GOOD").build(dir, FILE);
    let bytes = damage(std::fs::read(&library).unwrap());
    std::fs::write(&library, bytes).unwrap();
}

/// The file is listed as unusable with the reason, a sound neighbour works, and asking for it is an error.
#[track_caller]
fn unusable(dir: &Path, reason: &str) {
    let neighbour = Stress { id: "calm", section: Some(identity("calm").to_string()), ..Stress::new("GOOD") };
    neighbour.build(dir, "libcalm.so");
    list(dir).code(0).prints(&["metric calm", "unusable", FILE, reason]);
    bench(&["metric", "calm", "--input", arg(&pairs(dir)), "--plugin-dir", arg(dir)]).code(0);
    metric(dir).code(2).says(&["unknown metric `stress`", "not usable:", FILE, reason]);
}

fn pairs(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("pairs.jsonl");
    std::fs::write(&path, PAIRS).unwrap();
    path
}

#[test]
fn files_that_are_no_libraries_are_listed_as_unusable() {
    let dir = folder();
    let file = dir.path().join(FILE);
    std::fs::write(&file, "This is a letter to a friend, renamed.\n").unwrap();
    unusable(dir.path(), "is no shared library");
    verify(&file).code(1).says(&["is no shared library"]);

    std::fs::write(&file, "").unwrap();
    unusable(dir.path(), "is empty");
    verify(&file).code(1).says(&["is empty"]);

    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    unusable(dir.path(), "is no regular file");
    verify(&file).code(2).says(&["no file"]);

    std::fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink(dir.path().join("gone.so"), &file).unwrap();
    unusable(dir.path(), "is no regular file");
    verify(&file).code(2).says(&["no file"]);
}

#[test]
fn truncated_libraries_are_unusable_wherever_they_end() {
    for keep in [3, 40, 64, 700] {
        let dir = folder();
        damaged(dir.path(), |mut bytes| {
            bytes.truncate(keep);
            bytes
        });
        unusable(dir.path(), "is no shared library");
    }
    let dir = folder();
    damaged(dir.path(), |mut bytes| {
        bytes.truncate(bytes.len() / 2);
        bytes
    });
    list(dir.path()).code(0).prints(&["unusable", FILE]);
    metric(dir.path()).code(2).says(&["unknown metric `stress`", FILE]);
}

/// Every prefix of a library and every single broken byte of its headers is survived: no crash, whatever is said.
#[test]
fn a_library_cut_or_broken_anywhere_is_survived() {
    let dir = folder();
    let library = Stress::new("GOOD").build(dir.path(), FILE);
    let bytes = std::fs::read(&library).unwrap();
    let folders: Vec<_> = (0..64)
        .map(|i| {
            let sub = dir.path().join(format!("{i}"));
            std::fs::create_dir(&sub).unwrap();
            let mut broken = bytes.clone();
            if i < 32 {
                broken.truncate(bytes.len() * i / 32);
            } else {
                broken[2 * (i - 32)] ^= 0xff; // the file's header
            }
            std::fs::write(sub.join(FILE), broken).unwrap();
            sub
        })
        .collect();
    let mut args = vec!["plugin", "list", "--json"];
    for sub in &folders {
        args.extend(["--plugin-dir", arg(sub)]);
    }
    let rows = bench(&args).code(0).json_lines();
    let of_ours = |row: &&serde_json::Value| row["path"].as_str().unwrap().contains(FILE);
    assert_eq!(rows.iter().filter(of_ours).count(), folders.len());
}

#[test]
fn a_library_of_another_machine_type_cannot_be_loaded() {
    let dir = folder();
    damaged(dir.path(), |mut bytes| {
        bytes[18] = if bytes[18] == 0x3e { 0xb7 } else { 0x3e }; // e_machine: AArch64 or x86-64
        bytes
    });
    metric(dir.path()).code(1).says(&[FILE, "cannot be loaded"]);
}

#[test]
fn identity_sections_that_are_wrong() {
    let mut other_abi = identity("stress");
    other_abi["abi_major"] = 9.into();
    let mut other_kind = identity("stress");
    other_kind["kind"] = "oracle".into();
    for (section, reason) in [
        ("{\"id\":\"stress\"", "has a damaged identity section"),
        ("no JSON at all", "has a damaged identity section"),
        ("", "has a damaged identity section"),
        (&*other_kind.to_string(), "has a damaged identity section"),
        (&*other_abi.to_string(), "was built for plugin ABI 9.0, this program has 1.0"),
    ] {
        let dir = folder();
        Stress { section: Some(section.to_owned()), ..Stress::new("GOOD") }.build(dir.path(), FILE);
        unusable(dir.path(), reason);
    }
    let dir = folder();
    Stress { section: None, ..Stress::new("GOOD") }.build(dir.path(), FILE);
    unusable(dir.path(), "it has no identity section");
}

#[test]
fn a_section_that_contradicts_the_code_is_refused() {
    let dir = folder();
    let library = Stress { id: "other", ..Stress::new("GOOD") }.build(dir.path(), FILE);
    let message = "its file says metric `stress` 1.0.0, its code metric `other` 1.0.0";
    metric(dir.path()).code(1).says(&[arg(&library), message]);
    verify(&library).code(1).says(&[message]);
}

#[test]
fn two_libraries_with_one_id_are_an_error_that_names_both() {
    let (first, second) = (folder(), folder());
    let one = Stress::new("GOOD").build(first.path(), FILE);
    let two = Stress::new("GOOD").build(second.path(), FILE);
    let pairs = pairs(first.path());
    let dirs = ["--plugin-dir", arg(first.path()), "--plugin-dir", arg(second.path())];
    let mut args = vec!["metric", "stress", "--input", arg(&pairs)];
    args.extend(dirs);
    bench(&args).code(2).says(&["metric `stress` is there twice", arg(&one), arg(&two)]);
    // the same folder twice is one folder
    bench(&["metric", "stress", "--input", arg(&pairs), dirs[0], dirs[1], dirs[0], dirs[1]]).code(0);
    // what is not asked for is in nobody's way
    let mut args = vec!["metric", "qa", "--input", arg(&pairs)];
    args.extend(dirs);
    bench(&args).code(0);
}

#[test]
fn what_everybody_can_write_is_not_loaded() {
    let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    let reason = "can be written by every user of this machine";
    let dir = folder();
    let library = Stress::new("GOOD").build(dir.path(), FILE);
    mode(&library, 0o777);
    unusable(dir.path(), reason);
    mode(&library, 0o755);
    metric(dir.path()).code(0);
    mode(dir.path(), 0o777);
    list(dir.path()).code(0).prints(&["unusable", arg(dir.path()), reason]);
    metric(dir.path()).code(2).says(&["unknown metric `stress`", reason]);
}

#[test]
fn a_plugin_folder_that_does_not_exist_is_wrong_usage() {
    bench(&["list", "tasks", "--plugin-dir", "no/such/folder"])
        .code(2)
        .says(&["no plugin folder no/such/folder"]);
    bench(&["plugin", "verify", "no/such/library.so"]).code(2).says(&["no file no/such/library.so"]);
}
