//! Fills templates: one sentence at a time, by the people, things and times of a tale.

use super::grammar::{Part, Slot, Template, Words, capitalised, with_article};
use super::world::{Calendar, Phase, Pronoun, Town};
use crate::haystack::Rng;
use std::collections::{BTreeMap, BTreeSet};

/// What numbered slots of a tale were filled with.
#[derive(Debug, Clone, Default)]
pub(super) struct Memo {
    filled: BTreeMap<String, String>,
    /// Slots named in this episode: a short form is enough the next time.
    pub(super) recent: BTreeSet<String>,
}

/// Kinds whose entries are an adjective and a thing.
const QUALIFIED: [&str; 6] = ["keepsake", "tool", "book", "garment", "furnishing", "animal"];

/// What one sentence knows, and what it changes if it is kept.
pub(super) struct Voice<'a> {
    pub(super) words: &'a Words,
    pub(super) town: &'a Town,
    pub(super) rng: &'a mut Rng,
    /// People of the tale, where there is one: A, B and C.
    pub(super) cast: Option<[usize; 3]>,
    pub(super) memo: Memo,
    pub(super) calendar: Calendar,
    /// The person introduced.
    pub(super) person: Option<usize>,
    /// What is remembered, as a clause.
    pub(super) recall: Option<&'a str>,
    /// People who are not named by chance, because they play a part.
    pub(super) busy: BTreeSet<usize>,
    /// People whom the reader knows by their first names.
    pub(super) known: &'a BTreeSet<usize>,
    /// Draws of this sentence.
    pub(super) drawn: BTreeSet<String>,
}

/// Tries to draw something that the sentence has not said yet.
const TRIES: usize = 6;

