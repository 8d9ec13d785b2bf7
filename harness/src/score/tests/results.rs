use super::*;
use e2llm_plugin::Aggregate;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn two_documents() -> Vec<SampleRecord> {
    vec![
        answered(0, "d1", &[("a", 1.0), ("b", 0.5), ("count", 1.0), ("plain", 3.0)]),
        answered(1, "d1", &[("a", 0.0), ("b", 0.25), ("count", 0.0), ("plain", 5.0)]),
        answered(2, "d2", &[("a", 0.5), ("b", 0.75), ("count", 1.0), ("plain", 1.0)]),
        answered(3, "d3", &[("a", 0.5), ("b", 0.5), ("count", 1.0), ("plain", 7.0)]),
    ]
}

fn value<'a>(results: &'a TaskResults, slice: usize, id: &str) -> &'a MetricResult {
    results.slices[slice].metrics.iter().find(|m| m.id == id).unwrap()
}

#[test]
fn values_by_hand() {
    let results = score(&two_documents(), &["g", "a", "b", "count", "plain"]).unwrap();
    assert_eq!(results.slices.len(), 1);
    let all = &results.slices[0];
    assert_eq!((all.n, all.groups, all.n_error, all.n_null, all.n_truncated), (4, 3, 0, 0, 0));
    let ids: Vec<_> = all.metrics.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(ids, ["g", "a", "b", "count", "plain"]);
    let a = value(&results, 0, "a");
    assert_eq!(
        (a.value, a.value_completed, a.unit.as_str(), a.metric.as_str()),
        (50.0, Some(50.0), "%", "family@3")
    );
    // residuals by document: d1 0, d2 0, d3 0
    assert_eq!(a.stderr, Some(0.0));
    let b = value(&results, 0, "b");
    // mean 0.5; residuals: d1 -0.25, d2 0.25, d3 0; sqrt(3 / 2 * 0.125) / 4
    assert!((b.stderr.unwrap() - 100.0 * (1.5f64 * 0.125).sqrt() / 4.0).abs() < 1e-9);
    assert!(b.ci_low.unwrap() <= b.value && b.value <= b.ci_high.unwrap());
    assert_eq!(value(&results, 0, "count").value, 3.0);
    assert_eq!(value(&results, 0, "count").unit, "count");
    assert_eq!(value(&results, 0, "plain").value, 4.0);
    assert_eq!(value(&results, 0, "plain").unit, "");
    assert_eq!(value(&results, 0, "g").value, 50.0);
    assert_eq!(all.tokens.as_ref().map(|t| (t.prompt, t.compressed, t.soft)), Some((100.0, 940.0, 40.0)));
}

#[test]
fn errors_count_zero_and_stay_in_the_denominator() {
    let mut records = two_documents();
    records.push(failed(4, "d4", "out of memory"));
    records.push(failed(5, "d4", "another"));
    // A score left behind by a first attempt must not count.
    records[5].scores.insert("a".into(), 1.0);
    let results = score(&records, &["a", "g", "count"]).unwrap();
    let all = &results.slices[0];
    assert_eq!((all.n, all.n_error), (6, 2));
    let a = value(&results, 0, "a");
    assert_eq!((a.n, a.n_missing, a.value_completed), (6, 0, Some(50.0)));
    assert!((a.value - 100.0 * 2.0 / 6.0).abs() < 1e-9);
    assert_eq!(value(&results, 0, "count").value, 3.0);
    let g = value(&results, 0, "g");
    assert!((g.value - 100.0 * 2.0 / 6.0).abs() < 1e-9);
    assert_eq!(g.value_completed, Some(50.0));
    let first = results.first_error.unwrap();
    assert_eq!((first.sample.as_str(), first.message.as_str()), ("s4", "out of memory"));
}

#[test]
fn an_answer_that_could_not_be_scored_is_an_error() {
    let mut records = two_documents();
    records[1].scores.clear();
    records[1].score_error = Some("no options in meta".into());
    let results = score(&records, &["b"]).unwrap();
    let b = value(&results, 0, "b");
    assert_eq!((results.slices[0].n_error, b.n_missing, b.value), (1, 0, 43.75));
    assert!((b.value_completed.unwrap() - 175.0 / 3.0).abs() < 1e-9);
    assert_eq!(results.first_error.unwrap().message, "no options in meta");
}

#[test]
fn nothing_answered_is_zero_with_every_error_counted() {
    let results = score(&[failed(0, "x", "boom"), failed(1, "y", "boom")], &["a", "g"]).unwrap();
    let a = value(&results, 0, "a");
    assert_eq!((a.value, a.value_completed, a.stderr, a.ci_high), (0.0, None, Some(0.0), Some(0.0)));
    assert_eq!(results.slices[0].tokens, None);
    assert_eq!(Results::new(identity(), vec![results]).errors(), 2);
}

