//! Where sentences end.

/// Words whose full stop ends no sentence.
const ABBREVIATIONS: [&str; 26] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "etc", "e.g", "i.e", "cf", "no", "vol", "fig",
    "pp", "inc", "ltd", "co", "corp", "gen", "col", "capt", "rev", "hon",
];

/// Byte offsets just after each sentence: after `.`, `!` or `?` and the quotes and brackets that close with it, where
/// white space and a likely beginning follow, or the text's end. Initials and common abbreviations end nothing.
pub fn ends(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, mark) in text.match_indices(['.', '!', '?']) {
        let rest = &text[at + 1..];
        let closed = rest.trim_start_matches(['"', '\'', ')', ']', '\u{201d}', '\u{2019}', '\u{bb}']);
        let after = closed.trim_start();
        if !after.is_empty() && (after.len() == closed.len() || !begins(after, closed)) {
            continue;
        }
        if mark == "." && is_abbreviation(&text[..at]) && !after.is_empty() {
            continue;
        }
        found.push(text.len() - closed.len());
    }
    found
}

/// Whether a sentence may begin with `after`; `closed` is the same with the white space before it.
fn begins(after: &str, closed: &str) -> bool {
    let gap = &closed[..closed.len() - after.len()];
    let opens = |c: char| {
        c.is_uppercase() || c.is_numeric() || matches!(c, '"' | '\'' | '(' | '[' | '\u{201c}' | '\u{2018}' | '\u{ab}')
            // scripts without capitals
            || (c.is_alphabetic() && !c.is_lowercase())
    };
    gap.matches('\n').count() > 1 || after.chars().next().is_some_and(opens)
}

fn is_abbreviation(before: &str) -> bool {
    let word = before
        .rsplit(|c: char| c.is_whitespace() || matches!(c, '(' | '"' | '\''))
        .next()
        .unwrap_or_default();
    let mut letters = word.chars();
    match (letters.next(), letters.next()) {
        // `I` is a word, other single capitals are initials
        (Some(c), None) => c.is_uppercase() && c != 'I',
        _ => ABBREVIATIONS.contains(&word.to_lowercase().as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<&str> {
        let mut start = 0;
        let piece = |end: usize| {
            let piece = text[start..end].trim();
            start = end;
            piece
        };
        ends(text).into_iter().map(piece).collect()
    }

    #[test]
    fn sentences_end_where_a_reader_would_end_them() {
        assert_eq!(
            split(
                "Dr. Vance saw it. \"Is it?\" asked J. Pike. \"It is.\" He left (at 3.5 miles an hour!) It rained...\n\nend."
            ),
            [
                "Dr. Vance saw it.",
                "\"Is it?\" asked J. Pike.",
                "\"It is.\"",
                "He left (at 3.5 miles an hour!)",
                "It rained...",
                "end."
            ]
        );
        assert_eq!(split("So did I. Then no more"), ["So did I."]);
        assert_eq!(split("Er ging. Ärger kam.\u{201d} Ça va?"), ["Er ging.", "Ärger kam.\u{201d}", "Ça va?"]);
        assert_eq!(split("no end at all"), [""; 0]);
    }
}
