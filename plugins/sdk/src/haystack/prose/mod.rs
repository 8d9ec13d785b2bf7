//! Connected prose without end: what happens in a small town, told episode by episode.
//!
//! A haystack must read like text, repeat nothing and answer no question. Here a seed makes a town of people with
//! trades, places and habits; tales with a cause, a turn and an end (`tales.txt`) run in parallel among them, and
//! what came of a tale is talked about later. A sentence that was said before, or begins like the one before it, is
//! told in another way or not at all. There are no digits in it.

mod grammar;
mod tales;
mod voice;
mod world;

use crate::haystack::Rng;
use crate::haystack::sentences;
use crate::{Error, Result};
use grammar::{Template, Words, capitalised};
use std::collections::{BTreeSet, VecDeque};
use std::sync::LazyLock;
use tales::{Step, Tale};
use voice::{Memo, Voice};
use world::{Calendar, Town};

/// What every story is made from.
struct Book {
    words: Words,
    tales: Vec<Tale>,
}

static BOOK: LazyLock<std::result::Result<Book, String>> = LazyLock::new(|| {
    Ok(Book {
        words: Words::parse(include_str!("words.txt"))?,
        tales: tales::read(include_str!("tales.txt"))?,
    })
});

/// Attempts to say something new before a step is left out.
const ATTEMPTS: usize = 24;
/// Tales under way at the same time.
const THREADS: usize = 3;
/// What people still talk about.
const MEMORIES: usize = 8;

/// A tale under way.
#[derive(Debug)]
struct Thread {
    tale: usize,
    next: usize,
    cast: [usize; 3],
    memo: Memo,
}

/// A story without end: equal seeds tell equal stories.
pub(crate) struct Prose {
    book: &'static Book,
    town: Town,
    rng: Rng,
    calendar: Calendar,
    threads: Vec<Thread>,
    deck: Vec<usize>,
    known: BTreeSet<usize>,
    appearances: Vec<usize>,
    /// All sentences so far.
    said: BTreeSet<String>,
    /// The first three words of the last sentence.
    opening: String,
    memories: VecDeque<(String, [usize; 3])>,
    begun: bool,
}

/// Who and what a sentence may speak of, besides the town.
#[derive(Default)]
struct About<'a> {
    cast: Option<[usize; 3]>,
    memo: Option<&'a mut Memo>,
    person: Option<usize>,
    recall: Option<(String, [usize; 3])>,
}

fn broken(e: impl std::fmt::Display) -> Error {
    Error::plugin(format!("the built-in prose is broken: {e}"))
}

impl Prose {
    /// The story of a seed.
    ///
    /// # Errors
    /// A fault in the word lists, which the tests of this crate would have found.
    pub(crate) fn new(seed: u64) -> Result<Self> {
        let book = BOOK.as_ref().map_err(broken)?;
        let mut rng = Rng::of(&[seed, 0x70_726f_7365]);
        let town = Town::draw(&book.words, &mut rng);
        Ok(Self {
            calendar: Calendar::draw(&mut rng),
            appearances: vec![0; town.people.len()],
            book,
            town,
            rng,
            threads: Vec::new(),
            deck: Vec::new(),
            known: BTreeSet::new(),
            said: BTreeSet::new(),
            opening: String::new(),
            memories: VecDeque::new(),
            begun: false,
        })
    }

    /// The next paragraphs, separated by blank lines; `None` when everything has been said.
    ///
    /// # Errors
    /// As [`Prose::new`].
    pub(crate) fn next_episode(&mut self) -> Result<Option<String>> {
        for _ in 0..4 * ATTEMPTS {
            let mut page = Page::default();
            if !self.begun {
                self.begun = true;
                for list in ["prologue", "prologuetwo", "prologuethree"] {
                    page.add(self.say(self.book.words.list(list), About::default())?);
                }
            } else if self.rng.chance(22) {
                self.interlude(&mut page)?;
            }
            page.end_paragraph();
            self.episode(&mut page)?;
            page.end_paragraph();
            if !page.paragraphs.is_empty() {
                return Ok(Some(page.paragraphs.join("\n\n")));
            }
        }
        Ok(None)
    }

    /// A few sentences on the town, its weather and its talk.
    fn interlude(&mut self, page: &mut Page) -> Result<()> {
        for _ in 0..2 + self.rng.below(2) {
            let gossip = !self.memories.is_empty() && self.rng.chance(50);
            let list = if gossip { "gossip" } else { ["setting", "passing"][self.rng.below(2)] };
            // told once: a town has other things to talk about
            let recall =
                if gossip { self.memories.remove(self.rng.below(self.memories.len())) } else { None };
            page.add(self.say(self.book.words.list(list), About { recall, ..About::default() })?);
        }
        Ok(())
    }

    /// The next episode of one of the tales under way, or the first of another.
    fn episode(&mut self, page: &mut Page) -> Result<()> {
        let few = self.threads.len() < 2;
        if few || (self.threads.len() < THREADS && self.rng.chance(35)) {
            self.begin_tale();
        }
        // the one told last stands at the end: something else happens in between
        let others = self.threads.len().saturating_sub(1).max(1);
        let i = if self.begun_now() { self.threads.len() - 1 } else { self.rng.below(others) };
        let mut thread = self.threads.remove(i);
        let tale = &self.book.tales[thread.tale];
        if thread.next == 0 {
            self.introduce(thread.cast, page)?;
        }
        thread.memo.recent.clear();
        let mut first = true;
        for step in &tale.episodes[thread.next] {
            let Step::Sentence { optional, wordings } = step else {
                page.end_paragraph();
                continue;
            };
            if *optional && self.rng.chance(50) {
                continue;
            }
            let about = About { cast: Some(thread.cast), memo: Some(&mut thread.memo), ..About::default() };
            page.add(self.say(wordings, about)?);
            if std::mem::take(&mut first) && !tale.indoors && self.rng.chance(25) {
                page.add(self.say(self.book.words.list("setting"), About::default())?);
            }
        }
        thread.next += 1;
        if thread.next < tale.episodes.len() {
            self.threads.push(thread);
        } else if let Some(memory) = &tale.memory {
            thread.memo.recent.clear();
            let text = self.voice(Some(thread.cast), thread.memo.clone()).say(memory).map_err(broken)?;
            self.memories.push_back((text, thread.cast));
            if self.memories.len() > MEMORIES {
                self.memories.pop_front();
            }
        }
        Ok(())
    }

