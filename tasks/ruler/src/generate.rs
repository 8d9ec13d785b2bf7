//! The samples, one by one: as much hay as fits, counted with the host's tokenizer.

use crate::Ruler;
use crate::aggregates::{CHAIN_LEAST, FREQUENT_LEAST, chain, common, frequent};
use crate::documents::Documents;
use crate::fit::greatest;
use crate::made::Made;
use crate::needles::Needles;
use crate::subtasks::{Hay, SAMPLE, SUBTASKS, Subtask, What, subtask};
use e2llm_plugin::haystack::{Haystack, Measure, Rng, Unit, asked_files};
use e2llm_plugin::record::context_group;
use e2llm_plugin::{Error, ErrorCode, Example, Examples, LogLevel, Result, Source};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Length of the embedded sample, in words: the same text for every backend.
const SAMPLE_LENGTH: u64 = 1500;

/// What all samples of a source are made from.
struct Store {
    essay: Haystack,
    documents: BTreeMap<&'static str, Documents>,
    measure: Measure,
    seed: u64,
    reserve: u64,
}

/// One sample to make.
#[derive(Debug, Clone, Copy)]
struct Cell {
    subtask: Subtask,
    length: u64,
    index: usize,
}

/// Opens the samples of a source: by task, then by length.
///
/// # Errors
/// Files that are missing or unreadable.
pub(crate) fn open(ruler: &Ruler, source: &Source) -> Result<Examples> {
    let settings = &ruler.settings;
    let sample = source.folder.is_none() && !settings.asked;
    let unit = settings.unit.or(sample.then_some(Unit::Words));
    let measure = Measure::new(unit, ruler.counter.clone())?;
    let mut documents = BTreeMap::new();
    let mut subtasks = match &settings.tasks {
        Some(asked) => asked.clone(),
        None if sample => SAMPLE.into_iter().filter_map(subtask).collect(),
        None => SUBTASKS.to_vec(),
    };
    for task in subtasks.clone() {
        let What::Documents(files) = task.what else { continue };
        match Documents::read(files, task.name, source) {
            Ok(read) => drop(documents.insert(task.name, read)),
            Err(e) if settings.tasks.is_none() && source.locate(&files.names()).is_err() => {
                ruler.host.log(LogLevel::Warn, &format!("{} is left out: {e}", task.name));
                subtasks.retain(|s| s.name != task.name);
            }
            Err(e) => return Err(e),
        }
    }
    let (lengths, samples) =
        if sample { (vec![SAMPLE_LENGTH], 1) } else { (settings.lengths.clone(), settings.samples) };
    let needs_essay = |s: &Subtask| matches!(s.what, What::Needles { hay: Hay::Essay, .. });
    let longest =
        if subtasks.iter().any(needs_essay) { lengths.iter().copied().max().unwrap_or(0) } else { 0 };
    let store = Arc::new(Store {
        essay: essay(ruler, source, longest, &measure)?,
        documents,
        measure,
        seed: source.seed,
        reserve: if sample { 0 } else { settings.reserve },
    });
    let mut cells = Vec::new();
    for subtask in subtasks {
        for &length in &lengths {
            let there = store.documents.get(subtask.name).map_or(samples, Documents::questions);
            cells.extend((0..samples.min(there)).map(|index| Cell { subtask, length, index }));
        }
    }
    let host = ruler.host;
    Ok(Box::new(cells.into_iter().map(move |cell| {
        if host.is_cancelled() {
            return Err(Error::new(ErrorCode::Cancelled, "stopped while texts were generated"));
        }
        store.example(cell)
    })))
}

/// Connected text of at least `length`: the user's files, or built-in prose.
fn essay(ruler: &Ruler, source: &Source, length: u64, measure: &Measure) -> Result<Haystack> {
    if length == 0 {
        return Ok(Haystack::default());
    }
    // the lengths of sentences do not quite add up for tokens: some more must be at hand
    let length = length + length / 7 + 64;
    match &ruler.settings.haystack {
        None => Haystack::told(source.seed, length, measure),
        Some(folder) => Haystack::read(&asked_files(folder)?, length, measure, source, ruler.host),
    }
}

impl Store {
    fn example(&self, cell: Cell) -> Result<Example> {
        let Cell { subtask, length, index } = cell;
        let (least, most) = self.range(cell);
        let size = |made: &Made| {
            let prompt = made.prompt(subtask.name, subtask.answer_tokens);
            let whole = self.measure.whole(&(prompt.render() + &prompt.answer_prefix))?;
            Ok::<_, Error>(whole + subtask.answer_tokens + self.reserve)
        };
        let n = greatest(least, most, length, |n| size(&self.make(cell, n)))?.ok_or_else(|| {
            let unit = self.measure.unit().name();
            Error::bad_request(format!(
                "{}: a length of {length} {unit} is too short for one sample",
                subtask.name
            ))
            .with_help("ask for a greater length")
        })?;
        let made = self.make(cell, n);
        if let Some(lost) = made.evidence.iter().find(|e| !made.context.contains(e.as_str())) {
            return Err(Error::plugin(format!("{}: the text lacks `{lost}`", subtask.name)));
        }
        let unit = self.measure.unit().name();
        let part = matches!(subtask.what, What::Documents(_));
        let meta: [(&str, Value); 7] = [
            ("task", subtask.name.into()),
            ("length", length.into()),
            ("length_unit", unit.into()),
            ("prompt_length", size(&made)?.into()),
            ("answer_prefix", made.answer_prefix.into()),
            ("ruler_match", if part { "part" } else { "all" }.into()),
            ("hay", n.into()),
        ];
        Ok(Example {
            id: format!("{}-{length}-{unit}-{index}", subtask.name),
            instruction: made.instruction,
            references: made.references,
            group: context_group(&made.context),
            context: made.context,
            meta: Map::from_iter(meta.map(|(k, v)| (k.to_owned(), v))),
        })
    }

    /// The least and the greatest amount of hay. Every piece of it is at least one unit long.
    fn range(&self, cell: Cell) -> (usize, usize) {
        let most = usize::try_from(cell.length).unwrap_or(usize::MAX);
        match cell.subtask.what {
            What::Needles { hay: Hay::Essay, .. } => (1, self.essay.within(u64::MAX)),
            What::Needles { keys, values, .. } => (keys * values, most),
            What::Chain => (CHAIN_LEAST, most),
            What::Common => (0, most),
            What::Frequent => (FREQUENT_LEAST, most),
            What::Documents(_) => {
                self.documents.get(cell.subtask.name).map_or((0, 0), |d| d.range(cell.index))
            }
        }
    }

    /// The sample with `n` pieces of hay: everything else is drawn alike for every `n`.
    fn make(&self, cell: Cell, n: usize) -> Made {
        let Cell { subtask, length, index } = cell;
        let name = subtask.name.bytes().fold(0u64, |h, b| h.wrapping_mul(257).wrapping_add(u64::from(b)));
        let rng = Rng::of(&[self.seed, name, length, index as u64]);
        match subtask.what {
            What::Needles { hay, key, value, keys, values, queries } => {
                Needles { hay, key, value, keys, values, queries }.make(n, &self.essay, rng)
            }
            What::Chain => chain(n, rng),
            What::Common => common(n, length, rng),
            What::Frequent => frequent(n, length, rng),
            What::Documents(_) => match self.documents.get(subtask.name) {
                Some(documents) => documents.make(index, n, rng),
                None => Made::default(),
            },
        }
    }
}
