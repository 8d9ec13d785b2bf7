//! Generates the samples of a grid, one by one.

use crate::Niah;
use crate::fit::{Fitted, fit, usable, wanted};
use crate::needle::Needle;
use crate::settings::Cell;
use e2llm_plugin::haystack::{Haystack, Measure, Rng, Unit, asked_files, text_files};
use e2llm_plugin::record::context_group;
use e2llm_plugin::{Error, ErrorCode, Example, Examples, LogLevel, Result, Source};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Opens the grid of a source.
///
/// # Errors
/// A haystack that is missing or unreadable.
pub(crate) fn open(task: &Niah, source: &Source) -> Result<Examples> {
    let settings = &task.settings;
    let sample = source.folder.is_none() && settings.haystack.is_none();
    // the embedded sample is the same text for every backend
    let unit = settings.unit.or((sample && settings.lengths.is_none()).then_some(Unit::Words));
    let measure = Measure::new(unit, task.counter.clone())?;
    let cells = settings.cells(sample)?;
    let longest = cells.iter().map(|c| c.length).max().unwrap_or(0).saturating_sub(settings.buffer);
    let files = files(task, source)?;
    let shared = if files.is_empty() {
        None
    } else {
        Some(Arc::new(Haystack::read(&files, wanted(longest), &measure, source, task.host)?))
    };
    let (task, seed) = (task.clone(), source.seed);
    Ok(Box::new(cells.into_iter().map(move |cell| {
        if task.host.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "stopped while texts were generated"));
        }
        generate(&task, shared.as_deref(), cell, seed, &measure)
    })))
}

/// Files of the haystack; none for the built-in prose.
fn files(task: &Niah, source: &Source) -> Result<Vec<PathBuf>> {
    let folder = match (&task.settings.haystack, &source.folder) {
        (Some(asked), _) => return asked_files(asked),
        (None, Some(folder)) => folder,
        (None, None) => return Ok(Vec::new()),
    };
    if !folder.is_dir() {
        return Err(Error::io(format!("no data folder {}", folder.display())));
    }
    let files = text_files(folder)?;
    if files.is_empty() {
        let note = format!("{} has no .txt file: the haystack is built-in prose", folder.display());
        task.host.log(LogLevel::Info, &note);
    }
    Ok(files)
}

fn generate(
    task: &Niah,
    shared: Option<&Haystack>,
    cell: Cell,
    seed: u64,
    measure: &Measure,
) -> Result<Example> {
    let settings = &task.settings;
    let budget = cell.length - settings.buffer;
    let mut rng = Rng::of(&cell.seeds(seed));
    let own;
    let hay = match shared {
        Some(hay) => hay,
        None => {
            own = Haystack::told(rng.bits(), wanted(budget), measure)?;
            &own
        }
    };
    let visible = hay.slice(0, usable(hay, budget));
    let needles = settings.kind.draw(settings.needles, visible, &mut rng)?;
    let sentences: Vec<_> = needles.iter().map(|n| n.sentence.as_str()).collect();
    let fitted = fit(hay, &sentences, budget, cell.depth, measure)?;
    let unit = measure.unit().name();
    Ok(Example {
        id: format!("{unit}-{}-depth-{}-{}", cell.length, cell.depth, cell.repeat),
        instruction: settings.kind.question(&needles),
        references: needles.iter().map(|n| n.value.clone()).collect(),
        group: context_group(&fitted.context),
        meta: meta(&cell, &needles, &fitted, unit, shared.is_some()),
        context: fitted.context,
    })
}

fn meta(cell: &Cell, needles: &[Needle], fitted: &Fitted, unit: &str, files: bool) -> Map<String, Value> {
    let join = |of: fn(&Needle) -> &str, with: &str| needles.iter().map(of).collect::<Vec<_>>().join(with);
    let whole = cell.depth.fract() == 0.0;
    let fields = [
        ("length", json!(cell.length)),
        ("depth", if whole { json!(cell.depth as u64) } else { json!(cell.depth) }),
        ("length_unit", json!(unit)),
        ("repeat", json!(cell.repeat)),
        ("context_length", json!(fitted.length)),
        ("haystack", json!(if files { "files" } else { "prose" })),
        ("needle", json!(join(|n| &n.sentence, " "))),
        ("key", json!(join(|n| &n.key, ", "))),
        ("position", json!(fitted.positions[0])),
        ("positions", json!(fitted.positions)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
