//! ROUGE as a metric plugin. The definitions are in the crate `e2llm-rouge`.

use std::sync::{Mutex, PoisonError};

use e2llm_plugin::{
    Aggregation, Error, Metric, MetricInfo, Result, Scored, Scores, Unit, ValueInfo, export_metric,
};
use e2llm_rouge::{Scorer, Selection, Variant};

/// The geometric mean of the corpus means of these is `rouge_gmean`, as the SCROLLS family reports it.
const GMEAN_OF: [Variant; 3] = [Variant::Rouge1, Variant::Rouge2, Variant::RougeL];

const GMEAN: &str = "rouge_gmean";

/// The metric family.
#[derive(Debug)]
pub struct Rouge {
    /// What is computed.
    selection: Selection,
    /// Idle scorers: as many as ever worked at once.
    scorers: Mutex<Vec<Scorer>>,
}

impl Default for Rouge {
    fn default() -> Self {
        Self { selection: Selection::all(), scorers: Mutex::default() }
    }
}

impl Metric for Rouge {
    fn info(&self) -> MetricInfo {
        let mut values: Vec<ValueInfo> = Variant::ALL.into_iter().map(value).collect();
        values.push(ValueInfo {
            id: GMEAN.into(),
            description: "geometric mean of the corpus means of rouge1, rouge2 and rougeL".into(),
            aggregation: Aggregation::GeometricMean(GMEAN_OF.map(|variant| variant.id().into()).into()),
            reference: "SCROLLS".into(),
            ..proportion()
        });
        let text = "The committee met twice.\nIt raised spending on schools.";
        MetricInfo {
            id: "rouge".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            description: "overlap of words with reference texts".into(),
            values,
            as_declared: true,
            gold: Scored { prediction: text.into(), references: vec![text.into()], ..Scored::default() },
        }
    }

    fn only(&mut self, values: &[String]) {
        let wanted = |variant: &Variant| {
            let named = |id: &str| values.iter().any(|value| value == id);
            named(variant.id()) || (GMEAN_OF.contains(variant) && named(GMEAN))
        };
        self.selection = Selection::of(&Variant::ALL.into_iter().filter(wanted).collect::<Vec<_>>());
    }

    fn score(&self, sample: &Scored) -> Result<Scores> {
        if sample.references.is_empty() {
            return Err(Error::bad_request("the sample has no references"));
        }
        let mut scorer = self.idle().pop().unwrap_or_default();
        let scores = scorer.score(&sample.prediction, &sample.references, self.selection);
        self.idle().push(scorer);
        Ok(Variant::ALL
            .into_iter()
            .filter(|variant| self.selection.has(*variant))
            .map(|variant| (variant.id().into(), scores[variant as usize].f))
            .collect())
    }
}

impl Rouge {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Scorer>> {
        // Nothing panics while the lock is held, and a list of scorers has no state to break.
        self.scorers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn proportion() -> ValueInfo {
    ValueInfo { unit: Unit::Proportion, higher_is_better: true, ..ValueInfo::default() }
}

fn value(variant: Variant) -> ValueInfo {
    use Variant::{Pltrdy, PltrdyCompat, RougeLsumSentences};
    let (description, reference) = match variant {
        Variant::Rouge1 => ("F of common words", "rouge_score 0.1.2"),
        Variant::Rouge2 => ("F of common word pairs", "rouge_score 0.1.2"),
        Variant::RougeL => ("F of the longest common subsequence", "rouge_score 0.1.2"),
        Variant::RougeLsum => ("F of the union of subsequences over lines", "rouge_score 0.1.2"),
        Variant::Rouge1Stem => ("rouge1 of stems", "rouge_score 0.1.2, use_stemmer"),
        Variant::Rouge2Stem => ("rouge2 of stems", "rouge_score 0.1.2, use_stemmer"),
        Variant::RougeLStem => ("rougeL of stems", "rouge_score 0.1.2, use_stemmer"),
        Variant::RougeLsumStem => ("rougeLsum of stems", "rouge_score 0.1.2, use_stemmer"),
        RougeLsumSentences => {
            ("rougeLsum over sentences by UAX 29", "rouge_score 0.1.2, sentences joined by newlines")
        }
        Pltrdy => ("LongBench's rouge-l: unique words, sentences at full stops", "rouge 1.0.1"),
        PltrdyCompat => ("the same, 0 where Python's recursion limit is passed", "rouge 1.0.1, LongBench"),
    };
    ValueInfo {
        id: variant.id().into(),
        description: description.into(),
        reference: reference.into(),
        ..proportion()
    }
}

/// The ids of the values, as a host finds them without loading the plugin.
pub const IDS: &str = "rouge1 rouge2 rougeL rougeLsum rouge1+stem rouge2+stem rougeL+stem rougeLsum+stem \
    rougeLsum@sentences rouge_l_pltrdy rouge_l_pltrdy@compat rouge_gmean";

export_metric! {
    Rouge,
    id: "rouge",
    description: "ROUGE of google's rouge_score and of pltrdy's rouge",
    provides: IDS,
}
