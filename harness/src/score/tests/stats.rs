use super::super::stats::{mean, quantile};
use super::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} is not {b}");
}

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    rng.next_u64() as f64 / 2f64.powi(64)
}

#[test]
fn quantiles_are_linear_between_neighbours() {
    let sorted = [1.0, 2.0, 4.0, 8.0];
    assert_eq!(quantile(&sorted, 0.0), 1.0);
    assert_eq!(quantile(&sorted, 0.5), 3.0);
    close(quantile(&sorted, 0.9), 4.0 + 0.7 * 4.0);
    assert_eq!(quantile(&sorted, 1.0), 8.0);
    assert_eq!(quantile(&[5.0], 0.975), 5.0);
    assert_eq!(mean(&[]), 0.0);
}

#[test]
fn standard_error_of_independent_samples_is_s_by_root_n() {
    let values = vec![0.0, 1.0, 1.0, 0.5];
    let clusters = Clusters::new(["a", "b", "c", "d"]);
    // mean 0.625; squares 0.390625 + 0.140625 * 2 + 0.015625 = 0.6875; s^2 = 0.6875 / 3
    close(Statistic::Mean(values.clone()).standard_error(&clusters).unwrap(), (0.6875f64 / 3.0 / 4.0).sqrt());
    close(Statistic::Sum(values).standard_error(&clusters).unwrap(), 4.0 * (0.6875f64 / 3.0 / 4.0).sqrt());
}

#[test]
fn standard_error_is_clustered_where_groups_repeat() {
    let values = vec![1.0, 0.0, 1.0, 1.0, 0.0];
    let clusters = Clusters::new(["x", "y", "x", "x", "y"]);
    assert_eq!(clusters.len(), 2);
    // mean 0.6; x: 3 * 0.4 = 1.2, y: 2 * -0.6 = -1.2; 2 / 1 * (1.44 + 1.44) / 25
    close(Statistic::Mean(values.clone()).standard_error(&clusters).unwrap(), (2.0 * 2.88f64 / 25.0).sqrt());
    let apart = Clusters::new(["1", "2", "3", "4", "5"]);
    assert!(
        Statistic::Mean(values.clone()).standard_error(&apart)
            < Statistic::Mean(values).standard_error(&clusters)
    );
}

#[test]
fn samples_without_a_group_are_on_their_own() {
    assert_eq!(Clusters::new(["", "", "a", "a"]).len(), 3);
}

#[test]
fn numbered_groups_are_those_of_names() {
    let names = ["c", "", "a", "c", "b", "", "a"];
    let numbered = Clusters::numbered([3, 0, 1, 3, 2, 0, 1]);
    assert_eq!((&numbered, numbered.len(), numbered.samples()), (&Clusters::new(names), 5, 7));
    assert_eq!(numbered.sums(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), [5.0, 2.0, 10.0, 5.0, 6.0]);
}

#[test]
fn one_group_has_no_interval() {
    let clusters = Clusters::new(["a", "a", "a"]);
    let statistic = Statistic::Mean(vec![0.0, 1.0, 0.5]);
    assert_eq!(statistic.standard_error(&clusters), None);
    assert_eq!(statistic.interval(&clusters, [0; 32], 100), None);
    assert_eq!(Statistic::Mean(vec![0.5]).interval(&Clusters::new(["a"]), [0; 32], 100), None);
}

#[test]
fn intervals_hold_the_value_and_do_not_change_between_releases() {
    let values: Vec<f64> = (0..24).map(|i| f64::from(i * 37 % 101) / 101.0).collect();
    let names: Vec<String> =
        (0..24).map(|i| (if i % 2 == 1 { i * i % 9 } else { i % 9 }).to_string()).collect();
    let clusters = Clusters::new(names.iter().map(String::as_str));
    let seed = interval_seed(7, "qmsum", "rouge1", "all");
    let (low, high) = Statistic::Mean(values.clone()).interval(&clusters, seed, 2_000).unwrap();
    // From a ChaCha8 written in Python for this test, percentiles by its own sorting.
    close(low, 0.33316065535124945);
    close(high, 0.6018370641411966);
    let (sum_low, sum_high) = Statistic::Sum(values.clone()).interval(&clusters, seed, 2_000).unwrap();
    close(sum_low, 24.0 * low);
    close(sum_high, 24.0 * high);
    let other = interval_seed(8, "qmsum", "rouge1", "all");
    assert_ne!(Statistic::Mean(values).interval(&clusters, other, 2_000), Some((low, high)));
}

