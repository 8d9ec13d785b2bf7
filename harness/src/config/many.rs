//! Several backends in one command: which, called what, with which options.

use super::file::{BackendTable, Backends, RunFile};
use super::flags::RunArgs;
use super::settings::{RunSettings, backend_options, pair, set};
use crate::failure::{Failure, Result, did_you_mean};
use std::collections::BTreeSet;

/// What a command asks for.
#[derive(Debug)]
pub struct Asked {
    /// One for each backend, in the order asked for. They differ in what is the backend's only.
    pub runs: Vec<RunSettings>,
    /// Whether they belong into one folder, a run folder each.
    pub is_set: bool,
}

impl Asked {
    /// Flags (and environment) over the file over the defaults. `all` are the backends that `--backend all` means
    /// where the file has no `[[backend]]` tables.
    ///
    /// # Errors
    /// A setting that is missing, or that means nothing; two backends of one label.
    pub fn new(args: &RunArgs, all: &[&str]) -> Result<Self> {
        let file = args.config.as_deref().map(RunFile::read).transpose()?.unwrap_or_default();
        let mut file = file.over(RunFile::built_in()?);
        let backends = std::mem::take(&mut file.backend);
        let listed = matches!(backends, Backends::Several(_));
        let tables = tables(args, backends, all)?;
        let is_set = listed || tables.len() > 1;
        let labels: Vec<String> = tables.iter().map(label).collect();
        check(&labels)?;
        let common = RunSettings::common(args, file)?;
        let runs = tables.into_iter().zip(labels.iter().cloned());
        let runs = runs.map(|(table, label)| of_table(&common, args, table, label, &labels));
        Ok(Self { runs: runs.collect::<Result<_>>()?, is_set })
    }
}

/// The tables of the backends asked for.
fn tables(args: &RunArgs, backends: Backends, all: &[&str]) -> Result<Vec<BackendTable>> {
    let asked = args.backend.as_ref().filter(|names| !names.is_empty());
    let is_all = asked.is_some_and(|names| names.iter().any(|n| n == "all"));
    let named = |table: &BackendTable, name: &str| BackendTable { name: Some(name.into()), ..table.clone() };
    let tables = match (backends, asked) {
        (Backends::Several(tables), None) => tables,
        (Backends::Several(tables), Some(_)) if is_all => tables,
        (Backends::Several(tables), Some(names)) => {
            let plain = named(&RunFile::built_in()?.backend.first(), "");
            let mut chosen = Vec::new();
            for name in names {
                let by_label = tables.iter().filter(|t| label(t) == *name);
                let by_name = tables.iter().filter(|t| t.name.as_deref() == Some(name));
                let mut found: Vec<_> = by_label.cloned().collect();
                if found.is_empty() {
                    found = by_name.cloned().collect();
                }
                if found.is_empty() {
                    found = vec![named(&plain, name)];
                }
                chosen.append(&mut found);
            }
            chosen
        }
        (Backends::One(table), None) => vec![table],
        (Backends::One(table), Some(_)) if is_all => {
            all.iter().map(|name| options_of(named(&table, name), &table)).collect()
        }
        (Backends::One(table), Some(names)) if names.len() == 1 => vec![named(&table, &names[0])],
        (Backends::One(table), Some(names)) => {
            names.iter().map(|name| options_of(named(&table, name), &table)).collect()
        }
    };
    match tables.iter().find(|t| t.name.is_none()) {
        Some(_) => {
            Err(Failure::usage("no backend").help("name one with --backend; `e2llm-bench list backends`"))
        }
        None if tables.is_empty() => Err(Failure::usage("the configuration's list of backends is empty")),
        None => Ok(tables),
    }
}

/// The options in a file that names one backend are that one's, not those of all that a flag names.
fn options_of(mut table: BackendTable, file: &BackendTable) -> BackendTable {
    if file.name.is_some() && file.name != table.name {
        table.options.clear();
    }
    table
}

fn label(table: &BackendTable) -> String {
    table.label.clone().or_else(|| table.name.clone()).unwrap_or_default()
}

/// Labels become names of folders.
fn check(labels: &[String]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for label in labels {
        let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if label.is_empty() || label.starts_with('.') || !label.chars().all(is_plain) {
            return Err(Failure::usage(format!("`{label}` cannot be a backend's label"))
                .help("a label names a folder: letters, digits, `-`, `_`, `.` and `+`"));
        }
        if !seen.insert(label) {
            return Err(Failure::usage(format!("two backends are called `{label}`"))
                .help("in the configuration, give one of their [[backend]] tables another `label`"));
        }
    }
    Ok(())
}

fn of_table(
    common: &RunSettings,
    args: &RunArgs,
    table: BackendTable,
    label: String,
    labels: &[String],
) -> Result<RunSettings> {
    let device = set("backend.device", args.device.clone().or(table.device))?;
    let flags = flags_of(&args.backend_option, &label, labels)?;
    Ok(RunSettings {
        backend: table.name.unwrap_or_default(),
        model: args.model.clone().or(table.model),
        device: device.parse().map_err(Failure::usage)?,
        dtype: args.dtype.clone().or(table.dtype).unwrap_or_default(),
        backend_options: backend_options(&flags, table.options)?,
        label,
        ..common.clone()
    })
}

