//! Cutting a long text into chunks that end, where possible, with a sentence.

use std::ops::Range;

/// How far back from its nominal end a chunk may end early: a quarter of its size.
const LOOK_BACK: usize = 4;

/// A piece of a text, by its offsets there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Offsets in characters (Unicode scalar values).
    pub chars: Range<usize>,
    /// Offsets in bytes of UTF-8.
    pub bytes: Range<usize>,
}

impl Chunk {
    /// The chunk's text, given the text it was cut from.
    ///
    /// # Panics
    /// When `source` is another, shorter text.
    pub fn text<'a>(&self, source: &'a str) -> &'a str {
        &source[self.bytes.clone()]
    }
}

/// Why a [`Chunker`] cannot be.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ChunkerError {
    /// Chunks of no characters.
    #[error("the chunk size is 0 characters: it must be at least 1")]
    Size,
    /// An overlap that is no fraction up to a half.
    #[error("the chunk overlap is {0}: it must be between 0 and 0.5")]
    Overlap(f64),
}

/// Cuts texts into chunks of at most a given number of characters.
///
/// From the nominal end it goes back to just after the last sentence or line break (`. ! ? 。 ！ ？`, line
/// feed), but no further than a quarter of the size; where there is none it cuts at the nominal end. No
/// character is lost or invented: the chunks, each less what it shares with the one before, give the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunker {
    size: usize,
    overlap: usize,
}

impl Chunker {
    /// Chunks of at most `chars` characters, each beginning `overlap` (a fraction of the size) before the end
    /// of the one before.
    ///
    /// # Errors
    /// A size of 0; an overlap outside `0 ..= 0.5`.
    pub fn new(chars: usize, overlap: f64) -> Result<Self, ChunkerError> {
        if chars == 0 {
            return Err(ChunkerError::Size);
        }
        if !(0.0..=0.5).contains(&overlap) {
            return Err(ChunkerError::Overlap(overlap));
        }
        Ok(Self { size: chars, overlap: (chars as f64 * overlap) as usize })
    }

    /// The chunks of `text` in order; none where it is empty.
    ///
    /// Time is linear in the text, memory in one chunk beside the result.
    pub fn chunks(&self, text: &str) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut offsets = Vec::new(); // bytes, one for each character of the chunk and one for its end
        let (mut char_start, mut byte_start) = (0, 0);
        while byte_start < text.len() {
            offsets.clear();
            let (mut end, mut after_break) = (byte_start, 0);
            for c in text[byte_start..].chars().take(self.size) {
                offsets.push(end);
                end += c.len_utf8();
                if is_break(c) {
                    after_break = offsets.len();
                }
            }
            offsets.push(end);
            let nominal = offsets.len() - 1;
            let is_last = end == text.len();
            let early = !is_last && after_break >= nominal - nominal / LOOK_BACK;
            let len = if early { after_break } else { nominal };
            chunks.push(Chunk { chars: char_start..char_start + len, bytes: byte_start..offsets[len] });
            if is_last {
                break;
            }
            // The overlap is at most half and the look-back a quarter of the size, so this is at least 1.
            let step = len - self.overlap;
            char_start += step;
            byte_start = offsets[step];
        }
        chunks
    }
}

/// Whether a sentence or a line ends with `c`.
fn is_break(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '。' | '！' | '？' | '\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(size: usize, overlap: f64, text: &str) -> Vec<&str> {
        Chunker::new(size, overlap).unwrap().chunks(text).iter().map(|c| c.text(text)).collect()
    }

    #[test]
    fn ends_after_a_sentence_within_the_last_quarter() {
        assert_eq!(texts(8, 0.0, "abcdef. ghij"), ["abcdef.", " ghij"]);
        assert_eq!(texts(8, 0.0, "abcde. ghijk"), ["abcde.", " ghijk"], "exactly a quarter back");
        assert_eq!(texts(8, 0.0, "abcd. fghijk"), ["abcd. fg", "hijk"], "further back than a quarter");
        assert_eq!(texts(8, 0.0, "ab? de. ghij"), ["ab? de.", " ghij"], "the last break counts");
        assert_eq!(texts(4, 0.0, "日本。語日本語"), ["日本。", "語日本語"]);
    }

    #[test]
    fn a_text_that_fits_is_one_chunk_even_with_breaks() {
        assert_eq!(texts(8, 0.5, "abcdef. "), ["abcdef. "]);
        assert_eq!(texts(1, 0.0, "x"), ["x"]);
        assert_eq!(texts(8, 0.0, ""), [""; 0]);
    }

    #[test]
    fn without_breaks_it_cuts_at_the_size() {
        assert_eq!(texts(4, 0.0, "abcdefghij"), ["abcd", "efgh", "ij"]);
        assert_eq!(texts(4, 0.5, "abcdefgh"), ["abcd", "cdef", "efgh"]);
    }

    #[test]
    fn offsets_count_characters_and_bytes() {
        let chunks = Chunker::new(2, 0.0).unwrap().chunks("aé日🙂x");
        let expected = [(0..2, 0..3), (2..4, 3..10), (4..5, 10..11)];
        assert_eq!(chunks.len(), expected.len());
        for (chunk, (chars, bytes)) in chunks.into_iter().zip(expected) {
            assert_eq!(chunk, Chunk { chars, bytes });
        }
    }

    #[test]
    fn refuses_impossible_settings() {
        assert_eq!(Chunker::new(0, 0.0), Err(ChunkerError::Size));
        for overlap in [-0.1, 0.51, f64::INFINITY] {
            assert_eq!(Chunker::new(8, overlap), Err(ChunkerError::Overlap(overlap)));
        }
        assert!(Chunker::new(8, f64::NAN).is_err());
        assert!(Chunker::new(8, 0.5).is_ok());
    }

    fn texts_of_all_kinds() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[ab.!?。！？\n 日é🙂]{0,300}", // many breaks, several widths
            "[a日]{0,300}",                 // none
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn nothing_is_lost_invented_or_too_long(
            text in texts_of_all_kinds(),
            size in 1usize..80,
            overlap in 0.0f64..=0.5,
        ) {
            let chunks = Chunker::new(size, overlap).unwrap().chunks(&text);
            let mut rebuilt = String::new();
            let mut end = 0;
            for chunk in &chunks {
                prop_assert!(chunk.chars.len() <= size && !chunk.chars.is_empty());
                prop_assert!(chunk.chars.start <= end && chunk.chars.end > end);
                let shared = end - chunk.chars.start;
                prop_assert!(shared <= size / 2);
                prop_assert_eq!(chunk.text(&text).chars().count(), chunk.chars.len());
                prop_assert_eq!(text[..chunk.bytes.start].chars().count(), chunk.chars.start);
                rebuilt.extend(chunk.text(&text).chars().skip(shared));
                end = chunk.chars.end;
            }
            prop_assert_eq!(&rebuilt, &text);
            prop_assert_eq!(chunks.is_empty(), text.is_empty());
        }

        #[test]
        fn a_chunk_is_short_only_before_a_break_or_the_end(text in texts_of_all_kinds(), size in 4usize..40) {
            let chunks = Chunker::new(size, 0.0).unwrap().chunks(&text);
            for chunk in chunks.iter().rev().skip(1) {
                let chars: Vec<char> = chunk.text(&text).chars().collect();
                prop_assert!(chars.len() >= size - size / LOOK_BACK);
                prop_assert!(chars.len() == size || is_break(chars[chars.len() - 1]));
            }
        }
    }
}
