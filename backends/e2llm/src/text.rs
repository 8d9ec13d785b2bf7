//! From a context to the ids that the encoder reads.

use e2llm_backend::Chunker;
use e2llm_lm::{LmError, Tokenizer};
use rayon::prelude::*;

/// Cuts `context` into chunks and tokenises each with the encoder's special tokens. A chunk of more than
/// `window` tokens is cut again, in half, until its parts fit: no text is left out.
///
/// # Errors
/// A single character of more than `window` tokens; text that cannot be tokenised.
pub fn encoder_chunks(
    context: &str,
    chunker: &Chunker,
    tokenizer: &Tokenizer,
    window: usize,
) -> Result<Vec<Vec<u32>>, LmError> {
    let chunks: Vec<_> = chunker.chunks(context);
    let parts: Result<Vec<_>, _> = chunks
        .par_iter()
        .map(|chunk| {
            let parts = encoder_parts(chunk.text(context), tokenizer, window)?;
            Ok(parts.into_iter().map(|(_, ids)| ids).collect::<Vec<_>>())
        })
        .collect();
    parts.map(|p: Vec<_>| p.concat())
}

/// The text of one chunk with its ids, special tokens included, in as many parts as the window needs.
///
/// # Errors
/// As [`encoder_chunks`].
pub fn encoder_parts<'a>(
    chunk: &'a str,
    tokenizer: &Tokenizer,
    window: usize,
) -> Result<Vec<(&'a str, Vec<u32>)>, LmError> {
    let mut parts = Vec::new();
    fit(chunk, window, &|text| tokenizer.encode(text, true), &mut parts)?;
    Ok(parts)
}

/// Adds `text` with its ids, in as many parts as the window needs. Text that is no token at all adds none.
fn fit<'a>(
    text: &'a str,
    window: usize,
    encode: &impl Fn(&str) -> Result<Vec<u32>, LmError>,
    out: &mut Vec<(&'a str, Vec<u32>)>,
) -> Result<(), LmError> {
    let ids = encode(text)?;
    if ids.len() <= window {
        out.extend(Some((text, ids)).filter(|(_, ids)| !ids.is_empty()));
        return Ok(());
    }
    let half = text.chars().count().div_ceil(2);
    let halves = Chunker::new(half, 0.0).map(|c| c.chunks(text)).unwrap_or_default();
    if halves.len() < 2 {
        let n = ids.len();
        let message =
            format!("the character {text:?} is {n} tokens for the encoder, whose window is {window}");
        return Err(LmError::Input(message));
    }
    halves.iter().try_for_each(|part| fit(part.text(text), window, encode, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token for each character, between two special ones; some characters are three.
    fn by_character(text: &str) -> Result<Vec<u32>, LmError> {
        let mut ids = vec![1];
        for c in text.chars() {
            ids.extend(std::iter::repeat_n(c as u32, if c == '日' { 3 } else { 1 }));
        }
        ids.push(2);
        Ok(ids)
    }

    #[test]
    fn a_chunk_beyond_the_window_is_cut_and_nothing_is_lost() {
        let text = "abc日日日. def日日日日ghi";
        let mut out = Vec::new();
        fit(text, 8, &by_character, &mut out).unwrap();
        assert!(out.len() > 1 && out.iter().all(|(_, ids)| ids.len() <= 8 && ids[0] == 1));
        assert_eq!(out.iter().map(|(part, _)| *part).collect::<String>(), text);
        let inner: Vec<u32> = out.iter().flat_map(|(_, ids)| ids[1..ids.len() - 1].to_vec()).collect();
        let whole = by_character(text).unwrap();
        assert_eq!(inner, whole[1..whole.len() - 1]);
    }

    #[test]
    fn a_character_beyond_the_window_is_an_error() {
        let mut out = Vec::new();
        let error = fit("a日b", 4, &by_character, &mut out).unwrap_err().to_string();
        assert!(error.contains("日") && error.contains("5 tokens"), "{error}");
    }
}
