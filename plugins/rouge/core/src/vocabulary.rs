//! Numbers for words, and the cache of their stems.
//!
//! Scores compare words only for equality, so every word becomes a number once. The numbers outlive a pair: the stem
//! of a word that was seen before costs one look-up. The vocabulary is emptied between pairs when it has grown past a
//! limit, so a long run holds a bounded number of words.

use std::collections::HashMap;

use crate::stem::stem;

/// Words kept from pair to pair; about 2 MB.
const KEPT_WORDS: usize = 1 << 16;

/// Words of up to this many bytes are compared as one integer.
const SHORT: usize = 15;

const NO_STEM: u32 = u32::MAX;
const FREE: u32 = u32::MAX;

/// A growing map from words to consecutive numbers.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// Open addressing: numbers of short words, `FREE` where none is.
    slots: Vec<u32>,
    /// The short words by number; 0 for long ones.
    keys: Vec<u128>,
    /// Number of each word's stem, `NO_STEM` until it is asked for.
    stems: Vec<u32>,
    long: HashMap<Box<[u8]>, u32>,
    /// Reused by `stem`.
    letters: Vec<u8>,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self {
            slots: vec![FREE; 1 << 12],
            keys: Vec::new(),
            stems: Vec::new(),
            long: HashMap::new(),
            letters: Vec::new(),
        }
    }
}

impl Vocabulary {
    /// How many numbers are in use: all are below it.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Forgets all words if there are too many. Numbers given out before are void then.
    pub(crate) fn limit(&mut self) {
        if self.len() > KEPT_WORDS {
            *self = Self::default();
        }
    }

    /// The number of `word`.
    pub(crate) fn number(&mut self, word: &[u8]) -> u32 {
        if word.len() > SHORT { self.long_number(word) } else { self.short_number(key(word)) }
    }

    /// The number of the word `text[start..end]`; faster than [`number`](Self::number) of a slice.
    pub(crate) fn number_in(&mut self, text: &[u8], start: usize, end: usize) -> u32 {
        match key_in(text, start, end, 0) {
            Some(key) => self.short_number(key),
            None => self.number(&text[start..end]),
        }
    }

    /// The number of the lower-cased `text[start..end]`, ASCII letters and digits.
    pub(crate) fn lower_case_number(&mut self, text: &[u8], start: usize, end: usize) -> u32 {
        // This bit tells lower from upper case; digits have it too.
        match key_in(text, start, end, u128::from_le_bytes([0x20; 16])) {
            Some(key) => self.short_number(key),
            None => self.number(&text[start..end].to_ascii_lowercase()),
        }
    }

    /// The number of the stem of `word`, where `number` is its own.
    pub(crate) fn stem_number(&mut self, number: u32, word: &[u8]) -> u32 {
        let known = self.stems[number as usize];
        if known != NO_STEM {
            return known;
        }
        let mut letters = std::mem::take(&mut self.letters);
        letters.clear();
        letters.extend(word.iter().map(u8::to_ascii_lowercase));
        stem(&mut letters);
        let stem = self.number(&letters);
        self.letters = letters;
        self.stems[number as usize] = stem;
        stem
    }

    fn short_number(&mut self, key: u128) -> u32 {
        let mask = self.slots.len() - 1;
        let mut at = slot(key) & mask;
        loop {
            match self.slots[at] {
                FREE => break,
                number if self.keys[number as usize] == key => return number,
                _ => at = (at + 1) & mask,
            }
        }
        let number = self.push(key);
        self.slots[at] = number;
        if 2 * self.keys.len() > self.slots.len() {
            self.grow();
        }
        number
    }

    fn long_number(&mut self, word: &[u8]) -> u32 {
        if let Some(&number) = self.long.get(word) {
            return number;
        }
        let number = self.push(0);
        self.long.insert(word.into(), number);
        number
    }

    fn push(&mut self, key: u128) -> u32 {
        let number = self.keys.len() as u32;
        self.keys.push(key);
        self.stems.push(NO_STEM);
        number
    }

    fn grow(&mut self) {
        let mask = 2 * self.slots.len() - 1;
        let short: Vec<u32> = self.slots.iter().copied().filter(|&number| number != FREE).collect();
        self.slots = vec![FREE; mask + 1];
        for number in short {
            let mut at = slot(self.keys[number as usize]) & mask;
            while self.slots[at] != FREE {
                at = (at + 1) & mask;
            }
            self.slots[at] = number;
        }
    }
}

/// Bytes and length of a short word as one integer.
fn key(word: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes[..word.len()].copy_from_slice(word);
    bytes[15] = word.len() as u8;
    u128::from_le_bytes(bytes)
}

/// The key of the short word `text[start..end]` with `bits` set in each byte, read in one go; `None` for a long word
/// and close to the end of the text.
fn key_in(text: &[u8], start: usize, end: usize, bits: u128) -> Option<u128> {
    let len = end - start;
    let window = text.get(start..start + 16).filter(|_| len <= SHORT)?;
    let mask = (1u128 << (8 * len)) - 1;
    Some(((u128::from_le_bytes(window.try_into().ok()?) | bits) & mask) | ((len as u128) << 120))
}

fn slot(key: u128) -> usize {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let mixed = (key as u64 ^ ((key >> 64) as u64).rotate_left(29)).wrapping_mul(MIX);
    (mixed ^ (mixed >> 32)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_words_and_only_they_share_a_number() {
        let mut vocabulary = Vocabulary::default();
        let words: Vec<Vec<u8>> = (0..20_000)
            .map(|i| format!("word{i}").into_bytes())
            .chain([
                b"".to_vec(),
                b"a".to_vec(),
                b"a\0".to_vec(),
                vec![b'x'; 15],
                vec![b'x'; 16],
                vec![b'x'; 17],
            ])
            .collect();
        let first: Vec<u32> = words.iter().map(|word| vocabulary.number(word)).collect();
        let second: Vec<u32> = words.iter().map(|word| vocabulary.number(word)).collect();
        assert_eq!(first, second);
        assert_eq!(first, (0..words.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn lower_case_numbers_agree_with_those_of_the_word_at_any_place() {
        let mut vocabulary = Vocabulary::default();
        let text = b"AbC9 and An1ExtraordinarilyLongWord then Fifteen15Letter z";
        let mut start = 0;
        for word in text.split(|byte| *byte == b' ') {
            let end = start + word.len();
            let number = vocabulary.lower_case_number(text, start, end);
            assert_eq!(number, vocabulary.number(&word.to_ascii_lowercase()));
            assert_eq!(vocabulary.number_in(text, start, end), vocabulary.number(word));
            start = end + 1;
        }
    }

    #[test]
    fn stems_are_numbers_of_words() {
        let mut vocabulary = Vocabulary::default();
        let number = vocabulary.number(b"meetings");
        let stem = vocabulary.stem_number(number, b"Meetings");
        assert_eq!(stem, vocabulary.number(b"meet"));
        assert_eq!(stem, vocabulary.stem_number(number, b"meetings"));
    }

    #[test]
    fn a_full_vocabulary_is_emptied() {
        let mut vocabulary = Vocabulary::default();
        for i in 0..=KEPT_WORDS {
            vocabulary.number(i.to_string().as_bytes());
        }
        vocabulary.limit();
        assert_eq!(vocabulary.len(), 0);
    }
}
