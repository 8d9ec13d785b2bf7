//! `data fetch` and `data verify`.

use super::output;
use crate::datasets::{DataCatalogue, DataEntry, DataFetcher, DataSettings, FileReport, Patience, State};
use crate::failure::{Exit, Failure, Result};
use crate::models::FetchSettings;
use std::io::IsTerminal as _;
use std::path::Path;

/// A fetcher by the environment's cache.
///
/// # Errors
/// A catalogue with a mistake; no cache folder.
pub(super) fn fetcher(catalogue: Option<&Path>, offline: bool, quiet: bool) -> Result<DataFetcher> {
    let catalogue = DataCatalogue::load(catalogue)?;
    let settings = DataSettings {
        cache: FetchSettings::from_env()?.cache,
        offline,
        quiet,
        hub_endpoint: None,
        patience: Patience::default(),
        cancel: super::run::cancel_on_ctrl_c()?,
    };
    Ok(DataFetcher::new(catalogue, settings))
}

/// Fetches and lists a task's files.
///
/// # Errors
/// As [`DataFetcher::fetch`].
pub(super) fn fetch(
    fetcher: &DataFetcher,
    task: &str,
    root: &Path,
    accepted: bool,
    json: bool,
) -> Result<Exit> {
    let (folder, reports) = fetcher.fetch(task, root, &mut |entry| ask(task, entry, accepted))?;
    show(&reports, json)?;
    output::note(&format!("data of task {task} is in {}", folder.display()));
    Ok(Exit::Done)
}

/// Lists a task's files and how they are; fails where one is not as it should be.
///
/// # Errors
/// As [`DataFetcher::verify`].
pub(super) fn verify(fetcher: &DataFetcher, task: &str, root: &Path, json: bool) -> Result<Exit> {
    let reports = fetcher.verify(task, root)?;
    show(&reports, json)?;
    let bad = reports.iter().filter(|r| !r.state.is_good()).count();
    if bad > 0 {
        output::note(&format!("{bad} of {} files are not as they should be", reports.len()));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}

/// Files of one archive are as many as it has; more than this are only counted.
const MOST_LISTED: usize = 40;

fn show(reports: &[FileReport], json: bool) -> Result<()> {
    if json {
        return reports.iter().try_for_each(output::print_json);
    }
    let state = |r: &FileReport| match r.state {
        State::Verified => "verified",
        State::Unchanged => "unchanged, no checksum known",
        State::Changed => "CHANGED",
        State::Missing => "MISSING",
        State::Unknown => "not fetched, no checksum known",
    };
    let many = reports.len() > MOST_LISTED;
    let listed = reports.iter().filter(|r| !many || !r.state.is_good());
    let rows: Vec<_> = listed
        .map(|r| {
            vec![r.file.clone(), state(r).to_owned(), r.sha256.clone().unwrap_or_default(), r.detail.clone()]
        })
        .collect();
    output::print(&output::table(&rows))?;
    if many {
        let good = reports.iter().filter(|r| r.state.is_good()).count();
        output::print(&format!("{good} files are as they were fetched\n"))?;
    }
    Ok(())
}

/// Shows the licence; on a terminal asks, elsewhere goes on only where it was accepted by flag.
fn ask(task: &str, entry: &DataEntry, accepted: bool) -> Result<()> {
    let mut text = format!(
        "{task}: {}\nlicence: {}\n         {}\ncite:    {}",
        entry.description, entry.licence, entry.licence_url, entry.citation
    );
    if !entry.note.is_empty() {
        text += &format!("\nnote:    {}", entry.note);
    }
    output::note(&text);
    if accepted {
        return Ok(());
    }
    let refused = || Failure::usage(format!("the licence of task `{task}`'s data was not accepted"));
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(refused().help("read it, then run again with --accept-licence"));
    }
    output::note("download under these terms? [y/N]");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| Failure::failed(format!("cannot read the answer: {e}")))?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(refused()),
    }
}