#[test]
fn what_was_not_found_or_cut_is_counted() {
    let mut records = two_documents();
    if let Outcome::Answered { prediction, usage, .. } = &mut records[1].outcome {
        prediction.text.clear();
        usage.truncation = Some("middle-longbench-v2".into());
    }
    records[2].scores.remove("a");
    let results = score(&records, &["a", "b"]).unwrap();
    let all = &results.slices[0];
    assert_eq!((all.n_null, all.n_truncated), (1, 1));
    let a = value(&results, 0, "a");
    assert_eq!((a.value, a.n, a.n_missing), (37.5, 4, 1));
    assert_eq!(a.note, "1 answered without this value");
    assert_eq!(value(&results, 0, "b").note, "");
}

#[test]
fn one_document_states_that_it_has_no_interval() {
    let results = score(&two_documents()[..2], &["a"]).unwrap();
    let a = value(&results, 0, "a");
    assert_eq!((a.value, a.stderr, a.ci_low, a.ci_high), (50.0, None, None, None));
    assert_eq!(a.note, "no interval: one document");
}

#[test]
fn slices_come_in_order_and_have_their_own_numbers() {
    let mut records = two_documents();
    for (record, (length, difficulty)) in
        records.iter_mut().zip([("16000", "hard"), ("4000", "easy"), ("4000", "hard"), ("full", "easy")])
    {
        record.slices.insert("length".into(), length.into());
        record.slices.insert("difficulty".into(), difficulty.into());
    }
    let results = score(&records, &["a"]).unwrap();
    let names: Vec<_> = results.slices.iter().map(|s| (s.slice.as_str(), s.n, s.metrics[0].value)).collect();
    let expected = [
        ("all", 4, 50.0),
        ("difficulty=easy", 2, 25.0),
        ("difficulty=hard", 2, 75.0),
        ("length=4000", 2, 25.0),
        ("length=16000", 1, 100.0),
        ("length=full", 1, 50.0),
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_metric_itself_aggregates() {
    let best = |info: &MetricInfo, rows: &Rows<'_>| -> crate::failure::Result<Aggregate> {
        assert_eq!(info.id, "family");
        let best = rows.iter().filter_map(|r| r.scores.get("a").copied()).fold(0.0, f64::max);
        Ok([("a".to_owned(), best)].into_iter().collect())
    };
    let samples: Samples = two_documents().iter().collect();
    let ids = ["a".to_owned()];
    let results = task_results(&meta("a"), &samples, &[metric()], &ids, Bootstrap::new(7), &best).unwrap();
    let a = value(&results, 0, "a");
    assert_eq!((a.value, a.ci_low), (100.0, None));
    assert_eq!(a.note, "no interval: the metric aggregates in its own way");

    let both = ["a".to_owned(), "b".to_owned()];
    let error = task_results(&meta("a"), &samples, &[metric()], &both, Bootstrap::new(7), &best).unwrap_err();
    assert_eq!(error.to_string(), "scores of task `quality`: metric `family` made no value of `b`");
}

#[test]
fn unusable_input_is_named() {
    let message = |records: &[SampleRecord], wanted: &[&str]| score(records, wanted).unwrap_err().to_string();
    let records = two_documents();
    assert_eq!(message(&[], &["a"]), "scores of task `quality`: there are no samples to aggregate");
    assert_eq!(message(&records, &["plan"]), "scores of task `quality`: no metric is called `plan`");
    assert_eq!(message(&records, &["a", "a"]), "scores of task `quality`: metric `a` is asked for twice");
    let mut twice = records.clone();
    twice[3].id = "s1".into();
    assert_eq!(
        message(&twice, &["a"]),
        "scores of task `quality`: sample `s1` is there twice, as 1 and as 3"
    );
    let mut nan = records.clone();
    nan[2].scores.insert("b".into(), f64::NAN);
    assert_eq!(message(&nan, &["g"]), "scores of task `quality`: `b` of sample `s2` is NaN, not a number");
    let unscored = [answered(0, "d", &[]), answered(1, "d", &[("a", 1.0)])];
    assert_eq!(message(&unscored, &["b"]), "scores of task `quality`: no answered sample has a value `b`");
    let ids = ["a".to_owned()];
    let samples: Samples = records.iter().collect();
    let error =
        task_results(&meta("g"), &samples, &[metric()], &ids, Bootstrap::new(7), &as_declared).unwrap_err();
    assert!(error.to_string().contains("primary metric `g`"), "{error}");
}

/// Random records, shuffled again and again: always the same bytes.
#[test]
fn the_order_of_records_does_not_matter() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for case in 0..20 {
        let n = 2 + case * 3;
        let mut records: Vec<SampleRecord> = (0..n)
            .map(|i| {
                let group = format!("d{}", rng.next_u32() % 5);
                let score = |rng: &mut ChaCha8Rng| f64::from(rng.next_u32()) / f64::from(u32::MAX) / 3.0;
                let scores = [("a", score(&mut rng)), ("b", score(&mut rng)), ("count", score(&mut rng))];
                let record = match rng.next_u32() % 6 {
                    0 if i > 0 => failed(i, &group, &format!("error {i}")),
                    _ => answered(i, &group, &scores),
                };
                in_slice(record, "depth", &(rng.next_u32() % 3 * 50).to_string())
            })
            .collect();
        let json = |records: &[SampleRecord]| {
            let task = score(records, &["g", "a", "b", "count"]).unwrap();
            Results::new(identity(), vec![task]).to_json().unwrap()
        };
        let expected = json(&records);
        for _ in 0..5 {
            for i in (1..records.len()).rev() {
                records.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
            }
            assert_eq!(json(&records), expected);
        }
        let others: Vec<_> = (0..2)
            .map(|_| {
                std::thread::spawn({
                    let records = records.clone();
                    move || {
                        let task = score(&records, &["g", "a", "b", "count"]).unwrap();
                        Results::new(identity(), vec![task]).to_json().unwrap()
                    }
                })
            })
            .collect();
        for other in others {
            assert_eq!(other.join().unwrap(), expected);
        }
    }
}

