//! Overlap of two normalised answers.

use std::collections::BTreeMap;

/// F1 of the bags of words of two texts that are normalised: words parted by single spaces.
///
/// 0 without a common word, also when both are empty. Source: `f1_score` of the SQuAD 1.1 evaluation script.
pub fn f1(prediction: &str, gold: &str) -> f64 {
    let mut left = BTreeMap::new();
    let mut gold_words = 0;
    for word in words(gold) {
        *left.entry(word).or_insert(0usize) += 1;
        gold_words += 1;
    }
    let (mut same, mut predicted_words) = (0, 0);
    for word in words(prediction) {
        predicted_words += 1;
        if let Some(times) = left.get_mut(word).filter(|times| **times > 0) {
            *times -= 1;
            same += 1;
        }
    }
    if same == 0 {
        return 0.0;
    }
    let precision = f64::from(same) / f64::from(predicted_words);
    let recall = f64::from(same) / f64::from(gold_words);
    2.0 * precision * recall / (precision + recall)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ').filter(|word| !word.is_empty())
}
