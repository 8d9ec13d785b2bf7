//! Which files are learned from and which are validated on.

use crate::cli::PrepareArgs;
use crate::failure::{Failure, Result};
use e2llm_train::Split;
use e2llm_train::data::Assign;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of records.
#[derive(Debug, Clone)]
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// Where its records go.
    pub assign: Assign,
    /// Documents whose records are for validation all the same.
    pub except: BTreeSet<String>,
}

/// `--splits`: files of both splits without their endings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitsFile {
    train: Train,
    validation: Validation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Train {
    files: Vec<String>,
    #[serde(default)]
    except_documents: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Validation {
    files: Vec<String>,
}

/// The files asked for, those to validate on first: their documents are known then when the others are read.
///
/// # Errors
/// No files; a list of files that is none; files that are missing.
pub fn inputs(args: &PrepareArgs) -> Result<Vec<Input>> {
    let (train, validation, except) = match (&args.splits, &args.data) {
        (Some(file), Some(root)) => {
            let splits = read(file)?;
            let find = |names: Vec<String>| names.iter().map(|n| find(root, n)).collect::<Result<Vec<_>>>();
            (find(splits.train.files)?, find(splits.validation.files)?, splits.train.except_documents)
        }
        _ => (args.input.clone(), args.validation_input.clone(), BTreeSet::new()),
    };
    if train.is_empty() {
        return Err(Failure::usage("no records to learn from")
            .help("name files with --input, or a list of them with --splits and --data"));
    }
    if let Some(missing) = train.iter().chain(&validation).find(|p| !p.is_file()) {
        return Err(Failure::usage(format!("no file {}", missing.display())));
    }
    let assign =
        if validation.is_empty() && except.is_empty() { Assign::BySeed } else { Assign::To(Split::Train) };
    let held = validation.into_iter().map(|path| Input {
        path,
        assign: Assign::To(Split::Validation),
        except: BTreeSet::new(),
    });
    let learned = train.into_iter().map(|path| Input { path, assign, except: except.clone() });
    Ok(held.chain(learned).collect())
}

fn read(path: &Path) -> Result<SplitsFile> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))?;
    toml::from_str(&text).map_err(|e| {
        let failure = Failure::usage(format!("{}: {}", path.display(), e.message()));
        match e.span() {
            Some(span) => failure.at(path.display().to_string(), &text, span),
            None => failure,
        }
    })
}

fn find(root: &Path, name: &str) -> Result<PathBuf> {
    let endings = ["", ".jsonl", ".jsonl.zst", ".jsonl.gz"];
    let mut paths = endings.iter().map(|e| root.join(format!("{name}{e}")));
    paths.find(|p| p.is_file()).ok_or_else(|| {
        Failure::usage(format!("no file {}", root.join(name).display()))
            .help("tried .jsonl, .jsonl.zst and .jsonl.gz")
    })
}
