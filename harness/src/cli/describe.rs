//! `describe`.

use super::args::DescribeArgs;
use super::output;
use crate::failure::{Exit, Failure, Result, did_you_mean};
use crate::plugins::{HOST, Index, SearchPath, provides};
use crate::run::registry;
use e2llm_backend::BackendSpec;
use e2llm_plugin::client::MetricClient;
use e2llm_plugin::{Kind, MetricInfo, TaskInfo, TaskOptions};
use serde_json::json;

/// Describes a task, metric or backend.
///
/// # Errors
/// An unknown name; a plugin that cannot be loaded.
pub(super) fn describe(args: &DescribeArgs) -> Result<Exit> {
    let mut index = Index::scan(&SearchPath::usual(&args.plugins.plugin_dir))?;
    let name = &*index.task_named(&args.name)?;
    let registry = registry();
    if index.task_ids().contains(&name) {
        let (client, _) = index.task(name)?.open(&TaskOptions::default())?;
        let info = client.info()?;
        return show(args, &info, || task_text(&info));
    }
    if let Some(spec) = registry.get(name) {
        let options: Vec<_> = spec
            .options
            .iter()
            .map(|o| json!({"name": o.name, "default": o.default, "help": o.help}))
            .collect();
        let value = json!({"name": spec.name, "description": spec.description, "source": spec.source, "options": options});
        return show(args, &value, || backend_text(spec));
    }
    let known = || index.of_kind(Kind::Metric).flat_map(|c| provides(c).chain([c.identity.id.as_str()]));
    if known().any(|id| id == name) {
        let info = MetricClient::create(&index.metric_of(name)?.load()?, Some(&HOST))?.info()?;
        return show(args, &info, || metric_text(&info));
    }
    let names = index.task_ids().into_iter().chain(registry.iter().map(|b| b.name)).chain(known());
    Err(Failure::usage(format!("there is no task, metric or backend `{name}`"))
        .help(did_you_mean(name, names)))
}

fn show(args: &DescribeArgs, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<Exit> {
    if args.json {
        output::print_json(value)?
    } else {
        output::print(&text())?
    }
    Ok(Exit::Done)
}

fn fields(rows: &[(&str, String)]) -> String {
    let rows: Vec<_> =
        rows.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| vec![(*k).to_owned(), v.clone()]).collect();
    output::table(&rows)
}

fn task_text(info: &TaskInfo) -> String {
    let mut text = format!("task {}@{}\n{}\n\n", info.id, info.version, info.description);
    text += &fields(&[
        ("licence", info.licence.clone()),
        ("cite", info.citation.clone()),
        ("splits", format!("{} (default {})", info.splits.join(", "), info.default_split)),
        ("metrics", info.metrics.join(", ")),
        ("ranked by", info.primary_metric.clone()),
        ("answers", format!("at most {} tokens", info.max_new_tokens)),
        ("slices", info.slices.join(", ")),
    ]);
    text += "\nfiles, in <data>/<task>/ (also .zst, .gz):\n";
    let formats: Vec<_> =
        info.formats.iter().map(|f| vec![format!("  {}", f.pattern), f.description.clone()]).collect();
    text += &output::table(&formats);
    if !info.options.is_empty() {
        text += &format!("\noptions (--task-option {}.NAME=VALUE):\n", info.id);
        let options: Vec<_> = info.options.iter().map(|o| option_row(&o.name, &o.default, &o.help)).collect();
        text += &output::table(&options);
    }
    text
}

fn option_row(name: &str, default: &str, help: &str) -> Vec<String> {
    let default = if default.is_empty() { String::new() } else { format!(" [default: {default}]") };
    vec![format!("  {name}"), format!("{help}{default}")]
}

fn backend_text(spec: &BackendSpec) -> String {
    let mut text = format!("backend {}\n{}\n{}\n", spec.name, spec.description, spec.source);
    if !spec.options.is_empty() {
        text += "\noptions (--backend-option NAME=VALUE):\n";
        let options: Vec<_> = spec.options.iter().map(|o| option_row(o.name, o.default, o.help)).collect();
        text += &output::table(&options);
    }
    text
}

fn metric_text(info: &MetricInfo) -> String {
    let mut text = format!("metric {}@{}\n{}\n\n", info.id, info.version, info.description);
    let values: Vec<_> = info
        .values
        .iter()
        .map(|v| vec![format!("  {}", v.id), v.description.clone(), v.reference.clone()])
        .collect();
    text += &output::table(&values);
    text
}
