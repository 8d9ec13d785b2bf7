//! `list`.

use super::args::{ListArgs, ListKind};
use super::output;
use crate::declared::Declared;
use crate::failure::{Exit, Result};
use crate::models::Catalogue;
use crate::plugins::{Candidate, Index, SearchPath, provides};
use crate::run::registry;
use e2llm_plugin::Kind;
use serde_json::{Value, json};

/// Lists what there is. Runs no plugin's code.
///
/// # Errors
/// A plugin folder that does not exist.
pub(super) fn list(args: &ListArgs) -> Result<Exit> {
    let rows = match args.what {
        ListKind::Tasks => tasks(args)?,
        ListKind::Metrics => metrics(args)?,
        ListKind::Backends => registry()
            .iter()
            .map(|b| json!({"name": b.name, "description": b.description, "source": b.source}))
            .collect(),
        ListKind::Models => Catalogue::load(args.models.models_file.as_deref())?
            .iter()
            .map(|(name, m)| json!({"name": name, "kind": m.kind.to_string(), "description": m.description}))
            .collect(),
        ListKind::Plugins => {
            super::plugin::list(&args.plugins.plugin_dir, args.json)?;
            return Ok(Exit::Done);
        }
    };
    output::print_rows(&rows, args.json)?;
    Ok(Exit::Done)
}

fn index(args: &ListArgs) -> Result<Index> {
    let index = Index::scan(&SearchPath::usual(&args.plugins.plugin_dir))?;
    for r in &index.rejected {
        output::note(&format!("not usable: {} {}", r.path.display(), r.why));
    }
    Ok(index)
}

fn tasks(args: &ListArgs) -> Result<Vec<Value>> {
    let index = index(args)?;
    note_if_empty(&index, Kind::Task);
    let library = |c: &Candidate| json!({"id": c.identity.id, "version": c.identity.version, "description": c.identity.description});
    let file = |d: &Declared| json!({"id": d.id, "version": d.version, "description": d.description});
    Ok(index.of_kind(Kind::Task).map(library).chain(index.declared().map(file)).collect())
}

fn metrics(args: &ListArgs) -> Result<Vec<Value>> {
    let index = index(args)?;
    note_if_empty(&index, Kind::Metric);
    let mut rows = Vec::new();
    for c in index.of_kind(Kind::Metric) {
        rows.extend(
            provides(c)
                .map(|id| json!({"id": id, "plugin": format!("{}@{}", c.identity.id, c.identity.version)})),
        );
    }
    Ok(rows)
}

fn note_if_empty(index: &Index, kind: Kind) {
    if index.of_kind(kind).next().is_none() {
        output::note(&format!(
            "no {} plugins found; build them with `cargo build --release --workspace`, or name their folder with --plugin-dir",
            kind.name()
        ));
    }
}
