//! The text of an HTML page, for the files whose articles were not stripped of it.

/// Elements that end a paragraph.
const BLOCKS: [&str; 20] = [
    "address",
    "blockquote",
    "body",
    "center",
    "dd",
    "div",
    "dt",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "p",
    "pre",
    "table",
    "title",
    "tr",
];

/// Whether a text is HTML.
pub(crate) fn is_html(text: &str) -> bool {
    ["</p>", "<br", "</html>"].iter().any(|tag| text.contains(tag))
}

/// The text of a page: paragraphs apart by an empty line, line breaks kept, other white space made one space.
pub(crate) fn text(html: &str) -> String {
    let mut out = Text::default();
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        out.words(&rest[..at]);
        rest = &rest[at..];
        let (inside, after) = match rest.strip_prefix("<!--") {
            Some(comment) => ("", comment.split_once("-->").map_or("", |(_, after)| after)),
            None => rest[1..].split_once('>').unwrap_or((&rest[1..], "")),
        };
        let name = inside.trim_start_matches('/');
        let name = name.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let name = name.to_ascii_lowercase();
        if BLOCKS.contains(&name.as_str()) {
            out.gap = "\n\n";
        } else if name == "br" && out.gap != "\n\n" {
            out.gap = "\n";
        }
        rest = after;
    }
    out.words(rest);
    out.text
}

/// What was read so far, and what goes before the next word.
#[derive(Default)]
struct Text {
    text: String,
    gap: &'static str,
}

impl Text {
    fn words(&mut self, raw: &str) {
        let decoded = entities(raw);
        for piece in decoded.split_inclusive(char::is_whitespace) {
            let word = piece.trim_end();
            if !word.is_empty() {
                if !self.text.is_empty() {
                    self.text.push_str(self.gap);
                }
                self.text.push_str(word);
                self.gap = "";
            }
            if word.len() < piece.len() && self.gap.is_empty() {
                self.gap = " ";
            }
        }
    }
}

/// Replaces the entities that occur in books; others stay as they are.
fn entities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        // the longest entity here is `&#x10ffff;`
        let end = rest.bytes().take(10).position(|b| b == b';');
        match end.and_then(|end| Some((entity(&rest[1..end])?, end))) {
            Some((c, end)) => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

fn entity(name: &str) -> Option<char> {
    if let Some(number) = name.strip_prefix('#') {
        let code = match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => number.parse(),
        };
        return char::from_u32(code.ok()?);
    }
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        "nbsp" => '\u{a0}',
        "mdash" => '\u{2014}',
        "ndash" => '\u{2013}',
        "hellip" => '\u{2026}',
        "lsquo" => '\u{2018}',
        "rsquo" => '\u{2019}',
        "ldquo" => '\u{201c}',
        "rdquo" => '\u{201d}',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_and_lines_are_kept() {
        let page = "<!DOCTYPE html>\n<html>\n <!-- a > b --><h1>\n  THE END\n </h1>\n <p>By <i>\n A.</i>\n  Person\n\
                    <br/>\n line two</p><hr class=\"x\"/><P>x&amp;y &lt;z&#8212;&#x41;&unknown; AT&T & more</P></html>\n";
        assert!(is_html(page));
        assert_eq!(text(page), "THE END\n\nBy A. Person\nline two\n\nx&y <z\u{2014}A&unknown; AT&T & more");
    }

    #[test]
    fn a_tag_without_end_ends_the_text() {
        assert_eq!(text("a <p b"), "a");
        assert_eq!(text("a <!-- b"), "a");
        assert_eq!(text("<i>no</i>t apart"), "not apart");
        assert!(!is_html("2 < 3 and <so> on"));
    }
}
