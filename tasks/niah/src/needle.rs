//! Needles: facts that only one sentence of the text states, and the questions for them.

use e2llm_plugin::haystack::Rng;
use e2llm_plugin::{Error, Result};

/// What kind of fact is hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The catalogue number of a made-up thing: seven digits.
    Number,
    /// What to do in a city.
    City,
    /// The user's own wording.
    Custom(Custom),
}

/// A needle in the user's wording; `{key}` and `{value}` are drawn where the sentence has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Custom {
    /// The sentence.
    pub(crate) sentence: String,
    /// What is asked.
    pub(crate) question: String,
    /// The answer; `None` where it is the value drawn.
    pub(crate) answer: Option<String>,
}

/// One needle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Needle {
    /// What is put into the text.
    pub(crate) sentence: String,
    /// What the question names; empty where it names nothing.
    pub(crate) key: String,
    /// The answer.
    pub(crate) value: String,
}

/// Draws before a haystack is held to contain everything that could be asked.
const ATTEMPTS: usize = 200;

#[rustfmt::skip]
const QUALITIES: [&str; 40] = [
    "amber", "crimson", "cobalt", "ivory", "scarlet", "turquoise", "violet", "saffron", "emerald", "indigo", "marble",
    "granite", "crystal", "velvet", "titanium", "porcelain", "bamboo", "magnetic", "solar", "lunar", "arctic", "desert",
    "coastal", "alpine", "volcanic", "northern", "southern", "imperial", "hexagonal", "spiral", "miniature", "floating",
    "luminous", "silent", "hollow", "twin", "forgotten", "mechanical", "celestial", "prismatic",
];
#[rustfmt::skip]
const THINGS: [&str; 40] = [
    "barometer", "telescope", "sextant", "gyroscope", "lantern", "obelisk", "mosaic", "tapestry", "sundial", "globe",
    "astrolabe", "chronometer", "typewriter", "gramophone", "periscope", "metronome", "kaleidoscope", "seismograph",
    "turbine", "propeller", "zeppelin", "submarine", "locomotive", "lighthouse", "pavilion", "fountain", "statue",
    "sarcophagus", "chandelier", "xylophone", "accordion", "clarinet", "bassoon", "amphora", "meteorite", "fossil",
    "herbarium", "aquarium", "planetarium", "hologram",
];
#[rustfmt::skip]
const CITIES: [&str; 40] = [
    "Lisbon", "Oslo", "Kyoto", "Montevideo", "Tallinn", "Marrakesh", "Wellington", "Ljubljana", "Valparaiso", "Tbilisi",
    "Reykjavik", "Havana", "Hanoi", "Dakar", "Antwerp", "Bergen", "Cusco", "Zagreb", "Nairobi", "Quebec", "Salzburg",
    "Seville", "Riga", "Cork", "Gdansk", "Trieste", "Zanzibar", "Adelaide", "Utrecht", "Porto", "Yerevan", "Colombo",
    "Lucknow", "Oaxaca", "Palermo", "Turku", "Basel", "Halifax", "Malacca", "Sarajevo",
];
#[rustfmt::skip]
const ACTIVITIES: [&str; 20] = [
    "ride the oldest tram", "count the stone lions", "rent a paper kite", "taste the salted caramel", "sketch the glass dome",
    "climb the spiral tower", "visit the puppet museum", "listen to the glass organ", "paddle a red canoe",
    "photograph the tiled staircase", "buy a hand-painted fan", "watch the shadow theatre", "walk the rope bridge",
    "feed the royal peacocks", "try the iced cardamom coffee", "see the floating gardens", "learn a tango step",
    "borrow a tandem", "post a card from the tower", "dance in the fountain court",
];
#[rustfmt::skip]
const OCCASIONS: [&str; 20] = [
    "at sunrise", "by moonlight", "on the shortest day", "in a borrowed hat", "with a local guide", "during the lantern parade",
    "beside the copper gate", "under the sycamores", "after the first tram", "before the fireworks", "in complete silence",
    "with a slice of melon", "behind the observatory", "while the fountains are off", "on the last ferry",
    "between two thunderstorms", "to the sound of drums", "in the company of poets", "near the blue pagoda",
    "at the stroke of noon",
];

fn one<'a>(list: &[&'a str], rng: &mut Rng) -> &'a str {
    list[rng.below(list.len())]
}

