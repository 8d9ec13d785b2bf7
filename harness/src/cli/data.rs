//! `data info` and `data import`; `data fetch` and `data verify` are in [`super::data_fetch`].

use super::args::{DataArgs, DataCommand};
use super::{data_fetch, output};
use crate::config::DataChoice;
use crate::data;
use crate::failure::{Exit, Failure, Result};
use crate::plugins::{Index, SearchPath};
use e2llm_plugin::client::TaskClient;
use e2llm_plugin::{Example, Source, TaskInfo, TaskOptions};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Commands on benchmark data.
///
/// # Errors
/// Data that is missing or broken.
pub(super) fn data(args: &DataArgs) -> Result<Exit> {
    match &args.command {
        DataCommand::Fetch { task, data, accept_licence, offline, data_catalogue, quiet, json } => {
            let fetcher = data_fetch::fetcher(data_catalogue.as_deref(), *offline, *quiet)?;
            return data_fetch::fetch(&fetcher, task, data, *accept_licence, *json);
        }
        DataCommand::Verify { task, data, data_catalogue, json } => {
            let fetcher = data_fetch::fetcher(data_catalogue.as_deref(), true, true)?;
            return data_fetch::verify(&fetcher, task, data, *json);
        }
        DataCommand::Info { task, data, split, json, plugins } => {
            let (client, info, source) = open(task, data, split.as_deref(), &plugins.plugin_dir)?;
            describe(&client, &info, &source, *json)?;
        }
        DataCommand::Import { task, data, split, out, plugins } => {
            let (client, info, source) = open(task, data, split.as_deref(), &plugins.plugin_dir)?;
            import(&client, &info, &source, out)?;
        }
    }
    Ok(Exit::Done)
}

fn open(
    task: &str,
    data: &str,
    split: Option<&str>,
    plugin_dirs: &[PathBuf],
) -> Result<(TaskClient, TaskInfo, Source)> {
    let mut index = Index::scan(&SearchPath::usual(plugin_dirs))?;
    let task = &index.task_named(task)?;
    let found = index.task(task)?;
    let (client, _) = found.open(&TaskOptions::default())?;
    let info = client.info()?;
    let choice = match data {
        "sample" => DataChoice::Sample,
        folder if data::task_folder(Path::new(folder), task).is_ok() => DataChoice::Root(folder.into()),
        folder => DataChoice::Folder(folder.into()),
    };
    let source = data::source(&info, &found.data(choice)?, split, 0)?;
    Ok((client, info, source))
}

fn describe(client: &TaskClient, info: &TaskInfo, source: &Source, as_json: bool) -> Result<()> {
    let stream = client.open(source)?;
    let files = stream.files.clone();
    let (mut words, mut groups, mut references, mut ids) = (Vec::new(), BTreeSet::new(), 0, BTreeSet::new());
    for example in stream {
        let e: Example = example?;
        if !ids.insert(e.id.clone()) {
            return Err(Failure::failed(format!("sample id `{}` occurs twice", e.id)));
        }
        words.push(e.context.split_whitespace().count());
        references += e.references.len();
        groups.insert(e.group);
    }
    words.sort_unstable();
    let n = words.len();
    let total: usize = words.iter().sum();
    let at = |q: usize| words.get((n.saturating_sub(1)) * q / 100).copied().unwrap_or(0);
    if as_json {
        return output::print_json(&json!({
            "task": info.id, "split": source.split, "samples": n, "documents": groups.len(),
            "references": references, "context_words": {"mean": total / n.max(1), "min": at(0), "median": at(50), "max": at(100)},
            "files": files,
        }));
    }
    let mut rows = vec![
        vec!["task".to_owned(), format!("{}@{}", info.id, info.version)],
        vec!["split".into(), source.split.clone()],
        vec!["samples".into(), n.to_string()],
        vec!["documents".into(), groups.len().to_string()],
        vec!["references".into(), references.to_string()],
        vec![
            "context words".into(),
            format!("min {}, median {}, mean {}, max {}", at(0), at(50), total / n.max(1), at(100)),
        ],
    ];
    rows.extend(files.iter().map(|f| vec!["file".into(), f.display().to_string()]));
    output::print(&output::table(&rows))
}

fn import(client: &TaskClient, info: &TaskInfo, source: &Source, out: &Path) -> Result<()> {
    let folder = out.join(&info.id);
    std::fs::create_dir_all(&folder).map_err(|e| Failure::io("create", &folder, &e))?;
    let path = folder.join(format!("{}.jsonl", source.split));
    if path.exists() {
        return Err(Failure::usage(format!("{} exists already", path.display())));
    }
    // under a temporary name until it is whole
    let part = path.with_extension("jsonl.part");
    let failed = |e: std::io::Error| Failure::io("write", &part, &e);
    let mut file = BufWriter::new(File::create(&part).map_err(failed)?);
    let mut n = 0;
    for example in client.open(source)? {
        let e = example?;
        let mut meta = e.meta;
        meta.entry("document_id").or_insert(e.group.into());
        let line = json!({"id": e.id, "context": e.context, "prompt": e.instruction, "answers": e.references, "meta": meta});
        writeln!(file, "{line}").map_err(failed)?;
        n += 1;
    }
    file.flush().map_err(failed)?;
    std::fs::rename(&part, &path).map_err(|e| Failure::io("write", &path, &e))?;
    output::print(&format!("{n} samples written to {}\n", path.display()))
}
