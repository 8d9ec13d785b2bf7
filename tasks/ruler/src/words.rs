//! Keys, values and words that are drawn.

use e2llm_plugin::haystack::Rng;
use std::collections::BTreeSet;

const ADJECTIVES: &str = "able amber ancient arctic autumn bitter blank blue bold brave brief bright brisk broad bronze \
    calm careful clear clever cold copper coral crimson curious damp dapper dark deep dense distant double dry dusty eager \
    early eastern elder empty even faint fair famous fast fine firm flat fond fragile fresh gentle giant glad golden grand \
    green grey happy hasty heavy hidden hollow honest humble icy idle ivory jade jolly keen kind large late lavish lean \
    light little lively lone long loud lucky lunar mellow merry mild misty modest narrow neat nimble noble northern odd \
    old open orange pale patient plain polite proud quick quiet rapid rare ready red rich ripe rough round royal rusty \
    salty scarlet secret sharp shy silent silver simple sleepy slim slow small smooth sober soft solar solid southern \
    spare stark steady steep stern stout sunny swift tall tame thin tidy tiny true vague vast velvet violet vivid warm \
    western white wide wild windy wise wooden young";
const NOUNS: &str = "acorn anchor apple apron arrow badge bakery banner barn barrel basket beacon beetle bell bench \
    blanket boat bottle bowl branch brick bridge broom brush bucket button cabin cabinet camel candle canyon carpet castle \
    cedar cellar chair chalk chapel cherry chimney circle clock cloud coat coin comet compass corner cottage cradle crane \
    cricket crown cup curtain daisy dam desk diary dock donkey door drum duck eagle easel elbow engine falcon farm feather \
    fence ferry fiddle field finger flag flute forest fork fountain fox garden gate glacier glove goat grape gravel hammer \
    harbor harp hat hawk hazel hedge helmet heron hill hinge horn house iris island jacket jar jewel kettle key kitchen \
    kite knot ladder lake lamp lantern lemon letter lever library lily lizard lobster locket loom magnet mallet map maple \
    marble market mask meadow mill mirror mitten mole monument moose mountain mug needle nest noodle oar oasis orchard otter \
    oven owl paddle palace parcel parrot peach pebble pencil pepper piano pickle pier pigeon pillow pine pipe planet plum \
    pocket pond poppy porch pottery prairie puddle pump quarry quilt rabbit raft rail raven ribbon river robin rocket roof \
    rope saddle sail salmon scarf school shelf shovel signal spoon squirrel stable statue stone stove sundial swan table \
    teapot temple thimble thunder ticket tiger timber tower trail train trumpet tulip tunnel turnip umbrella valley vase \
    village violin wagon walnut walrus wheel whistle willow window wolf yard zebra";

const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
const VOWELS: &[u8] = b"aeiou";
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

/// What a key or a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Two words with a hyphen.
    Words,
    /// Seven digits.
    Numbers,
    /// UUIDs of version 4.
    Uuids,
}

impl Kind {
    /// As a sentence has it, for one or for many.
    pub(crate) fn name(self, many: bool) -> &'static str {
        match (self, many) {
            (Self::Words, false) => "word",
            (Self::Words, true) => "words",
            (Self::Numbers, false) => "number",
            (Self::Numbers, true) => "numbers",
            (Self::Uuids, false) => "uuid",
            (Self::Uuids, true) => "uuids",
        }
    }

    fn draw(self, rng: &mut Rng) -> String {
        match self {
            Self::Words => {
                let pick = |list: &'static str, rng: &mut Rng| {
                    let words: Vec<_> = list.split_whitespace().collect();
                    words[rng.below(words.len())]
                };
                format!("{}-{}", pick(ADJECTIVES, rng), pick(NOUNS, rng))
            }
            Self::Numbers => (1_000_000 + rng.below(9_000_000)).to_string(),
            Self::Uuids => {
                let (high, low) = (rng.bits(), rng.bits());
                format!(
                    "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
                    high >> 32,
                    high >> 16 & 0xffff,
                    high & 0xfff,
                    0x8000 | (low >> 48 & 0x3fff),
                    low & 0xffff_ffff_ffff
                )
            }
        }
    }
}

