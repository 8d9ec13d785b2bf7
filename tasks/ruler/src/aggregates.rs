//! `vt`, `cwe` and `fwe`: chains of variables, common words, frequent words.

use crate::made::Made;
use crate::needles::NOISE;
use crate::words::{Fresh, places};
use e2llm_plugin::haystack::Rng;

/// Assignments after the first one of a chain.
const HOPS: usize = 4;

/// Common words of a list.
const COMMON: usize = 10;

/// How often the common and the other words of a list occur; less often in short texts.
const TIMES: [(usize, usize); 2] = [(30, 3), (6, 1)];
/// Length below which a text is short.
const SHORT: u64 = 4096;

/// Exponent of Zipf's law.
const ALPHA: f64 = 2.0;
/// The sum of all k^-2.
const ZETA: f64 = std::f64::consts::PI * std::f64::consts::PI / 6.0;
/// What the most frequent coded word is replaced by.
const DOTS: &str = "...";
/// Frequent words that are asked for.
const FREQUENT: usize = 3;

/// A chain of variables in `n` lines of noise.
pub(crate) fn chain(n: usize, mut rng: Rng) -> Made {
    let mut fresh = Fresh::default();
    let names: Vec<_> = (0..=HOPS).map(|_| fresh.variable(&mut rng)).collect();
    let value = (10_000 + rng.below(90_000)).to_string();
    let statement = |i: usize| match i {
        0 => format!("VAR {} = {value}", names[0]),
        _ => format!("VAR {} = VAR {}", names[i], names[i - 1]),
    };
    let statements: Vec<_> = (0..names.len()).map(statement).collect();
    let places = places(&mut rng, n, statements.len());
    let mut lines = Vec::with_capacity(n);
    let mut next = places.into_iter().zip(&statements).peekable();
    for at in 0..n {
        match next.next_if(|(place, _)| *place == at) {
            Some((_, statement)) => lines.push(format!("{statement} {NOISE}")),
            None => lines.push(NOISE.to_owned()),
        }
    }
    let question =
        format!("Which variables have the value {value}, from the number itself or by way of others?");
    Made {
        context: lines.join("\n"),
        instruction: format!("Question: {question}"),
        answer_prefix: format!("Answer: These {} variables have the value {value}:", names.len()),
        references: names,
        evidence: statements,
    }
}

/// The least number of lines that a chain needs.
pub(crate) const CHAIN_LEAST: usize = HOPS + 1;

/// A list of ten common words and `n` others.
pub(crate) fn common(n: usize, length: u64, mut rng: Rng) -> Made {
    let (often, seldom) = TIMES[usize::from(length < SHORT)];
    let mut fresh = Fresh::default();
    let words: Vec<_> = (0..COMMON + n).map(|_| fresh.spoken(&mut rng)).collect();
    let times = |i: usize| if i < COMMON { often } else { seldom };
    let mut all: Vec<_> =
        words.iter().enumerate().flat_map(|(i, word)| std::iter::repeat_n(word.as_str(), times(i))).collect();
    rng.shuffle(&mut all);
    let list: Vec<_> = all.iter().enumerate().map(|(i, word)| format!("{}. {word}", i + 1)).collect();
    Made {
        context: list.join(" "),
        instruction: format!("Question: Which {COMMON} words are the most common in the list?"),
        answer_prefix: format!("Answer: The {COMMON} most common words in the list are:"),
        references: words[..COMMON].to_vec(),
        evidence: words[..COMMON].to_vec(),
    }
}

/// About `n` coded words by Zipf's law, of as many different ones as a text of this length has in RULER.
pub(crate) fn frequent(n: usize, length: u64, mut rng: Rng) -> Made {
    let different = usize::try_from(length / 50).unwrap_or(usize::MAX).max(FREQUENT + 2);
    let mut fresh = Fresh::default();
    let mut words: Vec<_> = (0..different).map(|_| fresh.coded(&mut rng)).collect();
    words[0] = DOTS.to_owned();
    let times = |rank: usize| (n as f64 * (rank as f64).powf(-ALPHA) / ZETA) as usize;
    let mut all: Vec<_> = words
        .iter()
        .enumerate()
        .flat_map(|(i, word)| std::iter::repeat_n(word.as_str(), times(i + 1)))
        .collect();
    rng.shuffle(&mut all);
    let asked = words[1..=FREQUENT].to_vec();
    Made {
        context: all.join(" "),
        instruction: format!(
            "Question: Which {FREQUENT} coded words occur most often in the text? Name them without explanation."
        ),
        answer_prefix: "Answer: The three coded words that occur most often in the text are:".into(),
        references: asked.clone(),
        evidence: asked,
    }
}

/// The least number of coded words with which the three most frequent ones differ in number.
pub(crate) const FREQUENT_LEAST: usize = 80;
