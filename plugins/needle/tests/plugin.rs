//! The plugin as a host sees it, and RULER's values.

use e2llm_metric_needle::{IDS, Needle, e2llm_plugin_entry};
use e2llm_plugin::text::ruler_clean;
use e2llm_plugin::{Metric, Scored, Scores};
use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;

fn score(prediction: &str, references: &[&str], needle: Option<&str>) -> Scores {
    let mut sample = Scored {
        prediction: prediction.into(),
        references: references.iter().map(|&text| text.into()).collect(),
        ..Scored::default()
    };
    if let Some(needle) = needle {
        sample.meta.insert("needle".into(), needle.into());
    }
    Needle::default().score(&sample).expect("a sample with references")
}

#[test]
fn exported_ids_are_those_of_info() {
    let ids: Vec<String> = Needle::default().info().values.into_iter().map(|value| value.id).collect();
    assert_eq!(ids, IDS.split(' ').collect::<Vec<_>>());
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn golden_ruler() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/metrics/golden_metrics.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: {} not found", path.display());
        return;
    };
    let golden: Value = serde_json::from_str(&text).unwrap();
    let cases = golden["ruler"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let references: Vec<&str> =
            case["refs"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        let got = score(case["pred"].as_str().unwrap(), &references, None);
        for (id, key) in [("ruler_all", "all"), ("needle_recall", "all"), ("ruler_part", "part")] {
            assert!((got[id] - case[key].as_f64().unwrap()).abs() <= 1e-9, "{id} of {case}");
        }
    }
}

#[test]
fn control_characters_become_line_ends_for_ruler_only() {
    assert_eq!(ruler_clean(" \u{1f}a\tb\u{0}\u{3000}"), "a\nb");
    let got = score("eat\ta sandwich", &["a\tsandwich", "EAT\ta"], None);
    assert_eq!((got["needle_recall"], got["ruler_all"]), (0.5, 0.0));
}

#[test]
fn ruler_reports_one_of_its_two_by_task() {
    let of = |kind: Option<Value>| {
        let mut sample =
            Scored { prediction: "7".into(), references: vec!["7".into(), "8".into()], ..Scored::default() };
        sample.meta.extend(kind.map(|k| ("ruler_match".to_owned(), k)));
        Needle::default().score(&sample).map(|scores| scores["ruler_score"])
    };
    assert_eq!([of(None), of(Some("all".into())), of(Some("part".into()))], [Ok(0.5), Ok(0.5), Ok(1.0)]);
    assert!(of(Some("some".into())).unwrap_err().message.contains("neither `all` nor `part`"));
    assert!(of(Some(1.into())).is_err());
}

#[test]
fn rouge_is_taken_of_the_needle_where_it_is_known() {
    let needle = "The best thing to do is eat a sandwich.";
    let with = score("Eating a sandwich", &["sandwich"], Some(needle));
    let without = score("Eating a sandwich", &["sandwich"], None);
    // 3 common stems of 3 and of 9 words; 1 of 3 and of 1.
    assert!((with["needle_rouge"] - 0.5).abs() < 1e-12);
    assert!((without["needle_rouge"] - 0.5).abs() < 1e-12);
    assert_eq!(score("eat sandwiches", &["sandwich"], Some("eats a sandwich"))["needle_rouge"], 0.8);
}

proptest! {
    #[test]
    fn values_lie_between_0_and_1_and_part_bounds_all(
        prediction in "[a-cA-C ]{0,30}", references in prop::collection::vec("[a-c]{1,3}", 1..5),
    ) {
        let references: Vec<&str> = references.iter().map(String::as_str).collect();
        let got = score(&prediction, &references, None);
        prop_assert!(got.values().all(|value| (0.0..=1.0).contains(value)));
        prop_assert!(got["ruler_part"] >= got["ruler_all"]);
        prop_assert_eq!(score(&references.concat(), &references, None)["needle_recall"], 1.0);
    }
}
