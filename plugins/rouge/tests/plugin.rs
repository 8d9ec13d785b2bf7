//! The plugin as a host sees it.

use e2llm_metric_rouge::{IDS, Rouge, e2llm_plugin_entry};
use e2llm_plugin::{Metric, Row, Scored};
use proptest::prelude::*;

fn sample(prediction: &str, references: &[&str]) -> Scored {
    Scored {
        prediction: prediction.into(),
        references: references.iter().map(|&text| text.into()).collect(),
        ..Scored::default()
    }
}

#[test]
fn exported_ids_are_those_of_info() {
    let ids: Vec<String> = Rouge::default().info().values.into_iter().map(|value| value.id).collect();
    assert_eq!(ids, IDS.split(' ').collect::<Vec<_>>());
}

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(e2llm_plugin_entry);
}

#[test]
fn sentences_differ_from_lines_only_in_where_they_end() {
    let metric = Rouge::default();
    let (p, r) = ("One two three. Four five six.", "Four five six. One two three.");
    let inline = metric.score(&sample(p, &[r])).unwrap();
    let lines = metric.score(&sample(&p.replace(". ", ".\n"), &[&r.replace(". ", ".\n")])).unwrap();
    assert_eq!(inline["rougeLsum"], 0.5);
    assert_eq!(inline["rougeLsum@sentences"], 1.0);
    assert_eq!(lines["rougeLsum"], 1.0);
}

#[test]
fn only_what_is_looked_at_is_computed_and_the_same() {
    let sample = sample("Meetings were held.\nAll agreed.", &["A meeting was held. All agreed."]);
    let all = Rouge::default().score(&sample).unwrap();
    for (wanted, computed) in [
        (&["rougeL+stem"][..], &["rougeL+stem"][..]),
        (&["rouge_gmean", "f1_squad"], &["rouge1", "rouge2", "rougeL"]),
        (&["rouge_l_pltrdy@compat", "rougeLsum"], &["rougeLsum", "rouge_l_pltrdy@compat"]),
        (&[], &[]),
    ] {
        let mut metric = Rouge::default();
        metric.only(&wanted.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        let some = metric.score(&sample).unwrap();
        assert_eq!(some.keys().collect::<Vec<_>>(), computed, "{wanted:?}");
        assert!(some.iter().all(|(id, value)| all[id] == *value));
    }
}

#[test]
fn gmean_is_of_the_corpus_means() {
    let metric = Rouge::default();
    let rows: Vec<Row> =
        [("the cat sat", "the cat stood"), ("one two three", "one two three four"), ("", "x")]
            .into_iter()
            .map(|(prediction, reference)| Row {
                scores: metric.score(&sample(prediction, &[reference])).unwrap(),
            })
            .collect();
    let got = metric.aggregate(&mut rows.iter().cloned()).unwrap();
    let product = got["rouge1"] * got["rouge2"] * got["rougeL"];
    assert!(rows.iter().all(|row| !row.scores.contains_key("rouge_gmean")));
    assert!((got["rouge_gmean"] - product.cbrt()).abs() < 1e-12);
    assert!(product > 0.0);
}

#[test]
fn threads_do_not_matter() {
    let metric = Rouge::default();
    let samples: Vec<Scored> = (0..200)
        .map(|i| sample(&format!("meeting {i} was held in {}", i % 7), &["meetings 3 are held in 5"]))
        .collect();
    let expected: Vec<_> = samples.iter().map(|sample| metric.score(sample).unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (sample, expected) in samples.iter().zip(&expected) {
                    assert_eq!(&metric.score(sample).unwrap(), expected);
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn the_order_of_samples_does_not_matter(
        texts in prop::collection::vec(("[a-c ]{0,20}", "[a-c ]{1,20}"), 1..20).prop_shuffle(),
    ) {
        let metric = Rouge::default();
        let score = |(prediction, reference): &(String, String)| {
            Row { scores: metric.score(&sample(prediction, &[reference])).unwrap() }
        };
        let rows: Vec<Row> = texts.iter().map(score).collect();
        let mut sorted = texts.clone();
        sorted.sort();
        let sorted: Vec<Row> = sorted.iter().map(score).collect();
        let aggregate = |rows: Vec<Row>| metric.aggregate(&mut rows.into_iter()).unwrap();
        let (a, b) = (aggregate(rows), aggregate(sorted));
        for (id, value) in a {
            prop_assert!((value - b[&id]).abs() < 1e-12, "{id}");
        }
    }
}
