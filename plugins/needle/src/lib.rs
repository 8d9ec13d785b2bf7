//! Facts hidden in a long text as a metric plugin: which of them the answer contains.
//!
//! - `needle_recall`: share of the references that the answer contains, whatever their case;
//! - `ruler_all`, `ruler_part`: RULER's `string_match_all` (the same, after its clean-up) and `string_match_part` (one is
//!   enough);
//! - `ruler_score`: the one of these two that RULER reports for the sample's task: `meta.ruler_match` is `all`, the default,
//!   or `part`;
//! - `needle_rouge`: ROUGE-1 with stemmer of the answer against the needle's own words, `meta.needle`, or against the
//!   references where that is missing.

use std::sync::{Mutex, PoisonError};

use e2llm_plugin::text::ruler_clean;
use e2llm_plugin::{Error, Metric, MetricInfo, Result, Scored, Scores, Unit, ValueInfo, export_metric};
use e2llm_rouge::{Scorer, Selection, Variant};

/// The metric family.
#[derive(Debug, Default)]
pub struct Needle {
    /// Idle scorers: as many as ever worked at once.
    scorers: Mutex<Vec<Scorer>>,
}

impl Metric for Needle {
    fn info(&self) -> MetricInfo {
        let value = |id: &str, description: &str, reference: &str| ValueInfo {
            id: id.into(),
            description: description.into(),
            reference: reference.into(),
            unit: Unit::Proportion,
            higher_is_better: true,
            ..ValueInfo::default()
        };
        MetricInfo {
            id: "needle".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "which of the hidden facts the answer contains".into(),
            values: vec![
                value(
                    "needle_recall",
                    "share of the references contained in the answer",
                    "RULER string_match_all",
                ),
                value("ruler_all", "the same after RULER's clean-up", "RULER string_match_all"),
                value("ruler_part", "whether any reference is contained", "RULER string_match_part"),
                value("ruler_score", "the one of the two that RULER reports for the task", "RULER"),
                value("needle_rouge", "rouge1+stem of the answer against the needle", "rouge_score 0.1.2"),
            ],
            as_declared: true,
            gold: Scored {
                prediction: "The special number is 8090293".into(),
                references: vec!["the special number is 8090293".into()],
                ..Scored::default()
            },
        }
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        if sample.references.is_empty() {
            return Err(Error::bad_request("the sample has no references"));
        }
        let recall = contained(&sample.prediction, &sample.references);
        let cleaned = contained(&ruler_clean(&sample.prediction), &sample.references);
        let share = |found: usize| found as f64 / sample.references.len() as f64;
        let part = f64::from(u8::from(cleaned > 0));
        let score = match sample.meta.get("ruler_match").map(|m| m.as_str()) {
            None | Some(Some("all")) => share(cleaned),
            Some(Some("part")) => part,
            Some(_) => return Err(Error::bad_request("meta `ruler_match` is neither `all` nor `part`")),
        };
        Ok(Scores::from([
            ("needle_recall".into(), share(recall)),
            ("ruler_all".into(), share(cleaned)),
            ("ruler_part".into(), part),
            ("ruler_score".into(), score),
            ("needle_rouge".into(), self.rouge(sample)?),
        ]))
    }
}

impl Needle {
    fn rouge(&self, sample: &Scored) -> Result<f64> {
        let needle = match sample.meta.get("needle") {
            None => None,
            Some(needle) => {
                Some(needle.as_str().ok_or_else(|| Error::bad_request("meta `needle` is no text"))?)
            }
        };
        let needle = needle.map(|text| [text]);
        let selection = Selection::of(&[Variant::Rouge1Stem]);
        let mut scorer = self.idle().pop().unwrap_or_default();
        let scores = match &needle {
            Some(needle) => scorer.score(&sample.prediction, needle, selection),
            None => scorer.score(&sample.prediction, &sample.references, selection),
        };
        self.idle().push(scorer);
        Ok(scores[Variant::Rouge1Stem as usize].f)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Scorer>> {
        // Nothing panics while the lock is held, and a list of scorers has no state to break.
        self.scorers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of `references` the text contains, in any case.
fn contained(text: &str, references: &[String]) -> usize {
    let text = text.to_lowercase();
    references.iter().filter(|reference| text.contains(&reference.to_lowercase())).count()
}

/// The ids of the values, as a host finds them without loading the plugin.
pub const IDS: &str = "needle_recall ruler_all ruler_part ruler_score needle_rouge";

export_metric! {
    Needle,
    id: "needle",
    description: "Recall of hidden facts: NIAH, RULER's string match",
    provides: IDS,
}
