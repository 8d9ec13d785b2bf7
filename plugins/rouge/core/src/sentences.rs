//! Sentences by Unicode's rules (UAX 29), as the crate `unicode-segmentation` finds them.
//!
//! The crate looks every character up in tables, which would take longer than all scores together. Lines of nothing
//! but ASCII and the commonest other characters of English text are split here; the others by the crate. A line end
//! always ends a sentence, so lines can be split apart.

use unicode_segmentation::UnicodeSegmentation;

/// Memory reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    /// A line with ASCII in place of everything else.
    plain: Vec<u8>,
}

impl Splitter {
    /// Calls `f` with each sentence of `text`, which they make up without gaps.
    pub(crate) fn for_each_sentence(&mut self, text: &str, mut f: impl FnMut(&str)) {
        for line in text.split_inclusive('\n') {
            let plain = if line.is_ascii() { Some(line.as_bytes()) } else { self.stand_in(line) };
            let Some(plain) = plain else {
                line.split_sentence_bounds().for_each(&mut f);
                continue;
            };
            let mut start = 0;
            while start < line.len() {
                let end = sentence_end(plain, start);
                f(&line[start..end]);
                start = end;
            }
        }
    }

    /// `line` with every other character replaced by as many ASCII bytes of its kind as it has bytes: the rules treat
    /// a run of them like one. `None` where a character has no stand-in.
    fn stand_in(&mut self, line: &str) -> Option<&[u8]> {
        self.plain.clear();
        for c in line.chars() {
            let byte = stand_in(c)?;
            self.plain.extend(std::iter::repeat_n(byte, c.len_utf8()));
        }
        Some(&self.plain)
    }
}

/// An ASCII character of the same kind as `c`, for those that English text uses.
fn stand_in(c: char) -> Option<u8> {
    Some(match c {
        '\0'..='\x7f' => c as u8,
        '\u{80}'..='\u{9f}' | '\u{ad}' => return None,
        '\u{a0}' => b' ',
        '\u{ab}' | '\u{bb}' | '\u{2018}'..='\u{201f}' | '\u{2039}' | '\u{203a}' => b'"',
        '\u{2013}' | '\u{2014}' => b'-',
        '\u{aa}' | '\u{b5}' | '\u{ba}' => b'a',
        '\u{c0}'..='\u{17f}' if c.is_lowercase() => b'a',
        '\u{c0}'..='\u{17f}' if c.is_uppercase() => b'A',
        '\u{a1}'..='\u{f7}' | '\u{2022}' | '\u{2026}' | '\u{20ac}' | '\u{2122}' | '\u{2212}' => b'*',
        _ => return None,
    })
}

/// Where the sentence of an ASCII text ends that begins at `start`.
fn sentence_end(text: &[u8], start: usize) -> usize {
    let mut at = start;
    while let Some(skipped) = text[at..].iter().position(|&byte| is_terminator(byte) || is_line_end(byte)) {
        at += skipped;
        if is_line_end(text[at]) {
            return after_line_end(text, at);
        }
        match after_terminator(text, start, at) {
            Next::End(end) => return end,
            Next::Within(next) => at = next,
        }
    }
    text.len()
}

/// What follows a terminator.
enum Next {
    /// The sentence ends here.
    End(usize),
    /// The sentence goes on; nothing before this place ends it.
    Within(usize),
}

/// Rules SB6 to SB11 for the terminator at `at`.
fn after_terminator(text: &[u8], start: usize, at: usize) -> Next {
    let full_stop = text[at] == b'.';
    let mut next = at + 1;
    if full_stop && let Some(byte) = text.get(next) {
        let after_letter = at > start && text[at - 1].is_ascii_alphabetic();
        if byte.is_ascii_digit() || (after_letter && byte.is_ascii_uppercase()) {
            return Next::Within(next);
        }
    }
    next = skip(text, next, is_closing);
    next = skip(text, next, is_space);
    match text.get(next) {
        None => Next::End(next),
        Some(&byte) if is_line_end(byte) => Next::End(after_line_end(text, next)),
        Some(&byte) if is_terminator(byte) || is_continuing(byte) => Next::Within(next),
        // A full stop does not end a sentence that goes on with a lower-case letter.
        Some(_) if full_stop => {
            let letter = skip(text, next, |byte| {
                !byte.is_ascii_alphabetic() && !is_line_end(byte) && !is_terminator(byte)
            });
            if text.get(letter).is_some_and(u8::is_ascii_lowercase) {
                Next::Within(letter)
            } else {
                Next::End(next)
            }
        }
        Some(_) => Next::End(next),
    }
}

fn skip(text: &[u8], from: usize, what: impl Fn(u8) -> bool) -> usize {
    from + text[from..].iter().take_while(|&&byte| what(byte)).count()
}

fn after_line_end(text: &[u8], at: usize) -> usize {
    if text[at..].starts_with(b"\r\n") { at + 2 } else { at + 1 }
}

fn is_terminator(byte: u8) -> bool {
    matches!(byte, b'.' | b'!' | b'?')
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn is_closing(byte: u8) -> bool {
    matches!(byte, b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'"' | b'\'')
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)
}

fn is_continuing(byte: u8) -> bool {
    matches!(byte, b',' | b'-' | b':' | b';')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) {
        let mut sentences = Vec::new();
        Splitter::default().for_each_sentence(text, |sentence| sentences.push(sentence.to_owned()));
        assert_eq!(sentences, text.split_sentence_bounds().collect::<Vec<_>>(), "{text:?}");
    }

    #[test]
    fn every_context_of_a_terminator_in_ascii_is_split_as_by_the_crate() {
        for a in (0..128u8).map(char::from) {
            for b in (0..128u8).map(char::from) {
                for form in
                    [format!("x{a}.{b}y"), format!("X.{a}{b}Y"), format!("x? {a}{b}"), format!("1.\"{a}{b}z")]
                {
                    check(&form);
                }
            }
        }
    }

    #[test]
    fn stand_ins_are_of_the_kind_of_their_characters() {
        let known: Vec<char> = ('\u{80}'..=char::MAX).filter(|&c| stand_in(c).is_some()).collect();
        assert!(known.len() > 200);
        for c in known {
            for form in [
                "x.{}b", "x.{}B", "x{}.B", "x{}.b", "X.1{}b", "x? {}B", "x?{} B", "x. {}{}b", "1. {} b",
                "x.{} {}B",
            ] {
                check(&form.replace("{}", &c.to_string()));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn sentences_are_those_of_the_crate(text in "([.!?]{1,2}|[aA1]|[ \\t]|[\"')]|[,;:-]|\\r|\\n|[\\x00-\\x7f]|\\PC|[\u{85}\u{2028}\u{ad}éÉ“”’–—…\u{a0}]){0,24}") {
            check(&text);
        }
    }
}
