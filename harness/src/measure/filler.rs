//! Texts of a given length.

use e2llm_backend::TokenCounter;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Plain words, so that tokenizers make of them about what they make of prose.
const WORDS: [&str; 48] = [
    "the",
    "a",
    "one",
    "river",
    "house",
    "morning",
    "letter",
    "teacher",
    "garden",
    "winter",
    "street",
    "village",
    "market",
    "doctor",
    "window",
    "story",
    "mountain",
    "harbour",
    "bridge",
    "brother",
    "carried",
    "found",
    "left",
    "remembered",
    "painted",
    "followed",
    "opened",
    "crossed",
    "answered",
    "waited",
    "small",
    "quiet",
    "old",
    "bright",
    "heavy",
    "early",
    "slowly",
    "again",
    "near",
    "behind",
    "before",
    "after",
    "with",
    "without",
    "under",
    "and",
    "but",
    "because",
];
/// Words of a sentence.
const SENTENCE: u64 = 12;

/// Random sentences of `tokens` tokens together, at most one sentence more; the same for the same seed.
pub fn filler(counter: &TokenCounter, tokens: usize, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut below = |n: u64| (rng.next_u64() % n) as usize;
    let (mut text, mut sum) = (String::new(), 0);
    while sum < tokens {
        let start = text.len();
        for i in 0..SENTENCE {
            let word = WORDS[below(WORDS.len() as u64)];
            match i {
                0 => {
                    text.extend(word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)))
                }
                _ => text.extend([" ", word]),
            }
        }
        text.push_str(". ");
        sum += counter(&text[start..]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_text_has_the_length_asked_for() {
        let counter: TokenCounter = Arc::new(|text| text.split_whitespace().count());
        for tokens in [1, 100, 1000] {
            let n = counter(&filler(&counter, tokens, 3));
            assert!(n >= tokens && n < tokens + SENTENCE as usize, "{tokens}: {n}");
        }
        assert_eq!(filler(&counter, 50, 3), filler(&counter, 50, 3));
        assert_ne!(filler(&counter, 50, 3), filler(&counter, 50, 4));
        assert!(filler(&counter, 0, 3).is_empty());
    }
}
