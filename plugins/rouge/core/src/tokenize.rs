//! Texts as numbers of words.
//!
//! Two tokenisers: rouge_score's (lower-case runs of `[a-z0-9]`, optionally stemmed) and pltrdy's (sentences at
//! full stops, words at white space, case and punctuation kept).

use std::borrow::Cow;

use e2llm_plugin::text::is_python_space;

use crate::sentences::Splitter;
use crate::vocabulary::Vocabulary;

/// rouge_score stems words longer than this.
const UNSTEMMED: usize = 3;

/// What of a text is wanted beside its words and lines.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) stems: bool,
    pub(crate) sentences: bool,
}

/// A text by rouge_score's tokeniser.
#[derive(Debug, Default)]
pub(crate) struct Text {
    /// All words in order.
    pub(crate) words: Vec<u32>,
    /// Their stems, if wanted.
    pub(crate) stems: Vec<u32>,
    /// For each line with words the end of its words.
    pub(crate) lines: Vec<usize>,
    /// For each line or sentence with words the end of its words, if sentences are wanted.
    pub(crate) sentences: Vec<usize>,
    splitter: Splitter,
}

impl Text {
    /// Reads `text`, replacing what was here.
    pub(crate) fn read(&mut self, text: &str, wanted: Wanted, vocabulary: &mut Vocabulary) {
        self.words.clear();
        self.stems.clear();
        self.lines.clear();
        self.sentences.clear();
        if wanted.sentences {
            let mut splitter = std::mem::take(&mut self.splitter);
            splitter.for_each_sentence(text, |sentence| {
                self.read_part(sentence, wanted, vocabulary);
                end_part(&mut self.sentences, self.words.len());
            });
            self.splitter = splitter;
        } else {
            self.read_part(text, wanted, vocabulary);
        }
        end_part(&mut self.lines, self.words.len());
    }

    fn read_part(&mut self, text: &str, wanted: Wanted, vocabulary: &mut Vocabulary) {
        let text = with_ascii_lower_case(text);
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let start = at;
            while at < bytes.len() && WORD[usize::from(bytes[at])] {
                at += 1;
            }
            if at > start {
                let word = vocabulary.lower_case_number(bytes, start, at);
                self.words.push(word);
                if wanted.stems {
                    let short = at - start <= UNSTEMMED;
                    self.stems.push(if short {
                        word
                    } else {
                        vocabulary.stem_number(word, &bytes[start..at])
                    });
                }
            }
            if bytes.get(at) == Some(&b'\n') {
                end_part(&mut self.lines, self.words.len());
            }
            at += 1;
        }
    }
}

fn end_part(ends: &mut Vec<usize>, end: usize) {
    if ends.last().copied().unwrap_or(0) < end {
        ends.push(end);
    }
}

/// Which bytes belong to words.
const WORD: [bool; 256] = {
    let mut word = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        word[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    word
};

/// Replaces the two characters outside ASCII whose lower case has an ASCII letter: dotted capital I, Kelvin sign.
fn with_ascii_lower_case(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || !text.contains(['\u{130}', '\u{212a}']) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.replace('\u{130}', "i\u{307}").replace('\u{212a}', "k"))
    }
}

/// A text by pltrdy's tokeniser.
#[derive(Debug, Default)]
pub(crate) struct Sentences {
    pub(crate) words: Vec<u32>,
    /// For each sentence the end of its words.
    pub(crate) ends: Vec<usize>,
}

impl Sentences {
    /// Reads `text`, replacing what was here.
    ///
    /// A sentence of nothing but white space has one word, the empty one: pltrdy joins no words to an empty text and
    /// splits that at spaces again.
    pub(crate) fn read(&mut self, text: &str, vocabulary: &mut Vocabulary) {
        self.words.clear();
        self.ends.clear();
        for sentence in text.split('.').filter(|sentence| !sentence.is_empty()) {
            let before = self.words.len();
            self.read_words(sentence, vocabulary);
            if self.words.len() == before {
                self.words.push(vocabulary.number(b""));
            }
            self.ends.push(self.words.len());
        }
    }

    /// Python's `str.split()`, byte by byte where the text is ASCII.
    fn read_words(&mut self, text: &str, vocabulary: &mut Vocabulary) {
        let bytes = text.as_bytes();
        let mut start = 0;
        let mut at = 0;
        while at < bytes.len() {
            let (space, len) = if bytes[at].is_ascii() {
                (SPACE[usize::from(bytes[at])], 1)
            } else {
                text[at..].chars().next().map_or((false, 1), |c| (is_python_space(c), c.len_utf8()))
            };
            if space {
                if start < at {
                    self.words.push(vocabulary.number_in(bytes, start, at));
                }
                start = at + len;
            }
            at += len;
        }
        if start < at {
            self.words.push(vocabulary.number_in(bytes, start, at));
        }
    }
}

/// Which ASCII bytes are white space to Python.
const SPACE: [bool; 128] = {
    let mut space = [false; 128];
    let mut byte = 0;
    while byte < 128 {
        space[byte] = matches!(byte, 0x09..=0x0d | 0x1c..=0x20);
        byte += 1;
    }
    space
};

/// The parts of `words` that end at `ends`.
pub(crate) fn parts<'a>(words: &'a [u32], ends: &'a [usize]) -> impl Iterator<Item = &'a [u32]> + Clone {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(ends).map(|(start, &end)| &words[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Text {
        let mut out = Text::default();
        let wanted = Wanted { stems: true, sentences: true };
        out.read(text, wanted, &mut Vocabulary::default());
        out
    }

    #[test]
    fn only_two_characters_lower_to_ascii_from_outside() {
        for c in ('\u{80}'..=char::MAX).filter(|c| c.to_lowercase().any(|low| low.is_ascii())) {
            assert!(matches!(c, '\u{130}' | '\u{212a}'), "{c:?}");
        }
    }

    #[test]
    fn accents_split_words_and_capitals_do_not_matter() {
        let mut vocabulary = Vocabulary::default();
        let (mut text, wanted) = (Text::default(), Wanted::default());
        text.read("Café DON'T \u{212a}9 \u{130}x", wanted, &mut vocabulary);
        let expected: Vec<u32> = ["caf", "don", "t", "k9", "i", "x"]
            .iter()
            .map(|word| vocabulary.number(word.as_bytes()))
            .collect();
        assert_eq!(text.words, expected);
    }

    #[test]
    fn words_of_pltrdy_are_parted_at_the_white_space_of_python() {
        for c in ('\0'..=char::MAX).filter(|&c| c != '.') {
            let mut sentences = Sentences::default();
            sentences.read(&format!("a{c}b"), &mut Vocabulary::default());
            assert_eq!(sentences.words.len(), 1 + usize::from(is_python_space(c)), "{c:?}");
        }
    }

    #[test]
    fn lines_and_sentences_without_words_vanish() {
        let text = read("\n\nOne two. Three\n ... \nfour");
        assert_eq!(text.lines, [3, 4]);
        assert_eq!(text.sentences, [2, 3, 4]);
        assert_eq!(text.words.len(), text.stems.len());
    }

    #[test]
    fn pltrdy_keeps_the_empty_word_of_a_blank_sentence() {
        let mut sentences = Sentences::default();
        let mut vocabulary = Vocabulary::default();
        sentences.read("One\ttwo. .. \u{1c}", &mut vocabulary);
        assert_eq!(sentences.ends, [2, 3, 4]);
        assert_eq!(sentences.words[2..], [vocabulary.number(b""); 2]);
    }
}
