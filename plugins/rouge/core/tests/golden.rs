//! Values that the Python packages gave for 22 pairs and 147 words.

use std::path::Path;

use e2llm_rouge::{Score, Scorer, Selection, Variant, stem};
use serde_json::Value;

const TOLERANCE: f64 = 1e-9;

fn golden() -> Option<Value> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/golden/metrics/golden_metrics.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: {} not found", path.display());
        return None;
    };
    Some(serde_json::from_str(&text).expect("golden values are JSON"))
}

fn pairs(golden: &Value) -> Vec<(&str, &str, &Value)> {
    let text = |pair: &'_ Value, key: &str| -> String { pair[key].as_str().expect("text").to_owned() };
    let pairs = golden["pairs"].as_array().expect("pairs");
    assert_eq!(pairs.len(), 22);
    pairs
        .iter()
        .map(|pair| (text(pair, "prediction").leak() as &str, text(pair, "reference").leak() as &str, pair))
        .collect()
}

fn near(got: f64, expected: f64) -> bool {
    (got - expected).abs() <= TOLERANCE
}

#[test]
fn golden_rouge_score_with_and_without_stemmer() {
    let Some(golden) = golden() else { return };
    let mut scorer = Scorer::default();
    for (prediction, reference, pair) in pairs(&golden) {
        let got = scorer.score(prediction, &[reference], Selection::all());
        for (key, first) in [("rouge_score", Variant::Rouge1), ("rouge_score_stem", Variant::Rouge1Stem)] {
            for (offset, name) in ["rouge1", "rouge2", "rougeL", "rougeLsum"].into_iter().enumerate() {
                let Score { precision, recall, f } = got[first as usize + offset];
                for (got, expected) in
                    [precision, recall, f].into_iter().zip(pair[key][name].as_array().unwrap())
                {
                    let expected = expected.as_f64().unwrap();
                    assert!(near(got, expected), "{key} {name}: {got} != {expected} for {prediction:?}");
                }
            }
        }
    }
}

#[test]
fn golden_pltrdy() {
    let Some(golden) = golden() else { return };
    let mut scorer = Scorer::default();
    for (prediction, reference, pair) in pairs(&golden) {
        let got =
            scorer.score(prediction, &[reference], Selection::of(&[Variant::Pltrdy, Variant::PltrdyCompat]));
        // Where the package raises, LongBench writes 0.
        let expected = pair["pltrdy_rouge_l_f"].as_f64().unwrap_or(0.0);
        for variant in [Variant::Pltrdy, Variant::PltrdyCompat] {
            assert!(near(got[variant as usize].f, expected), "{got:?} != {expected} for {prediction:?}");
        }
    }
}

#[test]
fn golden_stems() {
    let Some(golden) = golden() else { return };
    let stems = golden["stems"].as_object().unwrap();
    assert_eq!(stems.len(), 147);
    for (word, expected) in stems {
        let mut got = word.clone().into_bytes();
        stem(&mut got);
        assert_eq!(String::from_utf8(got).unwrap(), expected.as_str().unwrap(), "stem of {word}");
    }
}
