use super::super::samples::Part;
use super::*;

fn values(samples: &Samples, id: &str) -> Vec<Option<f64>> {
    samples.places().into_iter().map(|p| samples.score(samples.column(id), p)).collect()
}

#[test]
fn samples_are_in_the_order_of_the_plan_whenever_they_came() {
    let mut samples = Samples::default();
    for index in [5000, 2, 0] {
        samples.add(&answered(index, &format!("d{index}"), &[("a", index as f64)]));
    }
    assert_eq!((samples.len(), samples.places()), (3, vec![0, 2, 5000]));
    assert_eq!(
        samples.places().into_iter().map(|p| samples.id(p)).collect::<Vec<_>>(),
        ["s0", "s2", "s5000"]
    );
    assert_eq!(values(&samples, "a"), [Some(0.0), Some(2.0), Some(5000.0)], "0 is a value");
    assert_eq!(values(&samples, "b"), [None; 3]);
    assert!(samples.failed(1), "where nothing is, nothing was answered");
}

#[test]
fn the_last_one_at_a_place_counts_alone() {
    let mut samples: Samples =
        [failed(0, "x", "first"), failed(1, "x", "second"), answered(2, "x", &[("a", 1.0)])].iter().collect();
    assert_eq!(samples.first_error(), Some((0, "first")));
    let mut other = in_slice(answered(0, "y", &[("b", 0.5)]), "depth", "50");
    other.id = "another".into();
    samples.add(&other);
    let mut unscored = answered(2, "", &[("a", 1.0)]);
    unscored.score_error = Some("no options".into());
    samples.add(&unscored);
    assert_eq!((samples.len(), samples.first_error()), (3, Some((1, "second"))));
    assert_eq!(samples.id(0), "another");
    assert_eq!((samples.failed(0), samples.failed(2), samples.is_answered(2)), (false, true, true));
    assert_eq!((values(&samples, "a"), values(&samples, "b")), (vec![None; 3], vec![Some(0.5), None, None]));
    assert_eq!([0, 1, 2].map(|p| samples.tokens().prompt.get(p)), [100, 0, 100]);
    assert_eq!([0, 1, 2].map(|p| samples.document(p)), [2, 1, 0], "of x, of y, of none");
    assert_eq!(samples.slice_sets()[samples.slice_set(0)]["depth"], "50");

    samples.add(&failed(0, "y", "again"));
    assert_eq!(samples.first_error(), Some((0, "again")));
    assert_eq!((values(&samples, "b"), samples.tokens().prompt.get(0)), (vec![None; 3], 0));
    let part = Part { samples: &samples, places: &samples.places() };
    assert_eq!(part.scores(samples.column("b")), [0.0; 3], "a failed sample counts as 0");
}

#[test]
fn times_are_forgotten_alone() {
    let mut samples: Samples = [answered(0, "x", &[("a", 1.0)])].iter().collect();
    assert_eq!(TaskTimings::of("t", &samples).first_token.map(|t| t.mean), Some(0.5));
    samples.forget_times();
    let timings = TaskTimings::of("t", &samples);
    assert_eq!((timings.first_token.map(|t| t.mean), timings.peak_memory), (Some(0.0), None));
    assert_eq!((timings.n, timings.generated_tokens, values(&samples, "a")), (1, 11, vec![Some(1.0)]));
}
