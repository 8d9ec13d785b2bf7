//! The plugin as a host sees it, and the values of the official scripts.

use e2llm_metric_qa::{IDS, Qa, e2llm_plugin_entry};
use e2llm_plugin::overlap::f1;
use e2llm_plugin::text::{squad_normalise, trivia_normalise};
use e2llm_plugin::{Metric, Scored, Scores};
use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;

fn score(prediction: &str, references: &[&str]) -> Scores {
    let sample = Scored {
        prediction: prediction.into(),
        references: references.iter().map(|&text| text.into()).collect(),
        ..Scored::default()
    };
    Qa.score(&sample).expect("a sample with references")
}

#[test]
fn exported_ids_are_those_of_info() {
    let ids: Vec<String> = Qa.info().values.into_iter().map(|value| value.id).collect();
    assert_eq!(ids, IDS.split(' ').collect::<Vec<_>>());
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn golden_norms_f1_and_exact_match() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/metrics/golden_metrics.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: {} not found", path.display());
        return;
    };
    let golden: Value = serde_json::from_str(&text).unwrap();
    let pairs = golden["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 22);
    for pair in pairs {
        let (prediction, reference) =
            (pair["prediction"].as_str().unwrap(), pair["reference"].as_str().unwrap());
        for (at, text) in [prediction, reference].into_iter().enumerate() {
            assert_eq!(squad_normalise(text), pair["squad_norm"][at].as_str().unwrap());
            assert_eq!(trivia_normalise(text), pair["trivia_norm"][at].as_str().unwrap());
        }
        let got = score(prediction, &[reference]);
        for (id, key) in [("f1_squad", "qa_f1_longbench"), ("f1_triviaqa", "qa_f1_triviaqa")] {
            let expected = pair[key].as_f64().unwrap();
            assert!((got[id] - expected).abs() <= 1e-9, "{id}: {} != {expected} for {prediction:?}", got[id]);
        }
        for (id, key) in [("em_squad", "em_squad"), ("em_triviaqa", "em_trivia")] {
            assert_eq!(got[id] == 1.0, pair[key].as_bool().unwrap(), "{id} for {prediction:?}");
        }
    }
}

#[test]
fn the_best_reference_counts() {
    let got = score("rock n roll", &["jazz", "rock-n-roll", "rock"]);
    assert_eq!(got["f1_squad"], 0.5);
    assert_eq!(got["em_squad"], 0.0);
    assert_eq!(got["f1_triviaqa"], 1.0);
    assert_eq!(got["em_triviaqa"], 1.0);
}

#[test]
fn two_answers_of_articles_only_match_but_have_no_f1() {
    let got = score("the", &["A!"]);
    assert_eq!((got["em_squad"], got["f1_squad"]), (1.0, 0.0));
}

proptest! {
    #[test]
    fn f1_is_symmetric_and_between_0_and_1(a in "([a-c]{1,2} ){0,12}", b in "([a-c]{1,2} ){0,12}") {
        let value = f1(&a, &b);
        prop_assert_eq!(value, f1(&b, &a));
        prop_assert!((0.0..=1.0).contains(&value));
        prop_assert_eq!(f1(&a, &a), if a.is_empty() { 0.0 } else { 1.0 });
    }

    #[test]
    fn normalising_leaves_single_spaces(text in any::<String>()) {
        for normal in [squad_normalise(&text), trivia_normalise(&text)] {
            prop_assert!(!normal.contains("  ") && normal.trim() == normal, "{normal:?}");
        }
        prop_assert_eq!(score(&text, &[&text])["em_triviaqa"], 1.0);
    }
}
