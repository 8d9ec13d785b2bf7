//! LongBench v1's scores as a metric plugin.
//!
//! - `longbench_score`: the score that LongBench reports for the sample's data set, `meta.dataset`: F1 of words, pltrdy's
//!   rouge-l (0 where the Python package fails), or one of the following;
//! - `classification_score`: for samples with the list `meta.all_classes`; `@compat` has a quirk of the script;
//! - `retrieval_score`: for right answers of the form `Paragraph 7`;
//! - `count_score`: for right answers that are numbers;
//! - `code_sim_score`: for the data sets of code; `@compat` is that of the package which the script imports.

mod code;
mod labels;

use std::sync::{Mutex, PoisonError};

use e2llm_plugin::overlap::f1;
use e2llm_plugin::text::squad_normalise;
use e2llm_plugin::{Error, Metric, MetricInfo, Result, Scored, Scores, Unit, ValueInfo, export_metric};
use e2llm_rouge::{Scorer, Selection, Variant};

pub use code::{code_line, code_similarity, code_similarity_compat};
pub use labels::{classification, classification_compat, numbers, paragraph};

const VALUES: [(&str, &str, &str); 7] = [
    ("longbench_score", "the score of the sample's data set", "LongBench eval.py"),
    ("classification_score", "share of one label among those named", "LongBench metrics.py, mended"),
    ("classification_score@compat", "the same, with the script's quirk", "LongBench metrics.py"),
    ("retrieval_score", "share of the right paragraph among the numbers named", "LongBench metrics.py"),
    ("count_score", "share of the right number among those named", "LongBench metrics.py"),
    ("code_sim_score", "similarity of the first line of code", "LongBench metrics.py with RapidFuzz"),
    (
        "code_sim_score@compat",
        "the same by difflib, in whole percent",
        "LongBench metrics.py with fuzzywuzzy 0.18 alone",
    ),
];

/// How a data set is scored.
#[derive(Clone, Copy)]
enum Official {
    F1,
    Rouge,
    Classification,
    Retrieval,
    Count,
    Code,
}

impl Official {
    fn of(dataset: &str) -> Result<Self> {
        Ok(match dataset {
            "narrativeqa" | "qasper" | "multifieldqa_en" | "hotpotqa" | "2wikimqa" | "musique"
            | "triviaqa" => Self::F1,
            "gov_report" | "qmsum" | "multi_news" | "samsum" => Self::Rouge,
            "trec" => Self::Classification,
            "passage_retrieval_en" => Self::Retrieval,
            "passage_count" => Self::Count,
            "lcc" | "repobench-p" => Self::Code,
            other => {
                return Err(Error::bad_request(format!(
                    "meta `dataset` is `{other}`, which has no score here"
                )));
            }
        })
    }
}

/// The metric family.
#[derive(Debug, Default)]
pub struct LongBenchScores {
    /// Idle scorers: as many as ever worked at once.
    scorers: Mutex<Vec<Scorer>>,
}

impl Metric for LongBenchScores {
    fn info(&self) -> MetricInfo {
        let value = |(id, description, reference): (&str, &str, &str)| ValueInfo {
            id: id.into(),
            description: description.into(),
            reference: reference.into(),
            unit: Unit::Proportion,
            higher_is_better: true,
            ..ValueInfo::default()
        };
        MetricInfo {
            id: "longbench".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "LongBench v1's own scores".into(),
            values: VALUES.map(value).into(),
            as_declared: true,
            gold: Scored {
                prediction: "Paragraph 7".into(),
                references: vec!["Paragraph 7".into()],
                meta: [("dataset".to_owned(), "passage_retrieval_en".into())].into_iter().collect(),
                ..Scored::default()
            },
        }
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        if sample.references.is_empty() {
            return Err(Error::bad_request("the sample has no references"));
        }
        let dataset = sample.meta.get("dataset").and_then(|d| d.as_str());
        let dataset = dataset.ok_or_else(|| Error::bad_request("meta has no text `dataset`"))?;
        let labels = labels(sample)?;
        let best = |score: &dyn Fn(&str) -> Option<f64>| {
            sample.references.iter().filter_map(|gold| score(gold)).reduce(f64::max)
        };
        let answer = sample.prediction.as_str();
        let compat = labels.as_ref().and_then(|l| best(&|gold| Some(classification_compat(answer, gold, l))));
        let retrieval = best(&|gold| paragraph(gold).map(|n| numbers(answer, n)));
        let is_number = |gold: &str| !gold.is_empty() && gold.bytes().all(|b| b.is_ascii_digit());
        let count = best(&|gold| is_number(gold).then(|| numbers(answer, gold)));
        let dataset_score = Official::of(dataset)?;
        let is_code = matches!(dataset_score, Official::Code);
        let code =
            |score: fn(&str, &str) -> f64| is_code.then(|| best(&|gold| Some(score(answer, gold)))).flatten();
        let (similar, similar_compat) = (code(code_similarity), code(code_similarity_compat));
        let missing = |what: &str| Error::bad_request(format!("a sample of `{dataset}` needs {what}"));
        let official = match dataset_score {
            Official::F1 => {
                let answer = squad_normalise(answer);
                best(&|gold| Some(f1(&answer, &squad_normalise(gold)))).unwrap_or(0.0)
            }
            Official::Rouge => self.rouge(sample),
            Official::Classification => compat.ok_or_else(|| missing("the list `meta.all_classes`"))?,
            Official::Retrieval => retrieval.ok_or_else(|| missing("an answer of the form `Paragraph 7`"))?,
            Official::Count => count.ok_or_else(|| missing("a number as its answer"))?,
            Official::Code => similar_compat.unwrap_or(0.0),
        };
        let clean = labels.as_ref().and_then(|l| best(&|gold| Some(classification(answer, gold, l))));
        let values = [Some(official), clean, compat, retrieval, count, similar, similar_compat];
        let found =
            VALUES.iter().zip(values).filter_map(|((id, ..), value)| Some(((*id).to_owned(), value?)));
        Ok(found.collect())
    }
}

impl LongBenchScores {
    fn rouge(&self, sample: &Scored) -> f64 {
        let mut scorer = self.idle().pop().unwrap_or_default();
        let selection = Selection::of(&[Variant::PltrdyCompat]);
        let scores = scorer.score(&sample.prediction, &sample.references, selection);
        self.idle().push(scorer);
        scores[Variant::PltrdyCompat as usize].f
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Scorer>> {
        // Nothing panics while the lock is held, and a list of scorers has no state to break.
        self.scorers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn labels(sample: &Scored) -> Result<Option<Vec<String>>> {
    let Some(list) = sample.meta.get("all_classes").filter(|l| !l.is_null()) else { return Ok(None) };
    let texts = list.as_array().and_then(|l| l.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    texts.map(Some).ok_or_else(|| Error::bad_request("meta `all_classes` is no list of texts"))
}

/// The ids of the values, as a host finds them without loading the plugin.
pub const IDS: &str = "longbench_score classification_score classification_score@compat retrieval_score count_score \
                       code_sim_score code_sim_score@compat";

export_metric! {
    LongBenchScores,
    id: "longbench",
    description: "LongBench v1's own scores, by data set",
    provides: IDS,
}
