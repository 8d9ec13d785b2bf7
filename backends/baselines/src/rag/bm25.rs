//! BM25, the lexical ranking.
//!
//! Source: Robertson and Zaragoza 2009, in Lucene's form (`BM25Similarity`, which since version 8 leaves out the
//! constant `k1 + 1`): a text's score is the sum over the query's words, each as often as it stands there, of
//! `idf * f / (f + k1 (1 - b + b n / mean n))` with `idf = ln(1 + (N - m + 0.5) / (m + 0.5))`, f the word's count in the text
//! of n words, m the number of texts with it among N. k1 = 1.2 and b = 0.75 unless told otherwise.
//!
//! Ours: words are runs of letters and digits in lower case, without stemming or stop words; lengths are exact (Lucene
//! keeps them in a byte).

use std::collections::HashMap;

/// Word counts of texts.
pub(super) struct Bm25 {
    texts: Vec<(HashMap<String, u32>, usize)>,
    /// In how many texts a word is.
    spread: HashMap<String, usize>,
    mean_words: f64,
    k1: f64,
    b: f64,
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

impl Bm25 {
    pub(super) fn new<'a>(texts: impl Iterator<Item = &'a str>, k1: f64, b: f64) -> Self {
        let mut spread = HashMap::new();
        let mut counted = Vec::new();
        for text in texts {
            let mut counts = HashMap::<String, u32>::new();
            let mut n = 0;
            for word in words(text) {
                n += 1;
                let count = counts.entry(word.clone()).or_default();
                *count += 1;
                if *count == 1 {
                    *spread.entry(word).or_default() += 1;
                }
            }
            counted.push((counts, n));
        }
        let all: usize = counted.iter().map(|(_, n)| n).sum();
        let mean_words = all as f64 / counted.len().max(1) as f64;
        Self { texts: counted, spread, mean_words, k1, b }
    }

    /// Each text's score for a query.
    pub(super) fn scores(&self, query: &str) -> Vec<f64> {
        let query: Vec<_> = words(query).collect();
        let n = self.texts.len() as f64;
        let score = |(counts, words): &(HashMap<String, u32>, usize)| {
            let norm = self.k1 * (1.0 - self.b + self.b * *words as f64 / self.mean_words);
            let of_word = |word: &String| {
                let Some(&f) = counts.get(word) else { return 0.0 };
                let m = self.spread[word] as f64;
                let idf = (1.0 + (n - m + 0.5) / (m + 0.5)).ln();
                idf * f64::from(f) / (f64::from(f) + norm)
            };
            query.iter().map(of_word).sum()
        };
        self.texts.iter().map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_formula() {
        let texts = ["The cat sat.", "A dog, a cat; a dog!", "nothing here"];
        let scores = Bm25::new(texts.into_iter(), 1.2, 0.75).scores("dog Cat dog");
        // 3, 6 and 2 words, 11/3 on average; `cat` is in two texts, `dog` in one.
        let norm = |n: f64| 1.2 * (0.25 + 0.75 * n / (11.0 / 3.0));
        let (cat, dog) = ((1.0 + 1.5 / 2.5f64).ln(), (1.0 + 2.5 / 1.5f64).ln());
        let expected =
            [cat / (1.0 + norm(3.0)), cat / (1.0 + norm(6.0)) + 2.0 * dog * 2.0 / (2.0 + norm(6.0)), 0.0];
        for (got, want) in scores.iter().zip(expected) {
            assert!((got - want).abs() < 1e-12, "{scores:?} {expected:?}");
        }
    }

    #[test]
    fn nothing_to_compare_is_no_error() {
        assert_eq!(Bm25::new(["", "?!"].into_iter(), 1.2, 0.75).scores("dog"), [0.0, 0.0]);
        assert!(Bm25::new([].into_iter(), 1.2, 0.75).scores("dog").is_empty());
    }
}
