//! Which option a free-text response to a multiple-choice question picks.
//!
//! Three protocols: LongBench v2's own two patterns, a strict reading for QuALITY, and a lenient one that accepts what
//! a person would. Each says which rule fired, so that a report can tell a wrong answer from an unreadable one.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::Record;
use crate::text::{python_trim, squad_normalise};
use crate::{Example, Prediction, Result};

/// The rule that read a letter out of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// LongBench v2's first pattern: `The correct answer is (X)`.
    OfficialParenthesised,
    /// LongBench v2's second pattern: `The correct answer is X`, where `X` may begin a word.
    OfficialBare,
    /// The response begins with `(X)`, or with a letter followed by one of `).:,` or by nothing.
    Leading,
    /// `answer is (X)` somewhere in the response.
    AnswerIs,
    /// The response is the text of an option after SQuAD normalisation.
    OptionText,
    /// A lenient phrase such as `Answer: x`, in any case.
    Phrase,
    /// Exactly one of the options' letters stands alone in the response.
    LoneLetter,
}

impl Rule {
    /// The rule's name in records, e.g. `option-text`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OfficialParenthesised => "official-parenthesised",
            Self::OfficialBare => "official-bare",
            Self::Leading => "leading",
            Self::AnswerIs => "answer-is",
            Self::OptionText => "option-text",
            Self::Phrase => "phrase",
            Self::LoneLetter => "lone-letter",
        }
    }
}

/// What a response picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pick {
    /// `A` for the first option, and so on.
    pub letter: char,
    /// The rule that fired.
    pub rule: Rule,
}

impl From<Option<Pick>> for Prediction {
    /// The letter and the rule; both empty where nothing was picked.
    fn from(pick: Option<Pick>) -> Self {
        pick.map_or_else(Self::default, |p| Self { text: p.letter.into(), rule: p.rule.name().into() })
    }
}

/// Completes a multiple-choice example: `meta` has `options` (taken from `choice_A` to `choice_D` where it has only
/// those) and `choice_protocol`, by which a metric knows how to read a response, and the one reference is a letter.
///
/// # Errors
/// An example without options, or whose answer is neither a letter nor the text of an option.
pub fn complete(record: &Record, mut example: Example, protocol: &str) -> Result<Example> {
    if !example.meta.contains_key("options") {
        let choices = ["choice_A", "choice_B", "choice_C", "choice_D"].map(|k| example.meta.get(k).cloned());
        if let Some(choices) = choices.into_iter().collect() {
            example.meta.insert("options".into(), Value::Array(choices));
        }
    }
    let options = options(&example);
    if options.is_empty() {
        return Err(record.error("field `meta.options` is missing or holds anything but texts"));
    }
    let known = |letter: &char| ('A'..).take(options.len()).any(|l| l == *letter);
    let gold = example.references.first().map_or("", String::as_str);
    let Some(letter) = gold_letter(gold, &options).filter(known) else {
        return Err(record.error(format!("the answer `{gold}` is neither a letter nor an option's text")));
    };
    example.references = vec![letter.into()];
    example.meta.insert("choice_protocol".into(), protocol.into());
    Ok(example)
}

/// The options of a multiple-choice example; none where `meta.options` is no list of texts.
pub fn options(example: &Example) -> Vec<String> {
    let list = example.meta.get("options").and_then(Value::as_array);
    let texts = list.map(|l| l.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<_>>());
    texts.flatten().unwrap_or_default()
}

/// A question with its options, each on a line of its own that begins with `(A)`, `(B)`, ...
pub fn question(question: &str, options: &[impl AsRef<str>]) -> String {
    let mut text = question.to_owned();
    for (letter, option) in ('A'..).zip(options) {
        text.extend(["\n(", letter.encode_utf8(&mut [0; 4]), ") ", option.as_ref()]);
    }
    text
}

macro_rules! patterns {
    ($($name:ident = $pattern:literal;)*) => {
        $(
            static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($pattern).expect("valid pattern"));
        )*
    };
}

patterns! {
    OFFICIAL_PARENTHESISED = r"The correct answer is \(([A-D])\)";
    OFFICIAL_BARE = r"The correct answer is ([A-D])";
    LEADING = r"^\s*(?:\(([A-D])\)|([A-D])\s*(?:[).:,]|$))";
    ANSWER_IS = r"(?i:answer\s+is)\s+\(([A-D])\)";
    PHRASE = r"(?i)\b(?:answer|choice|option)(?:\s+is)?\s*:?\s*\(?([A-D])(?:\)|\b)";
    LONE = r"\b([A-D])\b";
}

