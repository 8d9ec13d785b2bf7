//! The plugin as a host sees it.

use e2llm_metric_longbench::{IDS, LongBenchScores, e2llm_plugin_entry};
use e2llm_plugin::{Metric, Result, Scored, Scores};
use serde_json::{Value, json};

fn score(dataset: &str, prediction: &str, references: &[&str], more: Value) -> Result<Scores> {
    let mut meta = more.as_object().cloned().unwrap_or_default();
    meta.insert("dataset".into(), dataset.into());
    LongBenchScores::default().score(&Scored {
        prediction: prediction.into(),
        references: references.iter().map(|r| (*r).to_owned()).collect(),
        meta,
        ..Scored::default()
    })
}

#[test]
fn exported_ids_are_those_of_info() {
    let ids: Vec<String> =
        LongBenchScores::default().info().values.into_iter().map(|value| value.id).collect();
    assert_eq!(ids, IDS.split(' ').collect::<Vec<_>>());
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

/// The values are those of LongBench's `metrics.py`.
#[test]
fn every_data_set_has_its_own_score() {
    let value = |dataset: &str, prediction: &str, references: &[&str]| {
        score(dataset, prediction, references, Value::Null).unwrap()["longbench_score"]
    };
    assert_eq!(value("hotpotqa", "the Rock-n-Roll era", &["1950s", "rocknroll"]), 2.0 / 3.0);
    assert_eq!(value("passage_retrieval_en", "Paragraph 3 or 12", &["Paragraph 12"]), 0.5);
    assert_eq!(value("passage_count", "17 paragraphs", &["17"]), 1.0);
    let rouge = value("gov_report", "a b. c d.", &["a b. x d."]);
    assert!((rouge - 0.75).abs() < 1e-7, "{rouge}");
    // a common word far from both ends of a long text without a full stop is too deep for the Python package, which
    // LongBench counts as 0
    let around = |n: usize, side: &str| {
        let words = |part: &str| (0..n).map(|i| format!("{side}{part}{i}")).collect::<Vec<_>>().join(" ");
        format!("{} middle {}", words("a"), words("b"))
    };
    assert!(value("qmsum", &around(200, "x"), &[&around(200, "y")]) > 0.002);
    assert_eq!(value("qmsum", &around(600, "x"), &[&around(600, "y")]), 0.0);
    let classes = json!({ "all_classes": ["City", "Other city", "City name"] });
    let scores = score("trec", "City name", &["City name"], classes).unwrap();
    assert_eq!((scores["classification_score"], scores["classification_score@compat"]), (1.0, 1.0));
    assert_eq!(scores["longbench_score"], 1.0);
}

/// The values are those of LongBench's `code_sim_score` with RapidFuzz 3.14's and fuzzywuzzy 0.18's `fuzz.ratio`, the
/// latter without python-Levenshtein.
#[test]
fn code_is_compared_by_its_first_plain_line() {
    let alphabet: String = ('a'..='z').cycle().take(260).collect();
    for (prediction, gold, similar, compat) in [
        ("\n        return self.x\nreturn 2", "        return self._x", 0.9767441860465115, 0.98),
        ("```python\n# next\nreturn a + b\nreturn c", "return a+b", 0.9090909090909091, 0.91),
        ("\n\n// x\n`y`\n# z", "int n = 0;", 0.0, 0.0),
        ("", "x = 1", 0.0, 0.0),
        ("x = 1", "x = 1", 1.0, 1.0),
        ("qabxcd", "abycdf", 0.6666666666666667, 0.67),
        ("private Thread currentThread;", "private volatile Thread currentThread;", 0.8656716417910448, 0.87),
        ("über = größe + 1", "ueber = groesse + 1", 0.7428571428571429, 0.74),
        // difflib leaves out characters that are frequent in a long line
        (&"ab".repeat(120), &("ba".repeat(120) + "c"), 0.9937629937629937, 0.0),
        (&("x".repeat(50) + &"yz".repeat(100)), &alphabet, 0.08235294117647063, 0.0),
        (
            "public static void main(String[] args) {",
            "    public static int run(final String[] args) throws Exception {",
            0.6476190476190475,
            0.63,
        ),
    ] {
        for dataset in ["lcc", "repobench-p"] {
            let scores = score(dataset, prediction, &[gold], Value::Null).unwrap();
            let rapid = scores["code_sim_score"];
            assert!((rapid - similar).abs() < 1e-12, "{prediction}: {rapid}");
            assert_eq!((scores["code_sim_score@compat"], scores["longbench_score"]), (compat, compat));
        }
    }
    let other = score("qasper", "x", &["x"], Value::Null).unwrap();
    assert!(!other.contains_key("code_sim_score"));
}

#[test]
fn what_cannot_be_scored_is_an_error_that_says_why() {
    for (dataset, what) in [
        ("lsht", "`lsht`, which has no score here"),
        ("trec", "needs the list `meta.all_classes`"),
        ("passage_count", "needs a number"),
        ("passage_retrieval_en", "of the form `Paragraph 7`"),
    ] {
        let error = score(dataset, "x", &["x"], Value::Null).unwrap_err();
        assert!(error.message.contains(what), "{error}");
    }
    assert!(
        score("trec", "x", &["x"], json!({"all_classes": [1]}))
            .unwrap_err()
            .message
            .contains("no list of texts")
    );
}