#[test]
fn seeds_tell_their_parts_apart() {
    let seeds = [
        interval_seed(1, "ab", "c", "all"),
        interval_seed(1, "a", "bc", "all"),
        interval_seed(1, "ab", "call", ""),
        interval_seed(2, "ab", "c", "all"),
    ];
    for (i, a) in seeds.iter().enumerate() {
        assert!(seeds[..i].iter().all(|b| a != b));
    }
}

#[test]
fn geometric_mean_agrees_with_its_definition() {
    let columns = vec![vec![0.2, 0.6], vec![0.9, 0.1]];
    let statistic = Statistic::GeometricMean(columns);
    close(statistic.value(), (0.4f64 * 0.5).sqrt());
    // G = sqrt(m1 m2); dG = G / 2 * (d1 / m1 + d2 / m2), d the deviations / 2
    let g = 0.2f64.sqrt();
    let moved = [g / 2.0 * (-0.1 / 0.4 + 0.2 / 0.5), g / 2.0 * (0.1 / 0.4 - 0.2 / 0.5)];
    let expected = (2.0 * (moved[0] * moved[0] + moved[1] * moved[1])).sqrt();
    close(statistic.standard_error(&Clusters::new(["a", "b"])).unwrap(), expected);
}

#[test]
fn geometric_mean_resamples_documents_together() {
    // Both columns are one: the interval must be that of the column, which only joint resampling gives.
    let column: Vec<f64> = (0..30).map(|i| f64::from(i % 7) / 7.0 + 0.1).collect();
    let names: Vec<String> = (0..30).map(|i| format!("d{}", i / 2)).collect();
    let clusters = Clusters::new(names.iter().map(String::as_str));
    let g = Statistic::GeometricMean(vec![column.clone(), column.clone()]);
    let m = Statistic::Mean(column);
    let (g_low, g_high) = g.interval(&clusters, [3; 32], 2_000).unwrap();
    let (low, high) = m.interval(&clusters, [3; 32], 2_000).unwrap();
    close(g_low, low);
    close(g_high, high);
    close(g.standard_error(&clusters).unwrap(), m.standard_error(&clusters).unwrap());
}

#[test]
fn a_geometric_mean_of_nothing_right_is_surely_zero() {
    let statistic = Statistic::GeometricMean(vec![vec![0.5, 0.5], vec![0.0, 0.0]]);
    let clusters = Clusters::new(["a", "b"]);
    assert_eq!(statistic.value(), 0.0);
    assert_eq!(statistic.standard_error(&clusters), Some(0.0));
    assert_eq!(statistic.interval(&clusters, [0; 32], 200), Some((0.0, 0.0)));
}

/// Draws many data sets from a known population: the interval must hold the true mean about 95 times in 100, and
/// the standard error must be the spread of the means.
#[test]
fn intervals_cover_the_truth() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (trials, groups, per_group) = (300, 40, 3);
    let (mut covered, mut naive_errors, mut errors, mut means) = (0, 0.0, 0.0, Vec::new());
    for trial in 0..trials {
        let (mut values, mut names) = (Vec::new(), Vec::new());
        for g in 0..groups {
            let document = uniform(&mut rng);
            for _ in 0..per_group {
                values.push(0.8 * document + 0.2 * uniform(&mut rng));
                names.push(g.to_string());
            }
        }
        let clusters = Clusters::new(names.iter().map(String::as_str));
        let alone = Clusters::new(values.iter().map(|_| ""));
        means.push(mean(&values));
        let statistic = Statistic::Mean(values);
        let seed = interval_seed(trial, "t", "v", "all");
        let (low, high) = statistic.interval(&clusters, seed, 500).unwrap();
        covered += usize::from(low <= 0.5 && 0.5 <= high);
        errors += statistic.standard_error(&clusters).unwrap() / trials as f64;
        naive_errors += statistic.standard_error(&alone).unwrap() / trials as f64;
    }
    let rate = covered as f64 / trials as f64;
    assert!((0.89..=0.985).contains(&rate), "covered {rate}");
    let centre = mean(&means);
    let spread = (means.iter().map(|m| (m - centre).powi(2)).sum::<f64>() / (trials as f64 - 1.0)).sqrt();
    assert!((errors / spread - 1.0).abs() < 0.15, "standard error {errors}, spread {spread}");
    assert!(naive_errors < 0.8 * spread, "unclustered {naive_errors} would have passed too");
}