/// LongBench v2's extraction: every `*` removed, then `The correct answer is (X)`, then `The correct answer is X`,
/// case-sensitive, first match.
///
/// Its quirks are part of the official number: `The correct answer is Apple` picks A, and `(B)` alone nothing.
/// Source: `extract_answer` in LongBench v2's `pred.py`.
pub fn longbench_v2(response: &str) -> Option<Pick> {
    let response = response.replace('*', "");
    first(&OFFICIAL_PARENTHESISED, &response, Rule::OfficialParenthesised)
        .or_else(|| first(&OFFICIAL_BARE, &response, Rule::OfficialBare))
}

/// The strict reading used for QuALITY: a leading letter, then `answer is (X)`, then the exact text of an option.
///
/// A letter that begins a sentence (`A man ...`) is not a pick. `options` may be empty.
pub fn strict(response: &str, options: &[impl AsRef<str>]) -> Option<Pick> {
    first(&LEADING, response, Rule::Leading)
        .or_else(|| first(&ANSWER_IS, response, Rule::AnswerIs))
        .or_else(|| option_text(response, options))
}

/// The lenient reading: LongBench v2's patterns, the strict ones, phrases such as `answer: x` in any case, and at
/// last one letter standing alone.
///
/// A lone letter counts only when no other stands alone too. `A` counts as lone only at the end of the response or
/// before punctuation: elsewhere it is an article.
pub fn lenient(response: &str, options: &[impl AsRef<str>]) -> Option<Pick> {
    let response = response.replace('*', "");
    longbench_v2_whole_letter(&response)
        .or_else(|| strict(&response, options))
        .or_else(|| phrase(&response))
        .or_else(|| lone_letter(&response))
}

/// The letter of a gold answer given as a letter or as the text of an option.
pub fn gold_letter(gold: &str, options: &[impl AsRef<str>]) -> Option<char> {
    let mut chars = python_trim(gold).chars();
    match (chars.next(), chars.next()) {
        (Some(letter @ 'A'..='D'), None) => Some(letter),
        _ => option_text(gold, options).map(|pick| pick.letter),
    }
}

/// The official patterns without their quirk of reading `Apple` as A.
fn longbench_v2_whole_letter(response: &str) -> Option<Pick> {
    first(&OFFICIAL_PARENTHESISED, response, Rule::OfficialParenthesised).or_else(|| {
        let found = OFFICIAL_BARE.find(response)?;
        let whole = !response[found.end()..].starts_with(|c: char| c.is_alphanumeric() || c == '\'');
        whole.then(|| first(&OFFICIAL_BARE, response, Rule::OfficialBare)).flatten()
    })
}

fn option_text(response: &str, options: &[impl AsRef<str>]) -> Option<Pick> {
    let response = squad_normalise(response);
    if response.is_empty() {
        return None;
    }
    ('A'..)
        .zip(options)
        .find(|(_, option)| squad_normalise(option.as_ref()) == response)
        .map(|(letter, _)| Pick { letter, rule: Rule::OptionText })
}

/// The first phrase whose letter is no article: `answer is a man` picks nothing, `answer: a` picks A.
fn phrase(response: &str) -> Option<Pick> {
    PHRASE.captures_iter(response).find_map(|captures| {
        let letter = captures.get(1)?;
        let after = &response[letter.end()..];
        let marked = response[..letter.start()].ends_with([':', '(']);
        (marked || ends_a_choice(after) || !matches!(letter.as_str(), "a" | "A"))
            .then(|| pick(letter.as_str(), Rule::Phrase))
            .flatten()
    })
}

fn lone_letter(response: &str) -> Option<Pick> {
    let mut letters = LONE.find_iter(response).filter(|found| {
        found.as_str() != "A"
            || ends_a_choice(&response[found.end()..])
            || response[..found.start()].ends_with('(')
    });
    let letter = letters.next()?.as_str();
    letters.all(|other| other.as_str() == letter).then(|| pick(letter, Rule::LoneLetter)).flatten()
}

/// Whether what follows a letter shows that the letter was a choice and not a word of a sentence.
fn ends_a_choice(after: &str) -> bool {
    let after = after.trim_start_matches([' ', '\t']);
    after.is_empty() || after.starts_with([')', '.', ',', ':', ';', '\n', '\r', '"', ']'])
}

fn first(pattern: &Regex, response: &str, rule: Rule) -> Option<Pick> {
    let captures = pattern.captures(response)?;
    let letter = captures.iter().skip(1).flatten().next()?;
    pick(letter.as_str(), rule)
}

