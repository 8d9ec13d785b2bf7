//! The plugin as a host sees it, and LongBench v2's extraction.

use e2llm_metric_choice::{Choice, IDS, e2llm_plugin_entry};
use e2llm_plugin::choice::longbench_v2;
use e2llm_plugin::{Metric, Result, Row, Scored, Scores};
use serde_json::{Value, json};
use std::path::Path;

fn score(protocol: &str, response: &str, gold: &str) -> Result<Scores> {
    let meta =
        json!({ "choice_protocol": protocol, "options": ["a red house", "the sea", "nobody", "both"] });
    Choice.score(&Scored {
        prediction: response.into(),
        references: vec![gold.into()],
        meta: meta.as_object().expect("an object").clone(),
        ..Scored::default()
    })
}

#[test]
fn exported_ids_are_those_of_info() {
    let ids: Vec<String> = Choice.info().values.into_iter().map(|value| value.id).collect();
    assert_eq!(ids, IDS.split(' ').collect::<Vec<_>>());
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn golden_longbench_v2_extraction() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/metrics/golden_metrics.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: {} not found", path.display());
        return;
    };
    let golden: Value = serde_json::from_str(&text).unwrap();
    let cases = golden["longbench_v2_extract"].as_array().unwrap();
    assert_eq!(cases.len(), 11);
    for case in cases {
        let (response, expected) = (case[0].as_str().unwrap(), case[1].as_str());
        let got = longbench_v2(response).map(|pick| pick.letter.to_string());
        assert_eq!(got.as_deref(), expected, "{response:?}");
        let scores = score("longbench-v2", response, expected.unwrap_or("A")).unwrap();
        let (official, null) = if expected.is_some() { (1.0, 0.0) } else { (0.0, 1.0) };
        assert_eq!((scores["accuracy@official"], scores["n_null"]), (official, null), "{response:?}");
        assert_eq!(scores["accuracy@compensated"], official.max(0.25), "{response:?}");
    }
}

#[test]
fn protocols_read_differently() {
    let value = |protocol: &str, response: &str, id: &str| score(protocol, response, "B").unwrap()[id];
    for (response, quality, longbench, lenient) in [
        ("(B)", 1.0, 0.0, 1.0),
        ("The correct answer is B", 0.0, 1.0, 1.0),
        ("the sea", 1.0, 0.0, 1.0),
        ("answer: b", 0.0, 0.0, 1.0),
        ("(A)", 0.0, 0.0, 0.0),
    ] {
        assert_eq!(value("quality", response, "accuracy@official"), quality, "{response}");
        assert_eq!(value("longbench-v2", response, "accuracy@official"), longbench, "{response}");
        assert_eq!(value("quality", response, "accuracy@lenient"), lenient, "{response}");
    }
    assert_eq!(value("quality", "The Sea!", "em@scrolls"), 1.0);
    assert_eq!(value("quality", "(B)", "em@scrolls"), 0.0);
    assert_eq!(value("letter", "B", "accuracy@official"), 1.0);
}

#[test]
fn a_wrong_letter_is_not_compensated_and_nulls_are_counted() {
    let responses = ["The correct answer is (A)", "no idea", "", "The correct answer is (B)"];
    let rows: Vec<Row> = responses
        .iter()
        .map(|response| Row { scores: score("longbench-v2", response, "B").unwrap() })
        .collect();
    let got = Choice.aggregate(&mut rows.into_iter()).unwrap();
    assert_eq!(got["accuracy@official"], 0.25);
    assert_eq!(got["accuracy@compensated"], (0.0 + 0.25 + 0.25 + 1.0) / 4.0);
    assert_eq!(got["n_null"], 2.0);
}

#[test]
fn unusable_samples_are_errors_that_say_what_is_wrong() {
    for (protocol, gold, expected) in [
        ("exam", "A", "meta `choice_protocol` is `exam`"),
        ("quality", "the moon", "reference `the moon` is neither a letter A to D nor one of the options"),
    ] {
        assert_eq!(score(protocol, "(A)", gold).unwrap_err().message, expected);
    }
    let sample = Scored { references: vec!["A".into()], ..Scored::default() };
    assert!(Choice.score(&sample).unwrap_err().help.contains("longbench-v2"));
}
