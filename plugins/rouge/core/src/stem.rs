//! Porter's stemmer as NLTK runs it by default (`NLTK_EXTENSIONS`).
//!
//! It is neither Porter's published algorithm nor Porter2: there is a table of irregular words, words of one or two
//! letters stay, `ies`/`ied` of four-letter words become `ie`, `y` becomes `i` only after a consonant that is not the
//! first letter, `alli` is taken off before the rest of step 2, and a vowel and a consonant alone count as a short stem.

/// A suffix and what replaces it.
type Replacement = (&'static [u8], &'static [u8]);

const IRREGULAR: [(&[u8], &[u8]); 9] = [
    (b"skies", b"sky"),
    (b"sky", b"sky"),
    (b"dying", b"die"),
    (b"lying", b"lie"),
    (b"tying", b"tie"),
    (b"news", b"news"),
    (b"innings", b"inning"),
    (b"outings", b"outing"),
    (b"cannings", b"canning"),
];

const UNCHANGED: [&[u8]; 7] = [b"inning", b"outing", b"canning", b"howe", b"proceed", b"exceed", b"succeed"];

/// Step 2: double suffixes to single ones, when something measurable stays.
const STEP_2: [Replacement; 21] = [
    (b"ational", b"ate"),
    (b"tional", b"tion"),
    (b"enci", b"ence"),
    (b"anci", b"ance"),
    (b"izer", b"ize"),
    (b"bli", b"ble"),
    (b"alli", b"al"),
    (b"entli", b"ent"),
    (b"eli", b"e"),
    (b"ousli", b"ous"),
    (b"ization", b"ize"),
    (b"ation", b"ate"),
    (b"ator", b"ate"),
    (b"alism", b"al"),
    (b"iveness", b"ive"),
    (b"fulness", b"ful"),
    (b"ousness", b"ous"),
    (b"aliti", b"al"),
    (b"iviti", b"ive"),
    (b"biliti", b"ble"),
    (b"fulli", b"ful"),
];

/// Step 3: `-ic-`, `-full`, `-ness` and the like, when something measurable stays.
const STEP_3: [Replacement; 7] = [
    (b"icate", b"ic"),
    (b"ative", b""),
    (b"alize", b"al"),
    (b"iciti", b"ic"),
    (b"ical", b"ic"),
    (b"ful", b""),
    (b"ness", b""),
];

/// Step 4: single suffixes, dropped from a stem of measure two or more.
const STEP_4: [&[u8]; 19] = [
    b"al", b"ance", b"ence", b"er", b"ic", b"able", b"ible", b"ant", b"ement", b"ment", b"ent", b"ion",
    b"ou", b"ism", b"ate", b"iti", b"ous", b"ive", b"ize",
];

/// Replaces `word`, lower-case letters and digits, by its stem.
pub fn stem(word: &mut Vec<u8>) {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(from, _)| from == word) {
        word.clear();
        word.extend_from_slice(stem);
        return;
    }
    if word.len() <= 2 || UNCHANGED.contains(&word.as_slice()) {
        return;
    }
    plural(word);
    past_and_gerund(word);
    final_y(word);
    double_suffix(word);
    rewrite_first(word, &STEP_3);
    single_suffix(word);
    final_e(word);
    if word.ends_with(b"ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
}

/// Step 1a.
fn plural(word: &mut Vec<u8>) {
    if word.ends_with(b"ies") {
        let kept = if word.len() == 4 { 1 } else { 2 };
        word.truncate(word.len() - kept);
    } else if word.ends_with(b"sses") {
        word.truncate(word.len() - 2);
    } else if word.ends_with(b"s") && !word.ends_with(b"ss") {
        word.pop();
    }
}

