//! Multiple choice as a metric plugin: accuracy by the benchmarks' own ways of reading a letter, and by a lenient one.
//!
//! How letters are read is in [`e2llm_plugin::choice`]. A sample says in its `meta` which reading is the official one:
//!
//! - `choice_protocol`: `longbench-v2` (its two patterns), `quality` (the strict reading) or `letter` (the prediction
//!   is the letter itself, chosen by likelihood);
//! - `options`: the texts of the options, in order.
//!
//! The first reference is the right letter, or the text of the right option.

use e2llm_plugin::choice::{Pick, gold_letter, lenient, longbench_v2, strict};
use e2llm_plugin::text::squad_normalise;
use e2llm_plugin::{
    Aggregation, Error, Metric, MetricInfo, Result, Scored, Scores, Unit, ValueInfo, export_metric,
};

/// What an unreadable answer gets in LongBench v2's compensated accuracy: the chance of guessing one of four.
const COMPENSATION: f64 = 0.25;

const OFFICIAL: &str = "accuracy@official";
const COMPENSATED: &str = "accuracy@compensated";
const LENIENT: &str = "accuracy@lenient";
const EM_SCROLLS: &str = "em@scrolls";
const N_NULL: &str = "n_null";

/// The metric family.
#[derive(Debug, Default)]
pub struct Choice;

impl Metric for Choice {
    fn info(&self) -> MetricInfo {
        let value = |id: &str, description: &str, reference: &str| ValueInfo {
            id: id.into(),
            description: description.into(),
            reference: reference.into(),
            unit: Unit::Proportion,
            higher_is_better: true,
            ..ValueInfo::default()
        };
        let official =
            value(OFFICIAL, "right letters, read as the benchmark does", "LongBench v2 result.py, QuALITY");
        let compensated =
            value(COMPENSATED, "the same, with 0.25 for an unreadable answer", "LongBench v2 result.py");
        let lenient = value(LENIENT, "right letters, read as a person would", "this project");
        let em = value(EM_SCROLLS, "the answer is the right option's text, normalised", "SCROLLS");
        let null = value(N_NULL, "answers in which the official reading finds no letter", "LongBench v2");
        let options: Vec<&str> = vec!["a red house", "the sea", "nobody knows", "both"];
        MetricInfo {
            id: "choice".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "accuracy of multiple-choice answers".into(),
            values: vec![
                official,
                ValueInfo { empty: COMPENSATION, ..compensated },
                lenient,
                em,
                ValueInfo {
                    unit: Unit::Count,
                    higher_is_better: false,
                    aggregation: Aggregation::Sum,
                    empty: 1.0,
                    ..null
                },
            ],
            as_declared: true,
            gold: Scored {
                prediction: "The sea.".into(),
                references: vec!["B".into()],
                meta: [
                    ("choice_protocol".to_owned(), "quality".into()),
                    ("options".to_owned(), options.into()),
                ]
                .into_iter()
                .collect(),
                ..Scored::default()
            },
        }
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        let options = options(sample)?;
        let reference =
            sample.references.first().ok_or_else(|| Error::bad_request("the sample has no references"))?;
        let gold = gold_letter(reference, &options).ok_or_else(|| {
            Error::bad_request(format!(
                "reference `{reference}` is neither a letter A to D nor one of the options"
            ))
        })?;
        let protocol = Protocol::of(sample)?;
        let right = |pick: Option<Pick>| is(pick.is_some_and(|pick| pick.letter == gold));
        let official = protocol.read(sample, &options);
        let lenient = match protocol {
            Protocol::Letter => official,
            Protocol::Quality | Protocol::LongBenchV2 => lenient(sample.raw(), &options),
        };
        let mut scores = Scores::from([
            (OFFICIAL.into(), right(official)),
            (COMPENSATED.into(), if official.is_none() { COMPENSATION } else { right(official) }),
            (LENIENT.into(), right(lenient)),
            (N_NULL.into(), is(official.is_none())),
        ]);
        // Without the options' texts there is nothing to compare the answer's text with.
        if let Some((_, text)) = ('A'..).zip(&options).find(|(letter, _)| *letter == gold) {
            scores.insert(EM_SCROLLS.into(), is(squad_normalise(sample.raw()) == squad_normalise(text)));
        }
        Ok(scores)
    }
}

/// How the benchmark reads a letter.
#[derive(Clone, Copy)]
enum Protocol {
    Quality,
    LongBenchV2,
    Letter,
}

impl Protocol {
    fn of(sample: &Scored) -> Result<Self> {
        let name = sample.meta.get("choice_protocol").and_then(|name| name.as_str());
        match name {
            Some("quality") => Ok(Self::Quality),
            Some("longbench-v2") => Ok(Self::LongBenchV2),
            Some("letter") => Ok(Self::Letter),
            Some(other) => Err(Error::bad_request(format!("meta `choice_protocol` is `{other}`"))),
            None => Err(Error::bad_request("meta has no text `choice_protocol`")),
        }
        .map_err(|error| error.with_help("`choice_protocol` is one of `quality`, `longbench-v2`, `letter`"))
    }

    fn read(self, sample: &Scored, options: &[&str]) -> Option<Pick> {
        match self {
            Self::Quality => strict(sample.raw(), options),
            Self::LongBenchV2 => longbench_v2(sample.raw()),
            Self::Letter => strict(&sample.prediction, options),
        }
    }
}

fn options(sample: &Scored) -> Result<Vec<&str>> {
    let wrong = || Error::bad_request("meta `options` is no list of texts");
    match sample.meta.get("options") {
        None => Ok(Vec::new()),
        Some(options) => {
            let options = options.as_array().ok_or_else(wrong)?;
            options.iter().map(|option| option.as_str().ok_or_else(wrong)).collect()
        }
    }
}

fn is(condition: bool) -> f64 {
    f64::from(u8::from(condition))
}

/// The ids of the values, as a host finds them without loading the plugin.
pub const IDS: &str = "accuracy@official accuracy@compensated accuracy@lenient em@scrolls n_null";

export_metric! {
    Choice,
    id: "choice",
    description: "Accuracy of multiple-choice answers: QuALITY, LongBench v2, lenient",
    provides: IDS,
}
