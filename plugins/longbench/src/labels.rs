//! Scores of short answers that are labels or numbers.

use std::sync::LazyLock;

use regex::Regex;

/// Digits as Python's `\d` has them.
#[expect(clippy::expect_used, reason = "a constant pattern, covered by the tests of this module")]
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d+").expect("valid pattern"));
#[expect(clippy::expect_used, reason = "a constant pattern, covered by the tests of this module")]
static PARAGRAPH: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"Paragraph (\d+)").expect("valid pattern"));

/// One share of the labels that the answer names, where `gold` is among them; labels that are part of it do not count.
pub fn classification(prediction: &str, gold: &str, labels: &[String]) -> f64 {
    let named: Vec<_> = named(prediction, labels).into_iter().filter(|l| !is_part(l, gold)).collect();
    share(&named, gold)
}

/// The same as LongBench's script computes it: it takes labels out of a list while it walks over it, so that the label
/// after one taken out is passed over and may stay.
///
/// Source: `classification_score` of LongBench's `metrics.py`.
pub fn classification_compat(prediction: &str, gold: &str, labels: &[String]) -> f64 {
    let mut named = named(prediction, labels);
    let mut at = 0;
    while let Some(&label) = named.get(at) {
        if is_part(label, gold)
            && let Some(first) = named.iter().position(|l| *l == label)
        {
            named.remove(first);
        }
        at += 1;
    }
    share(&named, gold)
}

fn named<'a>(prediction: &str, labels: &'a [String]) -> Vec<&'a str> {
    labels.iter().map(String::as_str).filter(|l| prediction.contains(l)).collect()
}

fn is_part(label: &str, gold: &str) -> bool {
    label != gold && gold.contains(label)
}

fn share(named: &[&str], gold: &str) -> f64 {
    if named.contains(&gold) { 1.0 / named.len() as f64 } else { 0.0 }
}

/// The number of a paragraph in the right answer, `Paragraph 7`.
pub fn paragraph(gold: &str) -> Option<&str> {
    Some(PARAGRAPH.captures(gold)?.get(1)?.as_str())
}

/// The share of the numbers in the answer that are `gold`; 0 without a number.
///
/// Source: `retrieval_score` and `count_score` of LongBench's `metrics.py`.
pub fn numbers(prediction: &str, gold: &str) -> f64 {
    let (mut all, mut right) = (0u32, 0u32);
    for number in NUMBER.find_iter(prediction) {
        all += 1;
        right += u32::from(number.as_str() == gold);
    }
    if all == 0 { 0.0 } else { f64::from(right) / f64::from(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[&str]) -> Vec<String> {
        all.iter().map(|l| (*l).to_owned()).collect()
    }

    /// The values are those of the Python functions.
    #[test]
    fn labels_are_found_as_the_script_finds_them() {
        let all = labels(&["a", "ab", "abc", "x"]);
        for (prediction, gold, clean, compat) in [
            ("abc", "abc", 1.0, 0.5),
            ("abc or x", "abc", 0.5, 1.0 / 3.0),
            ("x", "x", 1.0, 1.0),
            ("ab", "ab", 1.0, 1.0),
            ("x", "abc", 0.0, 0.0),
            ("", "x", 0.0, 0.0),
        ] {
            assert_eq!(classification(prediction, gold, &all), clean, "{prediction} {gold}");
            assert_eq!(classification_compat(prediction, gold, &all), compat, "{prediction} {gold}");
        }
    }

    #[test]
    fn numbers_are_counted() {
        assert_eq!(paragraph("Paragraph 12"), Some("12"));
        assert_eq!(paragraph("12"), None);
        for (prediction, share) in
            [("Paragraph 12", 1.0), ("12, or 3", 0.5), ("112", 0.0), ("none", 0.0), ("12 12 1", 2.0 / 3.0)]
        {
            assert_eq!(numbers(prediction, "12"), share, "{prediction}");
        }
    }
}
