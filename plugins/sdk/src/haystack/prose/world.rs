//! The town: who lives there, and what day it is.

use super::grammar::Words;
use crate::haystack::Rng;

/// An inhabitant.
#[derive(Debug)]
pub(super) struct Person {
    /// First name, which no one else has.
    pub(super) name: String,
    /// Family name.
    pub(super) surname: String,
    /// `she` or `he`.
    pub(super) woman: bool,
    /// Trade, which no one else has.
    pub(super) job: String,
    /// Where the trade is carried on, with its article.
    pub(super) shop: String,
    /// Where home and shop are.
    pub(super) street: String,
    /// A clause that begins with `who`.
    pub(super) trait_: String,
}

/// Forms of a person's pronoun.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pronoun {
    He,
    Him,
    His,
    Himself,
}

impl Person {
    /// First and family name.
    pub(super) fn full(&self) -> String {
        format!("{} {}", self.name, self.surname)
    }

    /// The pronoun in the form asked for.
    pub(super) fn pronoun(&self, form: Pronoun) -> &'static str {
        match (form, self.woman) {
            (Pronoun::He, true) => "she",
            (Pronoun::He, false) => "he",
            (Pronoun::Him | Pronoun::His, true) => "her",
            (Pronoun::Him, false) => "him",
            (Pronoun::His, false) => "his",
            (Pronoun::Himself, true) => "herself",
            (Pronoun::Himself, false) => "himself",
        }
    }
}

/// The town and its people.
#[derive(Debug)]
pub(super) struct Town {
    pub(super) name: String,
    pub(super) river: String,
    pub(super) people: Vec<Person>,
}

impl Town {
    /// A town of one inhabitant for every trade of the word lists.
    pub(super) fn draw(words: &Words, rng: &mut Rng) -> Self {
        let mut mixed = |name: &str| {
            let mut list = words.raw(name).to_vec();
            rng.shuffle(&mut list);
            list
        };
        let first = |list: Vec<String>| list.into_iter().next().unwrap_or_default();
        let name = first(mixed("townheads")) + &first(mixed("towntails"));
        let river = first(mixed("rivers"));
        let (women, men) = (mixed("women"), mixed("men"));
        let (surnames, streets, traits) = (mixed("surnames"), mixed("streets"), mixed("traits"));
        let pick = |list: &[String], i: usize| list.get(i % list.len().max(1)).cloned().unwrap_or_default();
        let person = |(i, job): (usize, String)| {
            let (job, shop) = job.split_once(" @ ").unwrap_or((&job, "the workshop"));
            let woman = i % 2 == 0;
            Person {
                name: pick(if woman { &women } else { &men }, i / 2),
                surname: pick(&surnames, i),
                woman,
                job: job.to_owned(),
                shop: shop.to_owned(),
                street: pick(&streets, i),
                trait_: pick(&traits, i),
            }
        };
        Self { name, river, people: mixed("jobs").into_iter().enumerate().map(person).collect() }
    }
}

/// A season of the northern year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Season {
    Spring,
    Summer,
    Autumn,
    Winter,
}

impl Season {
    /// Its name in the word lists.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Spring => "spring",
            Self::Summer => "summer",
            Self::Autumn => "autumn",
            Self::Winter => "winter",
        }
    }

    /// The season of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Spring, Self::Summer, Self::Autumn, Self::Winter].into_iter().find(|s| s.name() == name)
    }
}

/// Part of the day in which something happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Morning,
    Afternoon,
    Evening,
}

impl Phase {
    /// Its name in the word lists.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Morning => "morning",
            Self::Afternoon => "afternoon",
            Self::Evening => "evening",
        }
    }

    pub(super) const ALL: [Self; 3] = [Self::Morning, Self::Afternoon, Self::Evening];
}

/// The moment the story has come to. Months have 30 days.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calendar {
    day: usize,
    phase: Phase,
}

impl Calendar {
    /// The end of a day: the story begins on a later one.
    pub(super) fn draw(rng: &mut Rng) -> Self {
        Self { day: rng.below(360), phase: Phase::Evening }
    }

    /// Index of the month, from January.
    pub(super) fn month(self) -> usize {
        self.day / 30 % 12
    }

    /// Index of the day in its month.
    pub(super) fn day_of_month(self) -> usize {
        self.day % 30
    }

    /// Index of the weekday, from Monday.
    pub(super) fn weekday(self) -> usize {
        self.day % 7
    }

    /// The part of the day.
    pub(super) fn phase(self) -> Phase {
        self.phase
    }

    /// The season.
    pub(super) fn season(self) -> Season {
        match self.month() {
            2..=4 => Season::Spring,
            5..=7 => Season::Summer,
            8..=10 => Season::Autumn,
            _ => Season::Winter,
        }
    }

    /// Goes on to a later part of the same day.
    pub(super) fn later(&mut self, phase: Phase) -> bool {
        let possible = phase > self.phase;
        if possible {
            self.phase = phase;
        }
        possible
    }

    /// Goes on by some days.
    pub(super) fn pass(&mut self, days: usize, phase: Phase) {
        self.day += days;
        self.phase = phase;
    }
}
