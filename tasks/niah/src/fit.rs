//! Cuts a haystack to a length and puts needles at a depth.

use e2llm_plugin::haystack::{Haystack, Measure};
use e2llm_plugin::{Error, Result};

/// A text with needles.
#[derive(Debug, PartialEq)]
pub(crate) struct Fitted {
    /// The text.
    pub(crate) context: String,
    /// Its length, verified on the whole text.
    pub(crate) length: u64,
    /// For every needle, the share of the haystack before it, 0 to 1.
    pub(crate) positions: Vec<f64>,
}

/// Lengths of pieces do not quite add up for tokens: so much more text is at hand than they say is needed.
const SPARE: (u64, u64) = (8, 7);
/// Attempts to use room that the sum of the pieces hides.
const REFINEMENTS: usize = 4;

/// Length of text to have at hand for filling `budget`.
pub(crate) fn wanted(budget: u64) -> u64 {
    budget * SPARE.0 / SPARE.1 + 64
}

/// Sentences of a haystack that a text of `budget` may be made of.
pub(crate) fn usable(hay: &Haystack, budget: u64) -> usize {
    hay.within(wanted(budget))
}

/// The longest text of whole sentences that has room for the needles within `budget`. The first needle is put where
/// `depth` percent of the haystack end, moved back to the end of a sentence; further ones divide the rest evenly.
///
/// # Errors
/// A budget that the needles and one sentence exceed.
pub(crate) fn fit(
    hay: &Haystack,
    needles: &[&str],
    budget: u64,
    depth: f64,
    measure: &Measure,
) -> Result<Fitted> {
    let mut own = 0;
    for needle in needles {
        own += measure.piece(&format!(" {needle}"))?;
    }
    // no further than that, though the haystack of a grid may be longer: cells do not depend on each other
    let mut too_many = usable(hay, budget) + 1;
    let mut n = hay.within(budget.saturating_sub(own)).min(too_many - 1);
    let mut best: Option<(usize, Fitted)> = None;
    let mut refinements = 0;
    while n > 0 {
        let fitted = assemble(hay, n, needles, depth, measure)?;
        let next = if fitted.length <= budget {
            let more = hay.within(hay.length_of(n) + (budget - fitted.length)).min(too_many - 1);
            best = Some((n, fitted));
            refinements += 1;
            if more <= n || refinements > REFINEMENTS {
                break;
            }
            more
        } else {
            too_many = n;
            let excess = fitted.length - budget;
            hay.within(hay.length_of(n).saturating_sub(excess)).min(n - 1)
        };
        if best.as_ref().is_some_and(|(most, _)| next <= *most) {
            break;
        }
        n = next;
    }
    best.map(|(_, fitted)| fitted).ok_or_else(|| {
        let unit = measure.unit().name();
        Error::bad_request(format!(
            "{budget} {unit} have no room for the needle and one sentence of the haystack"
        ))
        .with_help("ask for a greater length or a smaller buffer")
    })
}

fn assemble(hay: &Haystack, n: usize, needles: &[&str], depth: f64, measure: &Measure) -> Result<Fitted> {
    let total = hay.length_of(n);
    let mut context = String::new();
    let (mut done, mut positions) = (0, Vec::new());
    for (i, needle) in needles.iter().enumerate() {
        let percent = depth + (100.0 - depth) * i as f64 / needles.len() as f64;
        // exact for whole percents: a product of integers below 2^53
        let target = (total as f64 * percent / 100.0).floor() as u64;
        let at = hay.within(target).min(n);
        push(&mut context, hay.slice(done, at));
        push(&mut context, needle);
        positions.push(if total == 0 { 0.0 } else { hay.length_of(at) as f64 / total as f64 });
        done = at;
    }
    push(&mut context, hay.slice(done, n));
    Ok(Fitted { length: measure.whole(&context)?, context, positions })
}

/// Adds text after a space, where it has no white space of its own.
fn push(context: &mut String, text: &str) {
    if !context.is_empty() && !text.is_empty() && !text.starts_with(char::is_whitespace) {
        context.push(' ');
    }
    context.push_str(text);
}
