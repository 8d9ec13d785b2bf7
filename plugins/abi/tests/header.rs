//! The checked-in C header is the one this crate's types generate.

use std::path::Path;

#[test]
fn header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_crate(root)
        .with_config(config)
        .generate()
        .expect("the crate parses")
        .write(&mut made);
    let made = String::from_utf8(made).expect("a header is text");
    let path = root.join("include/e2llm_plugin.h");
    if std::env::var_os("E2LLM_UPDATE").is_some() {
        std::fs::write(&path, &made).expect("the header can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "include/e2llm_plugin.h is stale: run with E2LLM_UPDATE=1 and commit it");
}