    /// Whether the last thread has not been told yet.
    fn begun_now(&self) -> bool {
        self.threads.last().is_some_and(|t| t.next == 0)
    }

    /// Chooses a tale that fits the season, and people who are free.
    fn begin_tale(&mut self) {
        let season = self.calendar.season();
        let fits = |i: usize| {
            let seasons = &self.book.tales[i].seasons;
            seasons.is_empty() || seasons.contains(&season)
        };
        if !self.deck.iter().any(|&i| fits(i)) {
            // those out of season wait for theirs
            let mut fresh: Vec<_> = (0..self.book.tales.len()).filter(|i| !self.deck.contains(i)).collect();
            self.rng.shuffle(&mut fresh);
            self.deck.extend(fresh);
        }
        let Some(at) = self.deck.iter().position(|&i| fits(i)) else { return };
        let tale = self.deck.remove(at);
        let mut taken: BTreeSet<usize> = self.threads.iter().flat_map(|t| t.cast).collect();
        let a = self.free_person(&mut taken, |_| true);
        let woman = self.town.people[a].woman;
        // pronouns of A and B differ, so that they are never in doubt
        let b = self.free_person(&mut taken, |p| p.woman != woman);
        let c = self.free_person(&mut taken, |_| true);
        self.threads.push(Thread { tale, next: 0, cast: [a, b, c], memo: Memo::default() });
    }

    /// Of two people drawn, the one who has appeared less.
    fn free_person(&mut self, taken: &mut BTreeSet<usize>, fits: impl Fn(&world::Person) -> bool) -> usize {
        let free: Vec<_> = (0..self.town.people.len())
            .filter(|i| !taken.contains(i) && fits(&self.town.people[*i]))
            .collect();
        let (one, two) = (free[self.rng.below(free.len())], free[self.rng.below(free.len())]);
        let chosen = if self.appearances[two] < self.appearances[one] { two } else { one };
        self.appearances[chosen] += 1;
        taken.insert(chosen);
        chosen
    }

    fn introduce(&mut self, cast: [usize; 3], page: &mut Page) -> Result<()> {
        for person in cast {
            if self.known.insert(person) {
                let about = About { person: Some(person), ..About::default() };
                page.add(self.say(self.book.words.list("intro"), about)?);
            }
        }
        Ok(())
    }

    fn voice(&mut self, cast: Option<[usize; 3]>, memo: Memo) -> Voice<'_> {
        let busy = self.threads.iter().flat_map(|t| t.cast).chain(cast.into_iter().flatten()).collect();
        Voice {
            words: &self.book.words,
            town: &self.town,
            rng: &mut self.rng,
            cast,
            memo,
            calendar: self.calendar,
            person: None,
            recall: None,
            busy,
            known: &self.known,
            drawn: BTreeSet::new(),
        }
    }

    /// Says one of `wordings` in a way that is new; nothing where none was found.
    fn say(&mut self, wordings: &[Template], about: About<'_>) -> Result<Option<String>> {
        let About { cast, mut memo, person, recall } = about;
        for _ in 0..ATTEMPTS {
            let wording = &wordings[self.rng.below(wordings.len())];
            let kept = memo.as_deref().cloned().unwrap_or_default();
            let mut voice = self.voice(cast, kept);
            voice.person = person;
            voice.recall = recall.as_ref().map(|r| r.0.as_str());
            voice.busy.extend(recall.iter().flat_map(|r| r.1).chain(person));
            let text = capitalised(&voice.say(wording).map_err(broken)?);
            let (remembered, calendar) = (voice.memo, voice.calendar);
            if !self.is_new(&text) {
                continue;
            }
            if let Some(memo) = memo.as_deref_mut() {
                *memo = remembered;
            }
            self.calendar = calendar;
            return Ok(Some(text));
        }
        Ok(None)
    }

    /// Whether no sentence of `text` was said before or begins like its predecessor; if so, notes them.
    fn is_new(&mut self, text: &str) -> bool {
        let mut start = 0;
        let mut opening = self.opening.clone();
        let mut all = Vec::new();
        for end in sentences::ends(text) {
            let sentence = text[start..end].trim().to_owned();
            let begins = opening_of(&sentence);
            if begins == opening || self.said.contains(&sentence) || all.contains(&sentence) {
                return false;
            }
            opening = begins;
            all.push(sentence);
            start = end;
        }
        self.opening = opening;
        self.said.extend(all);
        true
    }
}

/// The first three words.
fn opening_of(sentence: &str) -> String {
    sentence.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Paragraphs being written.
#[derive(Default)]
struct Page {
    paragraphs: Vec<String>,
    current: String,
}

impl Page {
    fn add(&mut self, sentence: Option<String>) {
        if let Some(sentence) = sentence {
            if !self.current.is_empty() {
                self.current.push(' ');
            }
            self.current.push_str(&sentence);
        }
    }

    fn end_paragraph(&mut self) {
        if !self.current.is_empty() {
            self.paragraphs.push(std::mem::take(&mut self.current));
        }
    }
}

#[cfg(test)]
mod tests;
