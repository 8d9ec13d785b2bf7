//! Subsequence recovery: answers quote the compressed prompt, and get back what was left out of the quotation.
//!
//! Source: LongLLMLingua, section 4.4 and algorithm 1. From left to right, the longest run of the answer's tokens that
//! stands in the compressed prompt is replaced by the shortest stretch of the original that it was made of.
//!
//! Ours: each kept token knows its place in the original, so nothing is searched there; tokens are equal where their
//! texts are, white space aside; as in upstream's code a run has two tokens at least and no gap beyond ten.

use std::ops::Range;

/// Tokens left out at once beyond which a run ends.
const WIDEST_GAP: usize = 10;

/// A token that was kept: its text and its place among the original's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) bytes: Range<usize>,
    pub(super) place: usize,
}

/// The answer with its quotations made whole. `tokens` are the answer's, by the bytes each has there.
pub(super) fn recovered(answer: &str, tokens: &[Range<usize>], original: &str, kept: &[Kept]) -> String {
    let text = |i: usize| answer[tokens[i].clone()].trim();
    let source = |i: usize| original[kept[i].bytes.clone()].trim();
    let continues = |i: usize| {
        let (a, b) = (kept[i - 1].place, kept[i].place);
        a < b && b - a <= WIDEST_GAP + 1
    };
    let run = |at: usize, from: usize| {
        let mut n = 0;
        while at + n < tokens.len()
            && from + n < kept.len()
            && text(at + n) == source(from + n)
            && (n == 0 || continues(from + n))
        {
            n += 1;
        }
        n
    };
    let mut out = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < tokens.len() {
        // The longest run; of equals that of the shortest stretch.
        let stretch = |from: usize, n: usize| kept[from + n - 1].place - kept[from].place + 1;
        let runs = (0..kept.len()).map(|from| (from, run(at, from))).filter(|(_, n)| *n > 1);
        let best = runs.min_by_key(|&(from, n)| (usize::MAX - n, stretch(from, n), from));
        let Some((from, n)) = best else {
            at += 1;
            continue;
        };
        if stretch(from, n) > n {
            let whole = answer[tokens[at].start..].trim_start();
            let start = answer.len() - whole.len();
            out.push_str(&answer[copied..start]);
            out.push_str(original[kept[from].bytes.start..kept[from + n - 1].bytes.end].trim());
            copied = tokens[at + n - 1].end;
        }
        at += n;
    }
    out.push_str(&answer[copied..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words, each with the white space before it.
    fn words(text: &str) -> Vec<Range<usize>> {
        let mut out = Vec::new();
        let mut start = 0;
        for (i, c) in text.char_indices() {
            if c == ' ' && i > start {
                out.push(start..i);
                start = i;
            }
        }
        out.push(start..text.len());
        out
    }

    fn kept(original: &str, places: &[usize]) -> Vec<Kept> {
        let words = words(original);
        places.iter().map(|&place| Kept { bytes: words[place].clone(), place }).collect()
    }

    fn recover(original: &str, places: &[usize], answer: &str) -> String {
        recovered(answer, &words(answer), original, &kept(original, places))
    }

    #[test]
    fn quotations_get_back_what_was_left_out() {
        let original = "he won in the year 2009 for the Nobel Prize in Physics";
        assert_eq!(
            recover(original, &[1, 4, 5, 8, 11], "In year 2009 Nobel Physics !"),
            "In year 2009 for the Nobel Prize in Physics !"
        );
        assert_eq!(recover(original, &[1, 4, 5], "year 2009"), "year 2009", "nothing was left out");
        assert_eq!(recover(original, &[1, 5], "2009 won"), "2009 won", "not in this order");
        assert_eq!(recover(original, &[1, 5], "2009"), "2009", "a single token");
        assert_eq!(recover(original, &[], ""), "");
    }

    #[test]
    fn the_shortest_stretch_is_taken_and_wide_gaps_end_a_run() {
        let original = "a x x x b c a y b";
        assert_eq!(recover(original, &[0, 4, 6, 8], "say a b"), "say a y b");
        let wide = format!("a {}b", "x ".repeat(WIDEST_GAP + 1));
        assert_eq!(recover(&wide, &[0, WIDEST_GAP + 2], "a b"), "a b");
        let near = format!("a {}b", "x ".repeat(WIDEST_GAP));
        assert_eq!(recover(&near, &[0, WIDEST_GAP + 1], "a b"), near);
    }
}
