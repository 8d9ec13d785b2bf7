//! Text of tokens that come one by one, cut before the first stop string.

use crate::{Result, Tokenizer};

/// Shown by decoders for bytes that are not a whole character yet.
const INCOMPLETE: char = '\u{fffd}';

/// Decodes tokens as they come. A character split over tokens appears once it is whole, and a stop string is found
/// however it is split.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: Vec<String>,
    ids: Vec<u32>,
    /// Tokens from here on are decoded again with every new one: what a token adds depends on the one before it.
    context: usize,
    /// Tokens before this are in `text`.
    shown: usize,
    text: String,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    /// An empty text that ends before any of `stops`; empty stop strings are passed over.
    pub fn new(tokenizer: &'a Tokenizer, stops: &[String]) -> Self {
        let (stops, ids, text) = (stops.to_vec(), Vec::new(), String::new());
        Self { tokenizer, stops, ids, context: 0, shown: 0, text, stopped: false }
    }

    /// Adds a token; `true` once a stop string is complete.
    ///
    /// # Errors
    /// Any of decoding.
    pub fn push(&mut self, id: u32) -> Result<bool> {
        if !self.stopped {
            self.ids.push(id);
            self.decode(false)?;
        }
        Ok(self.stopped)
    }

    /// The text so far, whole characters only.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The whole text, and whether a stop string ended it.
    ///
    /// # Errors
    /// Any of decoding.
    pub fn finish(mut self) -> Result<(String, bool)> {
        if !self.stopped {
            self.decode(true)?;
        }
        Ok((self.text, self.stopped))
    }

    fn decode(&mut self, last: bool) -> Result<()> {
        let before = self.tokenizer.decode(&self.ids[self.context..self.shown], true)?;
        let now = self.tokenizer.decode(&self.ids[self.context..], true)?;
        if now.ends_with(INCOMPLETE) && !last {
            return Ok(());
        }
        let old = self.text.len();
        self.text.push_str(now.get(before.len()..).unwrap_or_default());
        (self.context, self.shown) = (self.shown, self.ids.len());
        self.cut(old);
        Ok(())
    }

    /// Cuts the text before the first stop string that reaches beyond `old`.
    fn cut(&mut self, old: usize) {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut start = old.saturating_sub(longest);
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let tail = &self.text[start..];
        let found = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| tail.find(s.as_str())).min();
        if let Some(at) = found {
            self.text.truncate(start + at);
            self.stopped = true;
        }
    }
}
