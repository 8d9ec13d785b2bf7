//! Running the program and reading what it says.

use assert_cmd::Command;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

/// No command of these tests works for longer; one that does hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// The folder with the program and the plugins: that of this test's own build.
pub(crate) fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap().to_owned();
    for name in ["e2llm-bench", "libe2llm_metric_qa.so", "libe2llm_task_niah.so"] {
        let name = name.replace(".so", std::env::consts::DLL_SUFFIX);
        assert!(
            folder.join(&name).is_file(),
            "{name} is not in {}: run `cargo build --release --workspace` first",
            folder.display()
        );
    }
    folder
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The program with these arguments, without the settings of the user's environment.
pub(crate) fn command(args: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(built().join("e2llm-bench"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("E2LLM_") && n != "E2LLM_CACHE") {
        command.env_remove(name);
    }
    command.env_remove("RUST_BACKTRACE").args(args);
    command
}

/// What a finished program left.
#[derive(Debug)]
pub(crate) struct Ended {
    command: String,
    output: Output,
}

/// Runs the program to its end.
#[track_caller]
pub(crate) fn bench(args: &[&str]) -> Ended {
    finish(command(args))
}

/// Runs a prepared command to its end.
#[track_caller]
pub(crate) fn finish(command: std::process::Command) -> Ended {
    let name = format!("{command:?}");
    let output = Command::from_std(command).timeout(PATIENCE).output().unwrap();
    Ended { command: name, output }
}

/// A text without white space and frames: messages are wrapped to the width of a terminal.
fn squeezed(text: &str) -> String {
    let frame = |c: char| c.is_whitespace() || matches!(c, '\u{2500}'..='\u{257f}' | '×' | '▶' | '·');
    text.chars().filter(|c| !frame(*c)).collect()
}

impl Ended {
    /// Fails unless the program ended by itself with this exit code.
    #[track_caller]
    pub(crate) fn code(self, expected: i32) -> Self {
        assert_eq!(self.output.status.code(), Some(expected), "{}", self.all());
        self
    }

    /// Fails unless stderr contains each of these texts.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        let stderr = squeezed(&self.stderr());
        for text in texts {
            assert!(stderr.contains(&squeezed(text)), "stderr lacks `{text}`:\n{}", self.all());
        }
        self
    }

    /// Fails unless stdout contains each of these texts.
    #[track_caller]
    pub(crate) fn prints(self, texts: &[&str]) -> Self {
        let stdout = squeezed(&self.stdout());
        for text in texts {
            assert!(stdout.contains(&squeezed(text)), "stdout lacks `{text}`:\n{}", self.all());
        }
        self
    }

    /// Each line of stdout as JSON; fails where one is none.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|e| panic!("no JSON ({e}): {line}\n{}", self.all()))
        };
        self.stdout().lines().map(parse).collect()
    }

    /// stdout as text.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    /// stderr as text.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    fn all(&self) -> String {
        let (out, err) = (self.stdout(), self.stderr());
        format!("{}\n{}\n-- stdout\n{out}\n-- stderr\n{err}", self.command, self.output.status)
    }
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}
