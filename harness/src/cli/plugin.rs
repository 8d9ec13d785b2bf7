//! `plugin list` and `plugin verify`.

use super::args::{PluginArgs, PluginCommand};
use super::output;
use crate::failure::{Exit, Failure, Result};
use crate::plugins::{Index, SearchPath, load};
use e2llm_plugin::{Kind, testing};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Commands on plugin libraries.
///
/// # Errors
/// A folder or file that does not exist.
pub(super) fn plugin(args: &PluginArgs) -> Result<Exit> {
    match &args.command {
        PluginCommand::List { json, plugins } => list(&plugins.plugin_dir, *json).map(|()| Exit::Done),
        PluginCommand::Verify { file } => verify(file),
    }
}

/// Every library found, usable or not.
pub(super) fn list(plugin_dirs: &[PathBuf], json: bool) -> Result<()> {
    let index = Index::scan(&SearchPath::usual(plugin_dirs))?;
    let mut rows = Vec::new();
    for c in [Kind::Task, Kind::Metric].iter().flat_map(|k| index.of_kind(*k)) {
        let i = &c.identity;
        rows.push(json!({"kind": i.kind.name(), "id": i.id, "version": i.version, "target": i.target, "path": c.path}));
    }
    for r in &index.rejected {
        rows.push(json!({"kind": "unusable", "path": r.path, "why": r.why}));
    }
    output::print_rows(&rows, json)
}

fn verify(file: &Path) -> Result<Exit> {
    if !file.is_file() {
        return Err(Failure::usage(format!("no file {}", file.display())));
    }
    let file = file.canonicalize().map_err(|e| Failure::io("read", file, &e))?;
    let (plugin, _) = load(&file)?;
    let report = testing::verify(&plugin);
    output::print(&format!("{} {}@{}\n{report}", plugin.kind().name(), plugin.id(), plugin.version()))?;
    if report.passed() { Ok(Exit::Done) } else { Err(Failure::failed("the plugin does not conform")) }
}
