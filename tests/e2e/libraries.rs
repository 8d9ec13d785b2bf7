//! Plugin libraries made for a test: C sources compiled by the system's compiler, crates of strangers by cargo.

use crate::invoke::{built, repository};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A temporary folder that plugins may be loaded from.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("e2llm-plugins-").tempdir().unwrap()
}

/// Compiles a source of `tests/plugins` into `library`.
#[track_caller]
pub(crate) fn compile(source: &str, library: &Path, flags: &[String]) {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .args(["-std=c11", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(repository("plugins/abi/include"))
        .args(flags)
        .arg("-o")
        .arg(library)
        .arg(repository("tests/plugins").join(source))
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}: a C compiler is needed", compiler.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A library made of `stress.c`.
pub(crate) struct Stress<'a> {
    /// The one way in which it breaks the contract.
    pub(crate) variant: &'a str,
    /// The text of its identity section, if it has one.
    pub(crate) section: Option<String>,
    /// Its id in the code.
    pub(crate) id: &'a str,
    /// More flags of the compiler.
    pub(crate) flags: Vec<String>,
}

impl<'a> Stress<'a> {
    /// One with a sound identity section.
    pub(crate) fn new(variant: &'a str) -> Self {
        Self { variant, section: Some(identity("stress").to_string()), id: "stress", flags: Vec::new() }
    }

    /// Compiles it.
    #[track_caller]
    pub(crate) fn build(self, folder: &Path, file: &str) -> PathBuf {
        let library = folder.join(file);
        let mut flags = self.flags;
        // Rust's quoting of ASCII is C's
        flags.extend([format!("-DVARIANT={}", self.variant), format!("-DID={:?}", self.id)]);
        flags.extend(self.section.map(|text| format!("-DIDENTITY={text:?}")));
        compile("stress.c", &library, &flags);
        library
    }
}

/// The identity of `stress.c`.
pub(crate) fn identity(id: &str) -> serde_json::Value {
    json!({
        "id": id, "kind": "metric", "version": "1.0.0", "abi_major": 1, "abi_minor": 0, "target": "any",
        "description": "for tests", "provides": "stress_value",
    })
}

/// Runs cargo on a crate of `tests/plugins` as its author would, outside the workspace; what is downloaded already
/// suffices where the workspace was built on the same machine. Gives the folder of the finished libraries.
#[track_caller]
pub(crate) fn cargo(command: &[&str], name: &str) -> PathBuf {
    let target = built().parent().unwrap().join("stranger");
    let run = |offline: bool| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(command).args(["--release", "--locked", "--target-dir"]).arg(&target);
        if offline {
            cargo.arg("--offline");
        }
        cargo
            .current_dir(repository("tests/plugins").join(name))
            .env_remove("CARGO_TARGET_DIR")
            .output()
            .unwrap()
    };
    let mut output = run(true);
    if !output.status.success() {
        output = run(false);
    }
    assert!(output.status.success(), "cargo {command:?}: {}", String::from_utf8_lossy(&output.stderr));
    target.join("release")
}
