//! `niah_*`: keys with values, in a text, in a repeated line, or among further ones.

use crate::made::Made;
use crate::subtasks::Hay;
use crate::words::{Fresh, Kind, listed, places};
use e2llm_plugin::haystack::{Haystack, Rng};

/// The repeated line, of noise for `vt` too.
pub(crate) const NOISE: &str =
    "The lake is calm. The hill is steep. The road is dry. On we walk. Home again by night.";

/// Depths in percent at which a needle may stand in connected text: 40 points from 0 to 100.
const DEPTHS: usize = 40;

/// A set of needles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needles {
    pub(crate) hay: Hay,
    pub(crate) key: Kind,
    pub(crate) value: Kind,
    pub(crate) keys: usize,
    pub(crate) values: usize,
    pub(crate) queries: usize,
}

impl Needles {
    fn sentence(&self, key: &str, value: &str) -> String {
        format!("One of the special magic {} for {key} is: {value}.", self.value.name(true))
    }

    /// A text with `n` sentences or lines of hay. The needles are the same for every `n`.
    pub(crate) fn make(&self, n: usize, essay: &Haystack, mut rng: Rng) -> Made {
        let mut fresh = Fresh::default();
        let mut pairs = Vec::new();
        for _ in 0..self.keys {
            let key = fresh.of(self.key, &mut rng);
            let values: Vec<_> = (0..self.values).map(|_| fresh.of(self.value, &mut rng)).collect();
            pairs.push((key, values));
        }
        let mut sentences: Vec<_> =
            pairs.iter().flat_map(|(key, values)| values.iter().map(|v| self.sentence(key, v))).collect();
        rng.shuffle(&mut sentences);
        let mut asked: Vec<_> = (0..self.keys).collect();
        rng.shuffle(&mut asked);
        asked.truncate(self.queries);
        let keys: Vec<_> = asked.iter().map(|i| pairs[*i].0.clone()).collect();
        let references: Vec<_> = asked.iter().flat_map(|i| pairs[*i].1.clone()).collect();
        let many = references.len() > 1;
        let (what, keys) = (self.value.name(many), listed(&keys));
        let all = if many { " List all of them." } else { "" };
        Made {
            context: match self.hay {
                Hay::Essay => within(essay, n, &sentences, &mut rng),
                Hay::Repeat => among(vec![NOISE.to_owned(); n], &sentences, &mut rng),
                Hay::Needles => {
                    let mut line = |_| {
                        let (key, value) = (fresh.of(self.key, &mut rng), fresh.of(self.value, &mut rng));
                        self.sentence(&key, &value)
                    };
                    let lines = (0..n).map(&mut line).collect();
                    among(lines, &sentences, &mut rng)
                }
            },
            instruction: format!("Which special magic {what} does the text give for {keys}?{all}"),
            answer_prefix: format!(
                "The special magic {what} that the text gives for {keys} {}",
                if many { "are" } else { "is" }
            ),
            references,
            evidence: sentences,
        }
    }
}

/// Needles between the first `n` sentences of a text, at depths that are drawn.
fn within(essay: &Haystack, n: usize, needles: &[String], rng: &mut Rng) -> String {
    let mut context = String::new();
    let mut push = |text: &str| {
        if !context.is_empty() && !text.is_empty() && !text.starts_with(char::is_whitespace) {
            context.push(' ');
        }
        context.push_str(text);
    };
    let mut done = 0;
    for (point, needle) in places(rng, DEPTHS, needles.len()).into_iter().zip(needles) {
        let percent = (point as f64 * 100.0 / (DEPTHS - 1) as f64).round() as usize;
        let at = n * percent / 100;
        push(essay.slice(done, at));
        push(needle);
        done = at;
    }
    push(essay.slice(done, n));
    context
}

/// Needles between lines, at places that are drawn.
fn among(lines: Vec<String>, needles: &[String], rng: &mut Rng) -> String {
    let places = places(rng, lines.len(), needles.len());
    let mut all = Vec::with_capacity(lines.len() + needles.len());
    let mut next = places.into_iter().zip(needles).peekable();
    for (at, line) in lines.into_iter().enumerate() {
        if let Some((_, needle)) = next.next_if(|(place, _)| *place == at) {
            all.push(needle.clone());
        }
        all.push(line);
    }
    all.join("\n")
}
