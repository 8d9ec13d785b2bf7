//! Tales: sequences of episodes, each a sequence of steps with several wordings.

use super::grammar::{Template, parse};
use super::world::Season;

/// A story that takes several episodes.
#[derive(Debug)]
pub(super) struct Tale {
    /// Seasons in which it can begin; empty for any.
    pub(super) seasons: Vec<Season>,
    /// Whether remarks on the weather would contradict it.
    pub(super) indoors: bool,
    /// Told in order, other things happening in between.
    pub(super) episodes: Vec<Vec<Step>>,
    /// What people remember of it, as a clause.
    pub(super) memory: Option<Template>,
}

/// A step of the plot.
#[derive(Debug)]
pub(super) enum Step {
    /// The next paragraph begins.
    Paragraph,
    /// One sentence, in one of several wordings.
    Sentence {
        /// May be left out.
        optional: bool,
        /// The wordings.
        wordings: Vec<Template>,
    },
}

/// Parses `tales.txt`.
///
/// # Errors
/// A line that means nothing, named.
pub(super) fn read(text: &str) -> Result<Vec<Tale>, String> {
    let mut tales: Vec<Tale> = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        if let Some(header) = line.strip_prefix("tale ") {
            tales.push(header_of(header)?);
            continue;
        }
        let Some(tale) = tales.last_mut() else {
            if line.is_empty() {
                continue;
            }
            return Err(format!("`{line}`: before the first tale"));
        };
        if line == "---" {
            tale.episodes.push(Vec::new());
            continue;
        }
        let Some(episode) = tale.episodes.last_mut() else { return Err(format!("`{line}`: no episode")) };
        match line.split_once(' ') {
            None if line.is_empty() => episode.push(Step::Paragraph),
            Some((mark @ ("-" | "?"), text)) => {
                episode.push(Step::Sentence { optional: mark == "?", wordings: vec![parse(text)?] });
            }
            Some(("|", text)) => match episode.last_mut() {
                Some(Step::Sentence { wordings, .. }) => wordings.push(parse(text)?),
                _ => return Err(format!("`{line}`: no step above")),
            },
            Some(("=", text)) => tale.memory = Some(parse(text)?),
            _ => return Err(format!("`{line}`: unknown mark")),
        }
    }
    Ok(tales)
}

fn header_of(header: &str) -> Result<Tale, String> {
    let mut tale = Tale { seasons: Vec::new(), indoors: false, episodes: vec![Vec::new()], memory: None };
    for flag in header.split(' ').skip(1) {
        match (flag, Season::named(flag)) {
            (_, Some(season)) => tale.seasons.push(season),
            ("indoors", None) => tale.indoors = true,
            _ => return Err(format!("tale {header}: unknown flag `{flag}`")),
        }
    }
    Ok(tale)
}
