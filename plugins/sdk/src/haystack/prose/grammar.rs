//! Templates and word lists: the little language of `words.txt` and `tales.txt`.
//!
//! `[one|another]` picks, `{list}` draws from a list, `{list1}` draws once per tale and then repeats itself,
//! `{a list}` puts the article before it, and a capital (`{List}`) gives the draw one. `{A}`, `{B}`, `{C}` are the
//! people of the tale, A and B of different pronouns: `{he} {his} {job} {shop}` are A's, `{bhe} {bshop}` B's,
//! `{che} {cshop}` C's. `{pname}` is any other inhabitant; `{P.full}` and the like are the person introduced.

use std::collections::BTreeMap;

/// A parsed template.
pub(super) type Template = Vec<Part>;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    Text(String),
    Slot(Slot),
    Choice(Vec<Template>),
}

/// A hole in a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    /// What fills it, without the number: a list, or something of the world.
    pub(super) kind: String,
    /// Kind and number, where the filling is kept for the tale.
    pub(super) key: Option<String>,
    /// Whether an article goes before it.
    pub(super) article: bool,
    /// Whether it begins with a capital.
    pub(super) capital: bool,
}

impl Slot {
    fn parse(text: &str) -> Result<Self, String> {
        let (article, name) = text.strip_prefix("a ").map_or((false, text), |name| (true, name));
        let first = name.chars().next().ok_or("an empty slot")?;
        let person = matches!(name, "A" | "B" | "C") || name.starts_with("P.");
        let capital = first.is_uppercase() && !person;
        let name = if capital {
            first.to_lowercase().chain(name.chars().skip(1)).collect()
        } else {
            name.to_owned()
        };
        let kind = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        Ok(Self { key: (kind != name).then_some(name), kind, article, capital })
    }
}

/// Parses a template.
///
/// # Errors
/// A bracket or brace that is not closed, and an empty slot.
pub(super) fn parse(text: &str) -> Result<Template, String> {
    let mut rest = text;
    let template = sequence(&mut rest, false)?;
    if rest.is_empty() { Ok(template) } else { Err(format!("`{text}`: a `]` too many")) }
}

fn sequence(rest: &mut &str, inside: bool) -> Result<Template, String> {
    let mut parts = Vec::new();
    loop {
        let stop: &[char] = if inside { &['[', '{', '|', ']'] } else { &['[', '{', ']'] };
        let at = rest.find(stop).unwrap_or(rest.len());
        if at > 0 {
            parts.push(Part::Text(rest[..at].to_owned()));
        }
        *rest = &rest[at..];
        if let Some(after) = rest.strip_prefix('{') {
            let (name, after) = after.split_once('}').ok_or_else(|| format!("`{{{after}`: not closed"))?;
            parts.push(Part::Slot(Slot::parse(name)?));
            *rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            *rest = after;
            let mut options = Vec::new();
            loop {
                options.push(sequence(rest, true)?);
                let more = rest.starts_with('|');
                let closed = rest.starts_with(']');
                if !more && !closed {
                    return Err("a `[` is not closed".to_owned());
                }
                *rest = &rest[1..];
                if closed {
                    break;
                }
            }
            parts.push(Part::Choice(options));
        } else {
            return Ok(parts);
        }
    }
}

/// Word lists by name.
#[derive(Debug, Default)]
pub(super) struct Words {
    lists: BTreeMap<String, Vec<Template>>,
    /// The same entries unparsed, for lists that are read as plain text.
    raw: BTreeMap<String, Vec<String>>,
}

impl Words {
    /// Parses `words.txt`.
    ///
    /// # Errors
    /// A line outside a list, and a broken template.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut words = Self::default();
        let mut current = String::new();
        for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
            let entries = if line.starts_with(' ') {
                line
            } else {
                let (name, entries) = line.split_once(':').ok_or_else(|| format!("`{line}`: no list"))?;
                current = name.to_owned();
                entries
            };
            for entry in entries.split(" ; ").map(str::trim).filter(|e| !e.is_empty()) {
                words.lists.entry(current.clone()).or_default().push(parse(entry)?);
                words.raw.entry(current.clone()).or_default().push(entry.to_owned());
            }
        }
        Ok(words)
    }

    /// A list as templates; empty where there is none of that name.
    pub(super) fn list(&self, name: &str) -> &[Template] {
        self.lists.get(name).map_or(&[], Vec::as_slice)
    }

    /// A list as plain text; empty where there is none of that name.
    pub(super) fn raw(&self, name: &str) -> &[String] {
        self.raw.get(name).map_or(&[], Vec::as_slice)
    }
}

/// `text` with `a` or `an` before it.
pub(super) fn with_article(text: &str) -> String {
    let vowel =
        text.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']) && !text.starts_with("one-");
    format!("{} {text}", if vowel { "an" } else { "a" })
}

/// `text` with its first letter as a capital, be it behind a quotation mark.
pub(super) fn capitalised(text: &str) -> String {
    let mut done = false;
    let raise = |c: char| {
        if !done && c.is_alphabetic() {
            done = true;
            c.to_ascii_uppercase()
        } else {
            c
        }
    };
    text.chars().map(raise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_parse() {
        let slot = |kind: &str, key: Option<&str>, article, capital| {
            Part::Slot(Slot { kind: kind.into(), key: key.map(Into::into), article, capital })
        };
        let parsed = parse("[x|{A} y] {a book2}, {Sky}.").unwrap();
        let choice =
            vec![vec![Part::Text("x".into())], vec![slot("A", None, false, false), Part::Text(" y".into())]];
        assert_eq!(
            parsed,
            [
                Part::Choice(choice),
                Part::Text(" ".into()),
                slot("book", Some("book2"), true, false),
                Part::Text(", ".into()),
                slot("sky", None, false, true),
                Part::Text(".".into()),
            ]
        );
        for broken in ["[x", "{x", "x]", "{}"] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn articles_and_capitals() {
        assert_eq!(with_article("oak table"), "an oak table");
        assert_eq!(with_article("one-eyed cat"), "a one-eyed cat");
        assert_eq!(capitalised("\"so it is"), "\"So it is");
    }
}