/// Neither the other values asked for nor other slices move a value's interval.
#[test]
fn intervals_do_not_depend_on_their_neighbours() {
    let alone = score(&two_documents(), &["b"]).unwrap();
    let mut records = two_documents();
    records[0] = in_slice(records[0].clone(), "difficulty", "hard");
    let among = score(&records, &["plain", "g", "b"]).unwrap();
    assert_eq!(value(&alone, 0, "b"), value(&among, 0, "b"));
}

#[test]
fn results_are_read_back_as_they_were_written() {
    let mut records = two_documents();
    records[1].scores.insert("b".into(), 1.0 / 3.0);
    records.push(failed(4, "d4", "a \"quoted\"\nmessage"));
    let results = Results::new(identity(), vec![score(&records, &["g", "a", "b", "count"]).unwrap()]);
    let text = results.to_json().unwrap();
    let read = Results::from_json("results.json", &text).unwrap();
    assert_eq!(read, results);
    assert_eq!(read.to_json().unwrap(), text);
    assert!(text.starts_with("{\n  \"format\": 1,\n  \"run\": {\n    \"version\""));
    assert!(text.ends_with("}\n"));
    let newer = text.replacen("\"format\": 1", "\"format\": 99", 1);
    let error = Results::from_json("r/results.json", &newer).unwrap_err().to_string();
    assert_eq!(error, "r/results.json has format 99, this version reads 1");
    let torn = Results::from_json("r/results.json", &text[..text.len() / 2]).unwrap_err().to_string();
    assert!(torn.starts_with("r/results.json cannot be read: EOF"), "{torn}");
}

#[test]
fn what_is_not_finished_is_said() {
    let mut results = Results::new(identity(), vec![score(&two_documents(), &["a"]).unwrap()]);
    let finished = results.to_json().unwrap();
    let n = results.tasks[0].slices[0].n as u64;
    results.note_unfinished([("quality", n), ("not-asked", 0)]);
    assert_eq!((results.unfinished(), results.to_json().unwrap()), (vec![], finished.clone()));
    results.note_unfinished([("quality", n + 3), ("niah", 10)]);
    let how_far =
        [format!("quality: {n} of {} samples finished", n + 3), "niah: 0 of 10 samples finished".into()];
    assert_eq!(results.unfinished(), how_far);
    let read = Results::from_json("results.json", &results.to_json().unwrap()).unwrap();
    assert_eq!(read.unfinished(), how_far);
    let runs = [LeaderboardRun { name: "r", results: &results }];
    let csv = leaderboard_csv(&runs).unwrap();
    assert!(csv.lines().skip(1).all(|row| row.contains(&how_far[0]["quality: ".len()..])), "{csv}");
    let markdown = leaderboard_markdown(&runs).unwrap();
    assert!(how_far.iter().all(|text| markdown.contains(&format!("- r: {text}\n"))), "{markdown}");
    // and no more once it is
    results.note_unfinished([("quality", n)]);
    assert_eq!(results.to_json().unwrap(), finished);
}

#[test]
fn a_run_is_named_by_what_was_evaluated() {
    let results = |f: fn(&mut RunIdentity, &mut TaskResults)| {
        let (mut identity, mut task) = (identity(), score(&two_documents(), &["a"]).unwrap());
        f(&mut identity, &mut task);
        Results::new(identity, vec![task]).run_id()
    };
    let id = results(|_, _| {});
    assert_eq!(id.len(), 12);
    assert_eq!(id, results(|_, t| t.slices[0].metrics[0].value = 1.0));
    assert_ne!(id, results(|r, _| r.fingerprint.push('x')));
    assert_ne!(id, results(|r, _| r.seed += 1));
    assert_ne!(id, results(|_, t| t.meta.prompt_hash.push('x')));
}
