//! Text rules of the Python reference implementations, where Rust's own differ.
//!
//! The scripts that define the published numbers are Python, and their notion of white space and of a word is not
//! Rust's: `str.split()` also splits on U+001C..U+001F, and `\b` knows letters and numbers but no combining marks.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// A maximal run of what Python's `re` calls word characters (general categories L and N, and `_`).
#[expect(clippy::expect_used, reason = "a constant pattern, covered by the tests of this module")]
static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]+").expect("valid pattern"));

/// Whether Python's `str.isspace` holds for `c`: Unicode white space and U+001C..U+001F.
pub fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// The words of `text` as Python's `str.split()` yields them.
pub fn python_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_python_space).filter(|word| !word.is_empty())
}

/// `text` without white space at its ends, as Python's `str.strip()` leaves it.
pub fn python_trim(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

/// RULER's clean-up of an answer: control characters become line ends, the ends are trimmed before and after.
pub fn ruler_clean(answer: &str) -> String {
    let lines: String = python_trim(answer).chars().map(|c| if c < ' ' { '\n' } else { c }).collect();
    python_trim(&lines).to_owned()
}

/// Normalises an answer as SQuAD and LongBench do: lower-case, ASCII punctuation deleted, the articles
/// `a an the` replaced by a space, white space collapsed.
///
/// Source: `normalize_answer` of the SQuAD 1.1 evaluation script.
pub fn squad_normalise(text: &str) -> String {
    let mut text = text.to_lowercase();
    text.retain(|c| !c.is_ascii_punctuation());
    collapse(&without_articles(&text))
}

/// Normalises an answer as TriviaQA's script does: like [`squad_normalise`], but `_`, ASCII punctuation and the
/// quotes U+2018, U+2019, U+00B4 and U+0060 become spaces instead of vanishing.
///
/// Source: `normalize_answer` of the TriviaQA evaluation script.
pub fn trivia_normalise(text: &str) -> String {
    let quote = |c| matches!(c, '\u{2018}' | '\u{2019}' | '\u{b4}');
    let text: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_punctuation() || quote(c) { ' ' } else { c })
        .collect();
    collapse(&without_articles(&text))
}

/// Replaces `\b(a|an|the)\b` by a space: such a match is always a whole run of word characters.
fn without_articles(text: &str) -> std::borrow::Cow<'_, str> {
    WORD.replace_all(text, |word: &Captures<'_>| match &word[0] {
        "a" | "an" | "the" => " ".to_owned(),
        other => other.to_owned(),
    })
}

fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in python_words(text) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information_separators_split_words_as_in_python() {
        assert_eq!(
            python_words("a\u{1c}b\u{1f}c\u{85}d\u{a0}e").collect::<Vec<_>>(),
            ["a", "b", "c", "d", "e"]
        );
        assert_eq!(python_trim("\u{1d} x \u{3000}"), "x");
    }

    #[test]
    fn punctuation_is_ascii_only_and_deleted_in_squad_but_spaced_in_trivia() {
        assert_eq!(squad_normalise("The “U.S.”  rock-n-roll"), "“us” rocknroll");
        assert_eq!(trivia_normalise("The ‘U.S.’  rock_n-roll"), "u s rock n roll");
    }

    #[test]
    fn articles_end_at_marks_as_in_python_but_not_at_letters_or_digits() {
        assert_eq!(squad_normalise("a a1 \u{e0} ana the"), "a1 \u{e0} ana");
        // A combining acute accent is no word character for Python, so the `a` before it is an article.
        assert_eq!(squad_normalise("x a\u{301} y"), "x \u{301} y");
    }

    #[test]
    fn lower_case_is_unicode_with_final_sigma() {
        assert_eq!(squad_normalise("ΣΊΣΥΦΟΣ İX"), "σίσυφος i\u{307}x");
    }
}