impl Voice<'_> {
    /// Fills a template.
    ///
    /// # Errors
    /// A slot that means nothing here.
    pub(super) fn say(&mut self, template: &Template) -> Result<String, String> {
        let mut text = String::new();
        for part in template {
            match part {
                Part::Text(t) => text.push_str(t),
                Part::Choice(options) => {
                    let i = self.rng.below(options.len());
                    text.push_str(&self.say(&options[i])?);
                }
                Part::Slot(slot) => text.push_str(&self.slot(slot)?),
            }
        }
        Ok(text)
    }

    fn slot(&mut self, slot: &Slot) -> Result<String, String> {
        let kept = slot.key.as_ref().and_then(|k| self.memo.filled.get(k)).cloned();
        let mut text = match kept {
            Some(text) => text,
            None => self.fill(&slot.kind, slot.key.is_some())?,
        };
        if let Some(key) = &slot.key {
            self.memo.filled.insert(key.clone(), text.clone());
            let again = !self.memo.recent.insert(key.clone());
            if again && !slot.article && QUALIFIED.contains(&slot.kind.as_str()) {
                text = text.split_once(' ').map_or(text.clone(), |(_, thing)| thing.to_owned());
            }
        }
        if slot.article {
            text = with_article(&text);
        }
        Ok(if slot.capital { capitalised(&text) } else { text })
    }

    fn fill(&mut self, kind: &str, numbered: bool) -> Result<String, String> {
        if let Some(text) = self.of_the_cast(kind, numbered) {
            return Ok(text);
        }
        let text = match kind {
            "town" => self.town.name.clone(),
            "river" => self.town.river.clone(),
            "phase" => self.calendar.phase().name().to_owned(),
            "recall" => self.recall.ok_or("nothing to recall")?.to_owned(),
            "sky" => self.draw(&format!("sky{}", self.calendar.season().name()))?,
            "when" => self.any_time()?,
            "morning" => self.time(Phase::Morning)?,
            "afternoon" => self.time(Phase::Afternoon)?,
            "evening" => self.time(Phase::Evening)?,
            "weekday" => self.other("weekdays", self.calendar.weekday()),
            "month" => self.other("months", self.calendar.month()),
            "pname" => self.passer_by(|p, known| if known { p.name.clone() } else { p.full() }),
            "workplace" => self.passer_by(|p, _| p.shop.clone()),
            "street" => self.passer_by(|p, _| p.street.clone()),
            _ => self.draw(kind)?,
        };
        Ok(text)
    }

    /// What A, B, C and the person introduced fill in.
    fn of_the_cast(&self, kind: &str, numbered: bool) -> Option<String> {
        let person = |i: usize| &self.town.people[i];
        if let Some(p) = self.person.map(person) {
            match kind {
                "P.full" => return Some(p.full()),
                "P.job" => return Some(p.job.clone()),
                "P.shop" | "pshop" => return Some(p.shop.clone()),
                "P.street" => return Some(p.street.clone()),
                "P.trait" => return Some(p.trait_.clone()),
                _ => {}
            }
        }
        let [a, b, c] = self.cast?.map(person);
        let pronoun = |p: &super::world::Person, form| Some(p.pronoun(form).to_owned());
        match kind {
            "A" => Some(a.name.clone()),
            "B" => Some(b.name.clone()),
            "C" => Some(c.name.clone()),
            "he" => pronoun(a, Pronoun::He),
            "him" => pronoun(a, Pronoun::Him),
            "his" => pronoun(a, Pronoun::His),
            "himself" => pronoun(a, Pronoun::Himself),
            "bhe" => pronoun(b, Pronoun::He),
            "bhim" => pronoun(b, Pronoun::Him),
            "bhis" => pronoun(b, Pronoun::His),
            "bself" => pronoun(b, Pronoun::Himself),
            "che" => pronoun(c, Pronoun::He),
            "chim" => pronoun(c, Pronoun::Him),
            "chis" => pronoun(c, Pronoun::His),
            "job" => Some(a.job.clone()),
            "bjob" => Some(b.job.clone()),
            "shop" => Some(a.shop.clone()),
            "bshop" => Some(b.shop.clone()),
            "cshop" => Some(c.shop.clone()),
            "street" if !numbered => Some(a.street.clone()),
            _ => None,
        }
    }

    /// An entry of a list that neither this sentence nor the tale has used.
    fn draw(&mut self, list: &str) -> Result<String, String> {
        let entries = self.words.list(list);
        if entries.is_empty() {
            return Err(format!("no word list `{list}`"));
        }
        let mut text = String::new();
        for _ in 0..TRIES {
            let entry = self.rng.below(entries.len());
            text = self.say(&entries[entry])?;
            if !self.drawn.contains(&text) && !self.memo.filled.values().any(|t| *t == text) {
                break;
            }
        }
        self.drawn.insert(text.clone());
        Ok(text)
    }

    /// An entry of a list, but not the one at `index`.
    fn other(&mut self, list: &str, index: usize) -> String {
        let entries = self.words.raw(list);
        let step = 1 + self.rng.below(entries.len().saturating_sub(1));
        entries.get((index + step) % entries.len().max(1)).cloned().unwrap_or_default()
    }

    /// Something of an inhabitant who plays no part and was not named in this sentence.
    fn passer_by(&mut self, of: impl Fn(&super::world::Person, bool) -> String) -> String {
        let mut i = 0;
        for _ in 0..8 * TRIES {
            i = self.rng.below(self.town.people.len());
            if self.busy.insert(i) {
                break;
            }
        }
        of(&self.town.people[i], self.known.contains(&i))
    }

    /// Goes on in time, and says so.
    fn any_time(&mut self) -> Result<String, String> {
        let month = self.calendar.month();
        let phase = Phase::ALL[self.rng.below(3)];
        if self.rng.chance(25) && self.calendar.later(phase) {
            return self.draw("samelater");
        }
        let days = self.pass(phase);
        if self.calendar.month() != month && self.calendar.day_of_month() < 5 {
            return self.today("newmonth");
        }
        self.day_named(days, phase)
    }

    /// Goes on to some morning, afternoon or evening, and says so.
    fn time(&mut self, phase: Phase) -> Result<String, String> {
        if self.rng.chance(50) && self.calendar.later(phase) {
            return self.draw("samelater");
        }
        let days = self.pass(phase);
        self.day_named(days, phase)
    }

    fn pass(&mut self, phase: Phase) -> usize {
        let days = [1, 1, 1, 2, 2, 3][self.rng.below(6)];
        self.calendar.pass(days, phase);
        days
    }

    fn day_named(&mut self, days: usize, phase: Phase) -> Result<String, String> {
        if days == 1 && self.rng.chance(40) {
            return self.draw("nextday");
        }
        self.today(&format!("when{}", phase.name()))
    }

    /// An entry of a list of times, in which `{weekday}` and `{month}` are those of today.
    fn today(&mut self, list: &str) -> Result<String, String> {
        let entries = self.words.list(list);
        let Some(entry) = entries.get(self.rng.below(entries.len())) else {
            return Err(format!("no list `{list}`"));
        };
        let mut text = String::new();
        for part in entry {
            text.push_str(&match part {
                Part::Slot(s) if s.kind == "weekday" => {
                    self.words.raw("weekdays")[self.calendar.weekday()].clone()
                }
                Part::Slot(s) if s.kind == "month" => self.words.raw("months")[self.calendar.month()].clone(),
                other => self.say(&vec![other.clone()])?,
            });
        }
        Ok(text)
    }
}