fn pick(letter: &str, rule: Rule) -> Option<Pick> {
    letter.chars().next().map(|letter| Pick { letter: letter.to_ascii_uppercase(), rule })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const OPTIONS: [&str; 4] = ["A red house.", "The sea", "Nobody knows", "both"];

    fn letter(pick: Option<Pick>) -> Option<(char, Rule)> {
        pick.map(|pick| (pick.letter, pick.rule))
    }

    #[test]
    fn official_keeps_its_quirks() {
        assert_eq!(
            letter(longbench_v2("**The correct answer is (C)**")),
            Some(('C', Rule::OfficialParenthesised))
        );
        assert_eq!(
            letter(longbench_v2("The correct answer is Apple, so (B)")),
            Some(('A', Rule::OfficialBare))
        );
        for nothing in ["", "(B)", "the correct answer is (B)", "The correct answer is\n(A)", "Answer: (A)"] {
            assert_eq!(longbench_v2(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn strict_reads_a_leading_letter_but_no_sentence() {
        for text in ["(B) The sea", " B", "B.", "B: the sea", "B)\n", "B\n"] {
            assert_eq!(letter(strict(text, &OPTIONS)), Some(('B', Rule::Leading)), "{text:?}");
        }
        for text in ["A man walks by", "", "E", "b", "Because (B)"] {
            assert_eq!(strict(text, &OPTIONS), None, "{text:?}");
        }
    }

    #[test]
    fn strict_falls_back_in_order() {
        assert_eq!(letter(strict("I think the answer is (D).", &OPTIONS)), Some(('D', Rule::AnswerIs)));
        assert_eq!(letter(strict("  the SEA! ", &OPTIONS)), Some(('B', Rule::OptionText)));
        assert_eq!(letter(strict("red house", &OPTIONS)), Some(('A', Rule::OptionText)));
        assert_eq!(strict("a", &["the", "b", "c", "d"]), None, "an empty normalised response is no option");
    }

    #[test]
    fn lenient_accepts_what_a_person_would() {
        for (text, expected) in [
            ("the correct answer is (b)", Some('B')),
            ("Answer: c", Some('C')),
            ("answer: a", Some('A')),
            ("My choice is D because it rains", Some('D')),
            ("The correct answer is Apple, so (B)", Some('B')),
            ("It must be B", Some('B')),
            ("It is C, surely C", Some('C')),
            ("It is B or C", None),
            ("A man walks by", None),
            ("The answer is a man", None),
            ("So I would say A.", Some('A')),
            ("", None),
        ] {
            assert_eq!(lenient(text, &OPTIONS).map(|pick| pick.letter), expected, "{text:?}");
        }
    }

    #[test]
    fn lenient_agrees_with_the_others_where_they_read_a_whole_letter() {
        for text in ["The correct answer is (B)", "The correct answer is D.", "(A) A red house.", "both"] {
            let other = longbench_v2(text).or_else(|| strict(text, &OPTIONS));
            assert_eq!(letter(lenient(text, &OPTIONS)), letter(other), "{text:?}");
        }
    }

    #[test]
    fn a_rule_is_named_as_it_is_written_in_records() {
        use Rule::*;
        for rule in [OfficialParenthesised, OfficialBare, Leading, AnswerIs, OptionText, Phrase, LoneLetter] {
            assert_eq!(serde_json::to_value(rule).unwrap(), rule.name());
        }
        let read = Prediction::from(strict("(B)", &OPTIONS));
        assert_eq!((read.text.as_str(), read.rule.as_str()), ("B", "leading"));
        assert_eq!(Prediction::from(None), Prediction::default());
    }

    #[test]
    fn options_stand_on_lines_of_their_own() {
        assert_eq!(question("Why?", &["x", "y z"]), "Why?\n(A) x\n(B) y z");
    }

    #[test]
    fn an_example_is_completed_or_refused() {
        let record = Record { place: "f, line 1".into(), value: Value::Null };
        let example = |meta: Value, gold: &str| Example {
            references: vec![gold.into()],
            meta: meta.as_object().cloned().unwrap(),
            ..Example::default()
        };
        let choices = json!({"choice_A": "a b", "choice_B": "c", "choice_C": "d", "choice_D": "e"});
        for (meta, gold) in [(choices, "The C"), (json!({"options": ["x", "y"]}), "B")] {
            let done = complete(&record, example(meta, gold), "p").unwrap();
            assert_eq!(done.references, ["B"]);
            assert_eq!(done.meta["choice_protocol"], "p");
            assert!(options(&done).len() >= 2);
        }
        for (meta, gold, what) in [
            (json!({}), "A", "meta.options"),
            (json!({"options": ["x", 3]}), "A", "meta.options"),
            (json!({"options": ["x", "y"]}), "C", "`C`"),
            (json!({"options": ["x", "y"]}), "z", "`z`"),
        ] {
            let error = complete(&record, example(meta, gold), "p").unwrap_err();
            assert!(error.message.starts_with("f, line 1") && error.message.contains(what), "{error}");
        }
    }

    #[test]
    fn gold_is_a_letter_or_an_option() {
        assert_eq!(gold_letter(" C", &OPTIONS), Some('C'));
        assert_eq!(gold_letter("The sea", &OPTIONS), Some('B'));
        assert_eq!(gold_letter("elsewhere", &OPTIONS), None);
    }
}