/// Draws that never repeat.
#[derive(Debug, Default)]
pub(crate) struct Fresh(BTreeSet<String>);

impl Fresh {
    /// A key or value of this kind.
    pub(crate) fn of(&mut self, kind: Kind, rng: &mut Rng) -> String {
        self.draw(rng, |rng| kind.draw(rng))
    }

    /// A variable's name: five capitals.
    pub(crate) fn variable(&mut self, rng: &mut Rng) -> String {
        self.draw(rng, |rng| letters(rng, 5).to_uppercase())
    }

    /// A coded word: six letters.
    pub(crate) fn coded(&mut self, rng: &mut Rng) -> String {
        self.draw(rng, |rng| letters(rng, 6))
    }

    /// A word that can be pronounced and is in no dictionary. RULER takes English words from a package's lists; these
    /// need no list and do not end.
    pub(crate) fn spoken(&mut self, rng: &mut Rng) -> String {
        self.draw(rng, |rng| {
            let syllables = 2 + rng.below(2);
            let mut word = String::new();
            for _ in 0..syllables {
                word.push(char::from(CONSONANTS[rng.below(CONSONANTS.len())]));
                word.push(char::from(VOWELS[rng.below(VOWELS.len())]));
            }
            word.push(char::from(CONSONANTS[rng.below(CONSONANTS.len())]));
            word
        })
    }

    fn draw(&mut self, rng: &mut Rng, draw: impl Fn(&mut Rng) -> String) -> String {
        loop {
            let text = draw(rng);
            if self.0.insert(text.clone()) {
                return text;
            }
        }
    }
}

fn letters(rng: &mut Rng, n: usize) -> String {
    (0..n).map(|_| char::from(LETTERS[rng.below(LETTERS.len())])).collect()
}

/// `k` different places below `n`, in order; all where there are no more than `k`.
pub(crate) fn places(rng: &mut Rng, n: usize, k: usize) -> Vec<usize> {
    let mut found = BTreeSet::new();
    while found.len() < k.min(n) {
        found.insert(rng.below(n));
    }
    found.into_iter().collect()
}

/// A list as a sentence has it.
pub(crate) fn listed(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [only] => only.clone(),
        [first, second] => format!("{first} and {second}"),
        [all @ .., last] => format!("{}, and {last}", all.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_their_form_and_never_repeat() {
        let (mut rng, mut fresh) = (Rng::of(&[1]), Fresh::default());
        let mut all = BTreeSet::new();
        for _ in 0..3000 {
            for kind in [Kind::Words, Kind::Numbers, Kind::Uuids] {
                let text = fresh.of(kind, &mut rng);
                match kind {
                    Kind::Words => assert_eq!(text.split('-').count(), 2),
                    Kind::Numbers => assert!(text.len() == 7 && !text.starts_with('0')),
                    Kind::Uuids => {
                        assert_eq!((text.len(), &text[14..15]), (36, "4"), "{text}");
                        assert!("89ab".contains(&text[19..20]), "{text}");
                    }
                }
                all.insert(text);
            }
            all.insert(fresh.spoken(&mut rng));
        }
        assert_eq!(all.len(), 12_000);
        assert_eq!(fresh.variable(&mut rng).len(), 5);
        let adjectives: Vec<_> = ADJECTIVES.split_whitespace().collect();
        let nouns: Vec<_> = NOUNS.split_whitespace().collect();
        assert!(adjectives.len() * nouns.len() > 30_000);
        assert_eq!(adjectives.iter().collect::<BTreeSet<_>>().len(), adjectives.len());
        assert_eq!(nouns.iter().collect::<BTreeSet<_>>().len(), nouns.len());
    }

    #[test]
    fn lists_read_as_in_a_sentence() {
        let list = |items: &[&str]| listed(&items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            [list(&["a"]), list(&["a", "b"]), list(&["a", "b", "c"])],
            ["a", "a and b", "a, b, and c"]
        );
        assert_eq!(places(&mut Rng::of(&[1]), 3, 5), [0, 1, 2]);
    }
}
