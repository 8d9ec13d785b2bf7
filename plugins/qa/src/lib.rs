//! Short answers as a metric plugin: F1 and exact match, as SQuAD (and LongBench) and as TriviaQA define them.
//!
//! The two differ only in how an answer is normalised first; see [`e2llm_plugin::text`].

use e2llm_plugin::overlap::f1;
use e2llm_plugin::text::{squad_normalise, trivia_normalise};
use e2llm_plugin::{Error, Metric, MetricInfo, Result, Scored, Scores, Unit, ValueInfo, export_metric};

const VALUES: [(&str, &str, &str); 4] = [
    ("f1_squad", "F1 of words; punctuation deleted", "SQuAD 1.1, LongBench qa_f1_score"),
    ("em_squad", "exact match; punctuation deleted", "SQuAD 1.1"),
    ("f1_triviaqa", "F1 of words; punctuation parts words", "TriviaQA evaluation script"),
    ("em_triviaqa", "exact match; punctuation parts words", "TriviaQA evaluation script"),
];

/// The metric family.
#[derive(Debug, Default)]
pub struct Qa;

impl Metric for Qa {
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
            id: "qa".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "short answers against one or more right ones; the best counts".into(),
            values: VALUES.map(value).into(),
            as_declared: true,
            gold: Scored {
                prediction: "the Rock-n-Roll era".into(),
                references: vec!["1950s".into(), "rock-n-roll era.".into()],
                ..Scored::default()
            },
        }
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        if sample.references.is_empty() {
            return Err(Error::bad_request("the sample has no references"));
        }
        let squad = best(squad_normalise, sample);
        let trivia = best(trivia_normalise, sample);
        let values = [squad.0, squad.1, trivia.0, trivia.1];
        Ok(VALUES.iter().zip(values).map(|((id, ..), value)| ((*id).into(), value)).collect())
    }
}

/// The greatest F1 and exact match over the references.
fn best(normalise: fn(&str) -> String, sample: &Scored) -> (f64, f64) {
    let prediction = normalise(&sample.prediction);
    sample.references.iter().fold((0.0, 0.0), |(best_f1, best_em): (f64, f64), reference| {
        let gold = normalise(reference);
        (best_f1.max(f1(&prediction, &gold)), best_em.max(f64::from(u8::from(prediction == gold))))
    })
}

/// The ids of the values, as a host finds them without loading the plugin.
pub const IDS: &str = "f1_squad em_squad f1_triviaqa em_triviaqa";

export_metric! {
    Qa,
    id: "qa",
    description: "F1 and exact match of short answers by SQuAD, LongBench and TriviaQA",
    provides: IDS,
}
