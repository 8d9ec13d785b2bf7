use super::super::tests::{answered, failed, metric};
use super::super::{Clusters, Statistic, as_declared, interval_seed};
use super::paired::{Paired, between, holm};
use super::*;
use crate::failure::shown;
use crate::store::TaskEntry;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SEED: [u8; 32] = [7; 32];

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-9, "{a} is not {b}");
}

fn alone(n: usize) -> Clusters {
    Clusters::new((0..n).map(|_| ""))
}

fn mean(values: &[f64]) -> Statistic {
    Statistic::Mean(values.to_vec())
}

/// A sum of uniform numbers: mean 0, deviation 1, nearly normal.
fn noise(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.next_u64() as f64 / 2f64.powi(64)).sum::<f64>() - 6.0
}

/// Two methods on documents with several questions each; the second is better by `effect` on average.
fn simulated(rng: &mut ChaCha8Rng, documents: usize, effect: f64) -> (Statistic, Statistic, Clusters) {
    let (mut a, mut b, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for document in 0..documents {
        let (hard, better) = (noise(rng), effect + 0.5 * noise(rng));
        for _ in 0..1 + rng.next_u64() % 4 {
            let question = noise(rng);
            a.push(hard + question + 0.3 * noise(rng));
            b.push(hard + question + better + 0.3 * noise(rng));
            names.push(document.to_string());
        }
    }
    (mean(&a), mean(&b), Clusters::new(names.iter().map(String::as_str)))
}

#[test]
fn a_run_against_itself_differs_by_nothing() {
    let values = [0.0, 1.0, 0.25, 1.0, 0.5];
    let clusters = Clusters::new(["x", "x", "y", "z", "z"]);
    let columns = vec![values.to_vec(), values.map(|v| v + 0.1).to_vec()];
    for statistic in [mean(&values), Statistic::Sum(values.to_vec()), Statistic::GeometricMean(columns)] {
        let paired = Paired { baseline: &statistic, run: &statistic, clusters: &clusters };
        assert_eq!(paired.difference(), 0.0);
        assert_eq!(paired.interval(SEED, 500), Some((0.0, 0.0)));
        assert_eq!(paired.p_value(SEED, 500), Some(1.0));
        assert_eq!(paired.p_value(SEED, 3), Some(1.0), "also where not all ways are tried");
        assert_eq!(paired.effect_size(), Some(0.0));
        assert_eq!(paired.detectable(), Some(0.0));
    }
}

#[test]
fn figures_by_hand() {
    let (a, b) = (mean(&[0.0, 0.0, 0.0]), mean(&[1.0, 2.0, 3.0]));
    let clusters = alone(3);
    let paired = Paired { baseline: &a, run: &b, clusters: &clusters };
    close(paired.difference(), 2.0);
    close(paired.p_value(SEED, 1000).unwrap(), 0.25); // of the 8 sums of +-1 +-2 +-3 two are 6 or -6
    close(paired.effect_size().unwrap(), 2.0); // mean 2, deviation 1
    // standard error 1 / sqrt(3); t(0.975) and t(0.8) with 2 degrees of freedom
    close(paired.detectable().unwrap(), (4.302_652_729_911_275 + 1.060_660_171_779_821) / 3f64.sqrt());
    // two documents, 1 + 2 and 3: of 6, 0, 0, -6 half are that far from 0
    let clusters = Clusters::new(["x", "x", "y"]);
    let paired = Paired { baseline: &a, run: &b, clusters: &clusters };
    close(paired.p_value(SEED, 1000).unwrap(), 0.5);
}

#[test]
fn one_document_tells_nothing() {
    let (a, b) = (mean(&[0.0, 0.0]), mean(&[1.0, 0.5]));
    let clusters = Clusters::new(["x", "x"]);
    let paired = Paired { baseline: &a, run: &b, clusters: &clusters };
    assert_eq!((paired.interval(SEED, 100), paired.p_value(SEED, 100)), (None, None));
    assert_eq!(paired.detectable(), None);
    let constant = Paired { baseline: &mean(&[0.0, 0.0]), run: &mean(&[1.0, 1.0]), clusters: &alone(2) };
    assert_eq!(constant.effect_size(), None, "no deviation to divide by");
}

#[test]
fn drawing_swaps_agrees_with_trying_all() {
    let mut rng = ChaCha8Rng::from_seed([1; 32]);
    for effect in [0.0, 0.2, 0.4] {
        let (a, b, clusters) = simulated(&mut rng, 13, effect);
        let paired = Paired { baseline: &a, run: &b, clusters: &clusters };
        let all = paired.p_value(SEED, 4096).unwrap();
        let drawn = paired.p_value(SEED, 4095).unwrap();
        assert!((all - drawn).abs() < 0.03, "{all} {drawn}");
    }
}

#[test]
fn intervals_cover_and_tests_keep_their_level() {
    let mut rng = ChaCha8Rng::from_seed([2; 32]);
    let (mut covered, mut significant) = (0, 0);
    for _ in 0..400 {
        let (a, b, clusters) = simulated(&mut rng, 40, 0.3);
        let paired = Paired { baseline: &a, run: &b, clusters: &clusters };
        let (low, high) = paired.interval(SEED, 400).unwrap();
        covered += usize::from(low <= 0.3 && 0.3 <= high);
        let (a, b, clusters) = simulated(&mut rng, 40, 0.0);
        let paired = Paired { baseline: &a, run: &b, clusters: &clusters };
        significant += usize::from(paired.p_value(SEED, 400).unwrap() < 0.05);
    }
    // 95 and 5 %, give or take three standard errors of 400 tries; percentile intervals are a little short
    assert!((364..=394).contains(&covered), "{covered} of 400");
    assert!((7..=33).contains(&significant), "{significant} of 400");
}

#[test]
fn a_detectable_difference_is_found_four_times_of_five() {
    let mut rng = ChaCha8Rng::from_seed([3; 32]);
    // the deviation of a document's mean difference is known, so the detectable difference is on average
    let detectable = (0..50)
        .map(|_| {
            let (a, b, clusters) = simulated(&mut rng, 30, 0.0);
            Paired { baseline: &a, run: &b, clusters: &clusters }.detectable().unwrap()
        })
        .sum::<f64>()
        / 50.0;
    let found = (0..300).filter(|_| {
        let (a, b, clusters) = simulated(&mut rng, 30, detectable);
        Paired { baseline: &a, run: &b, clusters: &clusters }.p_value(SEED, 400).unwrap() < 0.05
    });
    let found = found.count();
    assert!((210..=270).contains(&found), "{found} of 300");
}

#[test]
fn a_geometric_mean_is_resampled_as_a_whole() {
    let mut rng = ChaCha8Rng::from_seed([4; 32]);
    let column = |rng: &mut ChaCha8Rng, more: f64| -> Vec<f64> {
        (0..60).map(|_| 0.3 + more + 0.02 * noise(rng)).collect()
    };
    let a = Statistic::GeometricMean((0..3).map(|_| column(&mut rng, 0.0)).collect());
    let b = Statistic::GeometricMean((0..3).map(|_| column(&mut rng, 0.03)).collect());
    let clusters = alone(60);
    let paired = Paired { baseline: &a, run: &b, clusters: &clusters };
    let (low, high) = paired.interval(SEED, 1000).unwrap();
    assert!(low > 0.02 && high < 0.04 && low < 0.03 && 0.03 < high, "{low} {high}");
    assert!(paired.p_value(SEED, 1000).unwrap() < 0.002);
    assert!(paired.effect_size().unwrap() > 1.0);
}

#[test]
fn holm_by_hand() {
    let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
    for (got, want) in adjusted.iter().zip([0.03, 0.06, 0.06, 0.02]) {
        close(*got, want);
    }
    assert_eq!(holm(&[]), Vec::<f64>::new());
}

proptest! {
    #[test]
    fn holm_keeps_order_and_never_helps(p in prop::collection::vec(0.0..=1.0f64, 0..12)) {
        let adjusted = holm(&p);
        for (i, a) in adjusted.iter().enumerate() {
            prop_assert!(*a >= p[i] && *a <= 1.0);
            prop_assert!(*a <= (p[i] * p.len() as f64).min(1.0) + 1e-12 || p.iter().any(|q| *q < p[i]));
            for (j, b) in adjusted.iter().enumerate() {
                prop_assert!(p[i] > p[j] || a <= b);
            }
        }
    }

    #[test]
    fn comparing_the_other_way_round_turns_the_sign(
        rows in prop::collection::vec((0.0..1.0f64, 0.0..1.0f64, 0u8..6), 2..40), sums in any::<bool>(),
    ) {
        let of = |values: Vec<f64>| if sums { Statistic::Sum(values) } else { Statistic::Mean(values) };
        let a = of(rows.iter().map(|r| r.0).collect());
        let b = of(rows.iter().map(|r| r.1).collect());
        let names: Vec<String> = rows.iter().map(|r| r.2.to_string()).collect();
        let clusters = Clusters::new(names.iter().map(String::as_str));
        let there = Paired { baseline: &a, run: &b, clusters: &clusters };
        let back = Paired { baseline: &b, run: &a, clusters: &clusters };
        prop_assert!((there.difference() + back.difference()).abs() < 1e-12);
        prop_assert_eq!(there.p_value(SEED, 200), back.p_value(SEED, 200));
        let near = |x: f64, y: f64| (x - y).abs() < 1e-9;
        match (there.interval(SEED, 200), back.interval(SEED, 200)) {
            (Some((low, high)), Some((l, h))) => prop_assert!(near(low, -h) && near(high, -l)),
            (None, None) => prop_assert!(clusters.len() < 2),
            other => prop_assert!(false, "{:?}", other),
        }
        if let (Some(x), Some(y)) = (there.detectable(), back.detectable()) {
            prop_assert!(near(x, y));
        }
        if let (Some(x), Some(y)) = (there.effect_size(), back.effect_size()) {
            prop_assert!((x + y).abs() <= 1e-9 * x.abs().max(1.0));
        }
    }
}

#[test]
fn anchors_are_zero_and_one() {
    let (low, high) = (mean(&[0.1, 0.2, 0.0, 0.1]), mean(&[0.7, 0.9, 0.8, 0.8]));
    let clusters = alone(4);
    let place = |v: &Statistic, better| between(v, &low, &high, better, &clusters, SEED, 500);
    assert_eq!((place(&low, true).value, place(&low, true).interval), (Some(0.0), Some((0.0, 0.0))));
    assert_eq!((place(&high, true).value, place(&high, true).interval), (Some(1.0), Some((1.0, 1.0))));
    let half = place(&mean(&[0.4, 0.55, 0.4, 0.45]), true);
    close(half.value.unwrap(), 0.5);
    assert!(half.note.is_empty());
    let wrong = place(&half_of(&low, &high), false);
    assert!(wrong.value.is_none() && wrong.note.contains("`full` is not better"), "{wrong:?}");
    let noisy = between(
        &high,
        &mean(&[0.5, 0.0, 0.5, 0.0]),
        &mean(&[0.0, 0.6, 0.0, 0.6]),
        true,
        &clusters,
        SEED,
        500,
    );
    assert!(noisy.value.is_some() && noisy.interval.is_none());
    assert!(noisy.note.contains("of 500 resamples"), "{}", noisy.note);
}

fn half_of(a: &Statistic, b: &Statistic) -> Statistic {
    let (Statistic::Mean(a), Statistic::Mean(b)) = (a, b) else { panic!("means") };
    Statistic::Mean(a.iter().zip(b).map(|(a, b)| (a + b) / 2.0).collect())
}

fn entry() -> TaskEntry {
    TaskEntry {
        id: "quality".into(),
        version: "2".into(),
        split: "test".into(),
        sample_data: false,
        prompt_style: "e2llm".into(),
        prompt_hash: "0123".into(),
        metrics: vec!["a".into()],
        primary_metric: "a".into(),
        samples: 4,
        plan: "p".into(),
        questions: "q".into(),
        trained_on: None,
        files: Vec::new(),
    }
}

fn settings(allow_differences: bool) -> CompareSettings {
    CompareSettings { seed: 7, resamples: 200, permutations: 200, allow_differences }
}

/// Compares the value `a` of two runs.
fn compared(
    a: (&TaskEntry, &[SampleRecord]),
    b: (&TaskEntry, &[SampleRecord]),
    allow: bool,
) -> Result<Comparison> {
    let (metrics, wanted) = ([metric()], ["a".to_owned(), "g".to_owned()]);
    let values = Values { metrics: &metrics, wanted: &wanted, aggregate: &as_declared };
    let runs = [("base", a), ("new", b)].map(|(run, (entry, records))| TaskRun { run, entry, records });
    let mut comparison = Comparison::new(settings(allow));
    comparison.add_task(&runs, &values)?;
    comparison.correct();
    Ok(comparison)
}

fn records(values: [f64; 4]) -> Vec<SampleRecord> {
    let groups = ["x", "x", "y", "z"];
    (0..4).map(|i| answered(i as u64, groups[i], &[("a", values[i]), ("b", 0.5)])).collect()
}

#[test]
fn samples_are_paired_by_id_and_errors_count_as_zero() {
    let entry = entry();
    let base = records([0.0, 0.5, 0.5, 1.0]);
    let mut new = records([1.0, 1.0, 1.0, 1.0]);
    new[2] = failed(2, "y", "out of memory");
    new.reverse();
    let comparison = compared((&entry, &base), (&entry, &new), false).unwrap();
    let d = &comparison.differences[0];
    assert_eq!((d.baseline_value, d.value, d.difference), (50.0, 75.0, 25.0));
    assert_eq!((d.n, d.groups, d.baseline_errors, d.run_errors), (4, 3, 0, 1));
    // both rows have the note, and a reader needs it once
    assert!(comparison.differences.iter().all(|d| d.note == "with 3 documents p cannot be below 0.25"));
    assert_eq!(notes(&comparison), ["quality: with 3 documents p cannot be below 0.25"]);
    let mut mixed = comparison.clone();
    mixed.differences[0].note.clear();
    assert_eq!(notes(&mixed), ["quality, g, new: with 3 documents p cannot be below 0.25"]);
    assert_eq!(comparison.differences[1].metric, "g");
    assert!(comparison.differences.iter().all(|d| d.p_holm >= d.p && d.ci_low <= d.ci_high));
    let again = compared((&entry, &base), (&entry, &new), false).unwrap();
    assert_eq!(comparison, again);
}

#[test]
fn runs_that_were_asked_other_things_are_refused_or_said_to_be() {
    let base_entry = entry();
    let base = records([0.0, 0.5, 0.5, 1.0]);
    let cases: [(&str, TaskEntry, Vec<SampleRecord>); 5] = [
        ("task version: 2 in `base`, 3 in `new`", TaskEntry { version: "3".into(), ..entry() }, base.clone()),
        (
            "prompt style: e2llm in `base`",
            TaskEntry { prompt_style: "official".into(), ..entry() },
            base.clone(),
        ),
        ("prompt wording (hash)", TaskEntry { prompt_hash: "4567".into(), ..entry() }, base.clone()),
        ("1 samples only in `base`: `s3`", entry(), base[..3].to_vec()),
        ("4 samples of `new` ask something else", entry(), {
            let ask = |r: &SampleRecord| SampleRecord { instruction: "who?".into(), ..r.clone() };
            base.iter().map(ask).collect()
        }),
    ];
    for (what, new_entry, new) in cases {
        let error = compared((&base_entry, &base), (&new_entry, &new), false).unwrap_err();
        let shown = shown(&error);
        assert!(shown.contains(what) && shown.contains("--allow-differences"), "{shown}");
        let allowed = compared((&base_entry, &base), (&new_entry, &new), true).unwrap();
        assert!(allowed.warnings.iter().any(|w| w.contains(what)), "{:?}", allowed.warnings);
        assert_eq!(allowed.differences[0].difference, 0.0);
    }
    let mut other = base.clone();
    other[1].references = vec!["something else".into()];
    let error = compared((&base_entry, &base), (&base_entry, &other), true).unwrap_err();
    assert!(error.to_string().contains("sample `s1` has other references"), "{error}");
    let strangers: Vec<_> =
        base.iter().map(|r| SampleRecord { id: format!("new-{}", r.id), ..r.clone() }).collect();
    let error = compared((&base_entry, &base), (&base_entry, &strangers), true).unwrap_err();
    assert!(error.to_string().contains("no sample in common"), "{error}");
}

#[test]
fn tables_show_all_of_it() {
    let entry = entry();
    let comparison =
        compared((&entry, &records([0.0, 0.5, 0.5, 1.0])), (&entry, &records([1.0; 4])), false).unwrap();
    let csv = comparison_csv(&comparison).unwrap();
    let mut lines = csv.split("\r\n");
    assert_eq!(
        lines.next().unwrap(),
        "kind,task,task_version,split,metric,metric_version,unit,baseline,run,baseline_value,full_value,value,\
         estimate,ci_low,ci_high,p,p_holm,cohens_dz,detectable,n,groups,baseline_errors,run_errors,note"
    );
    let row = lines.next().unwrap();
    assert!(
        row.starts_with("difference,quality,2,test,a,family@3,%,base,new,50.0000,,100.0000,50.0000,"),
        "{row}"
    );
    let md = comparison_markdown(&comparison);
    assert!(md.starts_with("| task | metric | baseline | run | difference |"), "{md}");
    assert!(md.contains("| quality | a (%) | base 50.00 | new 100.00 | +50.00 |"), "{md}");
    assert!(md.contains("- quality: with 3 documents"), "{md}");
}

#[test]
fn seeds_depend_on_what_is_compared_only() {
    assert_ne!(
        interval_seed(7, "quality", "a", "compare: interval"),
        interval_seed(7, "quality", "b", "compare: interval")
    );
}