/// The `--backend-option`s of one backend: `LABEL.KEY=VALUE`, or `KEY=VALUE` where there is only one.
fn flags_of(flags: &[String], label: &str, labels: &[String]) -> Result<Vec<String>> {
    let mut own = Vec::new();
    for flag in flags {
        let (key, _) = pair(flag, "backend-option")?;
        match key.split_once('.').filter(|(to, _)| labels.iter().any(|l| l == to)) {
            Some((to, _)) if to == label => own.push(flag[to.len() + 1..].to_owned()),
            Some(_) => {}
            None if labels.len() == 1 => own.push(flag.clone()),
            None => {
                let to = key.split_once('.').map_or("", |(to, _)| to);
                let near = did_you_mean(to, labels.iter().map(String::as_str));
                return Err(Failure::usage(format!(
                    "--backend-option {flag}: with several backends, say whose it is: BACKEND.KEY=VALUE"
                ))
                .help(near));
            }
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: RunArgs,
    }

    fn asked(file: &str, flags: &[&str]) -> Result<Asked> {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("run.toml");
        std::fs::write(&config, file).unwrap();
        let config = config.to_str().unwrap();
        let args = [&["x", "--tasks", "qmsum", "--config", config], flags].concat();
        Asked::new(&Program::parse_from(args).args, &["one", "two"])
    }

    fn labels(asked: &Asked) -> Vec<&str> {
        asked.runs.iter().map(|r| r.label.as_str()).collect()
    }

    const TABLES: &str = "[[backend]]\nname = \"rag\"\n[[backend]]\nname = \"rag\"\nlabel = \"rag-bm25\"\n\
                          options = { search = \"bm25\" }\n[[backend]]\nname = \"e2llm\"\nmodel = \"m\"\n";

    #[test]
    fn one_backend_is_a_run_and_several_are_a_set() {
        let one = asked("[backend]\nname = \"a\"\n", &[]).unwrap();
        assert_eq!((labels(&one), one.is_set), (vec!["a"], false));
        let flag = asked("[backend]\nname = \"a\"\noptions = { k = 1 }\n", &["--backend", "b"]).unwrap();
        assert_eq!((labels(&flag), flag.runs[0].backend_options["k"].as_str()), (vec!["b"], "1"));
        let two = asked("[backend]\nname = \"a\"\noptions = { k = 1 }\n", &["--backend", "a,b"]).unwrap();
        assert_eq!((labels(&two), two.is_set), (vec!["a", "b"], true));
        assert!(two.runs[1].backend_options.is_empty() && !two.runs[0].backend_options.is_empty());
        assert_eq!(labels(&asked("", &["--backend", "all"]).unwrap()), ["one", "two"]);
        assert!(asked("", &[]).unwrap_err().to_string().contains("no backend"));
    }

    #[test]
    fn tables_give_a_backend_twice_and_flags_choose_among_them() {
        let all = asked(TABLES, &[]).unwrap();
        assert_eq!((labels(&all), all.is_set), (vec!["rag", "rag-bm25", "e2llm"], true));
        assert_eq!(all.runs[1].backend, "rag");
        assert_eq!(all.runs[1].backend_options["search"], "bm25");
        assert_eq!(
            (all.runs[0].model.as_deref(), all.runs[2].model.as_deref()),
            (Some("e2llm-135m"), Some("m"))
        );
        assert_eq!(labels(&asked(TABLES, &["--backend", "all"]).unwrap()).len(), 3);
        let some = asked(TABLES, &["--backend", "rag-bm25,other", "--model", "n"]).unwrap();
        assert_eq!((labels(&some), some.is_set), (vec!["rag-bm25", "other"], true));
        assert!(some.runs.iter().all(|r| r.model.as_deref() == Some("n")));
        assert!(asked(TABLES, &["--backend", "e2llm"]).unwrap().is_set);
    }

    #[test]
    fn the_shipped_file_is_good() {
        let all = asked(include_str!("../../../configs/compare.toml"), &[]).unwrap();
        let labels = labels(&all);
        assert_eq!(labels[..4], ["no-context", "truncate", "truncate-left", "full"]);
        assert_eq!(labels[4..], ["rag", "streaming", "yarn", "e2llm"]);
        assert!(all.runs.iter().all(|r| crate::run::check(r).unwrap()), "each needs a model");
    }

    #[test]
    fn options_say_whose_they_are() {
        let flags = ["--backend", "a,b", "--backend-option", "b.k=v"];
        let both = asked("", &flags).unwrap();
        assert!(both.runs[0].backend_options.is_empty());
        assert_eq!(both.runs[1].backend_options["k"], "v");
        let error = asked("", &["--backend", "a,b", "--backend-option", "k=v"]).unwrap_err();
        assert!(error.to_string().contains("BACKEND.KEY=VALUE"), "{error}");
        let one = asked("", &["--backend", "a", "--backend-option", "k=v"]).unwrap();
        assert_eq!(one.runs[0].backend_options["k"], "v");
    }

    #[test]
    fn labels_are_folders_of_their_own() {
        for (file, why) in [
            ("[[backend]]\nname = \"a\"\n[[backend]]\nname = \"a\"\n", "two backends are called `a`"),
            ("[[backend]]\nname = \"a\"\nlabel = \"../a\"\n", "cannot be a backend's label"),
            ("backend = []\n", "is empty"),
            ("[[backend]]\nname = \"a\"\nlable = \"b\"\n", "unknown key"),
        ] {
            let error = asked(file, &[]).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