impl Kind {
    fn propose(&self, rng: &mut Rng) -> Needle {
        let number = |rng: &mut Rng| (1_000_000 + rng.below(9_000_000)).to_string();
        let thing = |rng: &mut Rng| format!("{} {}", one(&QUALITIES, rng), one(&THINGS, rng));
        match self {
            Self::Number => {
                let (key, value) = (thing(rng), number(rng));
                Needle { sentence: format!("The catalogue number of the {key} is {value}."), key, value }
            }
            Self::City => {
                let key = one(&CITIES, rng).to_owned();
                let value = format!("{} {}", one(&ACTIVITIES, rng), one(&OCCASIONS, rng));
                Needle {
                    sentence: format!("Whoever has a free day in {key} is advised to {value}."),
                    key,
                    value,
                }
            }
            Self::Custom(custom) => {
                let has = |slot: &str| custom.sentence.contains(slot);
                let key = if has("{key}") { thing(rng) } else { String::new() };
                let value = custom.answer.clone().unwrap_or_else(|| number(rng));
                let sentence = custom.sentence.replace("{key}", &key).replace("{value}", &value);
                Needle { sentence, key, value }
            }
        }
    }

    /// Draws `count` needles of which `haystack` says nothing: it has neither their keys nor their values, and no
    /// needle answers another's question.
    ///
    /// # Errors
    /// A haystack that contains all that was drawn, such as the answer of the user's own needle.
    pub(crate) fn draw(&self, count: usize, haystack: &str, rng: &mut Rng) -> Result<Vec<Needle>> {
        let lower = haystack.to_lowercase();
        let mut needles: Vec<Needle> = Vec::new();
        for _ in 0..ATTEMPTS * count {
            if needles.len() == count {
                break;
            }
            let n = self.propose(rng);
            let known = |part: &str| {
                let part = part.to_lowercase();
                !part.is_empty()
                    && (lower.contains(&part)
                        || needles.iter().any(|o| o.sentence.to_lowercase().contains(&part)))
            };
            if !known(&n.key) && !known(&n.value) && !known(&n.sentence) {
                needles.push(n);
            }
        }
        if needles.len() < count {
            return Err(Error::bad_request("the haystack already contains what the needle says")
                .with_help("choose another needle or another haystack"));
        }
        Ok(needles)
    }

    /// The question for some needles, answerable without any other text than the haystack.
    pub(crate) fn question(&self, needles: &[Needle]) -> String {
        let keys: Vec<_> = needles.iter().map(|n| n.key.as_str()).collect();
        match (self, needles) {
            (Self::Number, [n]) => format!(
                "One sentence of the text gives the catalogue number of the {}. What is that number? Answer with the \
                 number only.",
                n.key
            ),
            (Self::Number, _) => format!(
                "The text gives, each in one sentence, the catalogue numbers of {}. What are these numbers? Answer \
                 with the numbers only, in this order, separated by commas.",
                listed(&keys, "the ")
            ),
            (Self::City, [n]) => format!(
                "One sentence of the text says what whoever has a free day in {} is advised to do. What is it? Answer \
                 in the words of the text.",
                n.key
            ),
            (Self::City, _) => format!(
                "The text says, each in one sentence, what whoever has a free day in {} is advised to do. What is it, \
                 for each of them? Answer in the words of the text, one line each.",
                listed(&keys, "")
            ),
            (Self::Custom(custom), _) => custom.question.replace("{key}", &listed(&keys, "")),
        }
    }
}

/// `a, b and c`, each with `before` in front.
fn listed(items: &[&str], before: &str) -> String {
    let items: Vec<_> = items.iter().map(|i| format!("{before}{i}")).collect();
    match items.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => items.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needles_avoid_what_the_text_knows() {
        let lisbon_only = CITIES[1..].join(", ");
        let drawn = Kind::City.draw(1, &lisbon_only, &mut Rng::of(&[1])).unwrap();
        assert_eq!(drawn[0].key, "Lisbon");
        assert!(Kind::City.draw(1, &CITIES.join(" "), &mut Rng::of(&[1])).is_err());
        // two needles never share a key
        let drawn = Kind::City.draw(40, "", &mut Rng::of(&[1])).unwrap();
        let keys: std::collections::BTreeSet<_> = drawn.iter().map(|n| &n.key).collect();
        assert_eq!(keys.len(), 40);
    }

    #[test]
    fn questions_name_the_keys_and_not_the_values() {
        for kind in [Kind::Number, Kind::City] {
            for count in [1, 3] {
                let needles = kind.draw(count, "", &mut Rng::of(&[9])).unwrap();
                let question = kind.question(&needles);
                for n in &needles {
                    assert!(question.contains(&n.key) && !question.contains(&n.value), "{question}");
                    assert!(n.sentence.contains(&n.key) && n.sentence.contains(&n.value));
                }
            }
        }
        assert_eq!(listed(&["x", "y", "z"], "the "), "the x, the y and the z");
    }
}
