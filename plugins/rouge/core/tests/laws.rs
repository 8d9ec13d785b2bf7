//! What holds for every score of every pair.

use e2llm_rouge::{Scorer, Selection, Variant};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-dA-D]{1,3}",
        2 => Just(" ".to_owned()),
        1 => prop::sample::select(vec![". ", "\n", ".", "running ", "ran ", "é", "\u{1c}", "\u{130}", "\u{212a}"])
            .prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..120).prop_map(|pieces| pieces.concat())
}

fn symmetric(variant: Variant) -> bool {
    // The unions of rougeLsum and pltrdy are taken over the reference's sentences.
    use Variant::{Rouge1, Rouge1Stem, Rouge2, Rouge2Stem, RougeL, RougeLStem};
    matches!(variant, Rouge1 | Rouge2 | RougeL | Rouge1Stem | Rouge2Stem | RougeLStem)
}

proptest! {
    #[test]
    fn scores_lie_between_0_and_1_and_f_is_symmetric(a in text(), b in text()) {
        let mut scorer = Scorer::default();
        let (ab, ba) = (scorer.score(&a, &[&b], Selection::all()), scorer.score(&b, &[&a], Selection::all()));
        for variant in Variant::ALL {
            let (x, y) = (ab[variant as usize], ba[variant as usize]);
            for value in [x.precision, x.recall, x.f] {
                prop_assert!((0.0..=1.0).contains(&value), "{}: {x:?}", variant.id());
            }
            if symmetric(variant) {
                prop_assert_eq!(x.f, y.f, "{}", variant.id());
            }
        }
    }

    #[test]
    fn a_text_against_itself_is_perfect(a in text()) {
        let scores = Scorer::default().score(&a, &[&a], Selection::all());
        let words = a.to_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).count();
        for variant in Variant::ALL {
            let f = scores[variant as usize].f;
            let units = match variant {
                Variant::Rouge2 | Variant::Rouge2Stem => words.saturating_sub(1),
                Variant::Pltrdy | Variant::PltrdyCompat => a.trim_matches('.').len(),
                _ => words,
            };
            prop_assert!(units == 0 || (f - 1.0).abs() < 1e-8, "{}: {f}", variant.id());
        }
    }

    #[test]
    fn what_was_scored_before_does_not_matter(a in text(), b in text(), c in text()) {
        let fresh = Scorer::default().score(&a, &[&b], Selection::all());
        let mut used = Scorer::default();
        used.score(&c, &[&a, &b], Selection::all());
        used.score(&b, &[&c], Selection::of(&[Variant::RougeLsumStem]));
        prop_assert_eq!(used.score(&a, &[&b], Selection::all()), fresh);
    }

    #[test]
    fn the_best_reference_counts_and_each_variant_stands_alone(a in text(), b in text(), c in text()) {
        let mut scorer = Scorer::default();
        let best = scorer.score(&a, &[&b, &c], Selection::all());
        let single = [&b, &c].map(|reference| scorer.score(&a, &[reference], Selection::all()));
        for variant in Variant::ALL {
            let at = variant as usize;
            prop_assert_eq!(best[at].f, single[0][at].f.max(single[1][at].f));
            prop_assert_eq!(scorer.score(&a, &[&b], Selection::of(&[variant]))[at], single[0][at]);
        }
    }
}

#[test]
fn empty_texts_score_0() {
    let mut scorer = Scorer::default();
    for (prediction, reference) in [("", "words"), ("words", ""), ("", ""), ("...", "words")] {
        let scores = scorer.score(prediction, &[reference], Selection::all());
        assert!(scores.iter().all(|score| score.f == 0.0), "{prediction:?} {reference:?}: {scores:?}");
    }
}

#[test]
fn compat_is_0_just_where_the_recursion_gets_too_deep() {
    // Equal texts of n words have a path of n + 1 cells; Python fails from 992 on.
    let words = |n: usize| (0..n).map(|i| format!("w{i} ")).collect::<String>();
    let mut scorer = Scorer::default();
    for (n, fails) in [(990, false), (991, true)] {
        let scores = scorer.score(&words(n), &[words(n)], Selection::all());
        assert!((scores[Variant::Pltrdy as usize].f - 1.0).abs() < 1e-8);
        assert_eq!(scores[Variant::PltrdyCompat as usize].f == 0.0, fails);
    }
}