/// Step 1b.
fn past_and_gerund(word: &mut Vec<u8>) {
    if word.ends_with(b"ied") {
        let kept = if word.len() == 4 { 1 } else { 2 };
        word.truncate(word.len() - kept);
        return;
    }
    if let Some(stem) = word.strip_suffix(b"eed") {
        if measure(stem) > 0 {
            word.pop();
        }
        return;
    }
    let stem = [&b"ed"[..], b"ing"]
        .into_iter()
        .find_map(|suffix| word.strip_suffix(suffix).filter(|stem| contains_vowel(stem)).map(<[u8]>::len));
    let Some(stem) = stem else { return };
    word.truncate(stem);
    if word.ends_with(b"at") || word.ends_with(b"bl") || word.ends_with(b"iz") {
        word.push(b'e');
    } else if ends_double_consonant(word) {
        if !matches!(word.last(), Some(b'l' | b's' | b'z')) {
            word.pop();
        }
    } else if measure(word) == 1 && is_short(word) {
        word.push(b'e');
    }
}

/// Step 1c, narrowed by NLTK: not after a vowel and not in two-letter words.
fn final_y(word: &mut [u8]) {
    if let Some((last, stem)) = word.split_last_mut()
        && *last == b'y'
        && stem.len() > 1
        && is_consonant(stem, stem.len() - 1)
    {
        *last = b'i';
    }
}

/// Step 2, which NLTK runs again after taking off `alli`.
fn double_suffix(word: &mut Vec<u8>) {
    while let Some(stem) = word.strip_suffix(b"alli").filter(|stem| measure(stem) > 0) {
        let kept = stem.len() + 2;
        word.truncate(kept);
    }
    // The measure of `logi` counts its `l` too.
    if !rewrite_first(word, &STEP_2) && word.ends_with(b"logi") && measure(&word[..word.len() - 3]) > 0 {
        word.pop();
    }
}

/// Applies the first rule whose suffix fits, if its stem has a measure above 0. Says whether a suffix fitted.
fn rewrite_first(word: &mut Vec<u8>, rules: &[Replacement]) -> bool {
    let Some((suffix, replacement)) = rules.iter().find(|(suffix, _)| word.ends_with(suffix)) else {
        return false;
    };
    let stem = word.len() - suffix.len();
    if measure(&word[..stem]) > 0 {
        word.truncate(stem);
        word.extend_from_slice(replacement);
    }
    true
}

/// Step 4.
fn single_suffix(word: &mut Vec<u8>) {
    let Some(suffix) = STEP_4.iter().find(|suffix| word.ends_with(suffix)) else { return };
    let stem = &word[..word.len() - suffix.len()];
    if measure(stem) > 1 && (*suffix != b"ion" || matches!(stem.last(), Some(b's' | b't'))) {
        let kept = stem.len();
        word.truncate(kept);
    }
}

/// Step 5a.
fn final_e(word: &mut Vec<u8>) {
    if let Some(stem) = word.strip_suffix(b"e") {
        let measure = measure(stem);
        if measure > 1 || (measure == 1 && !is_short(stem)) {
            word.pop();
        }
    }
}

/// Whether the letter at `at` is a consonant.
fn is_consonant(word: &[u8], at: usize) -> bool {
    consonants(&word[..=at]).last() == Some(true)
}

/// For each letter whether it is a consonant: no vowel, and `y` only at the start or after a vowel.
fn consonants(word: &[u8]) -> impl Iterator<Item = bool> {
    let mut previous = false;
    word.iter().map(move |letter| {
        previous = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !previous,
            _ => true,
        };
        previous
    })
}

/// Porter's measure: how many times a vowel is followed by a consonant.
fn measure(stem: &[u8]) -> usize {
    let mut previous = true;
    let mut measure = 0;
    for consonant in consonants(stem) {
        measure += usize::from(consonant && !previous);
        previous = consonant;
    }
    measure
}

fn contains_vowel(stem: &[u8]) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

fn ends_double_consonant(word: &[u8]) -> bool {
    matches!(word, [.., a, b] if a == b) && is_consonant(word, word.len() - 1)
}

/// Consonant, vowel, consonant at the end, the last none of `w x y`; or, in NLTK, just a vowel and a consonant.
fn is_short(word: &[u8]) -> bool {
    let shape = |at: usize| is_consonant(word, at);
    match *word {
        [_, _] => !shape(0) && shape(1),
        [.., last] if word.len() > 2 => {
            let end = word.len();
            shape(end - 3) && !shape(end - 2) && shape(end - 1) && !matches!(last, b'w' | b'x' | b'y')
        }
        _ => false,
    }
}
