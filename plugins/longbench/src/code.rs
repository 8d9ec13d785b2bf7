//! Scores of a line of code.

use std::collections::BTreeMap;

/// The line of an answer that is compared: the first without `` ` ``, `#` and `//`; nothing where all have one.
///
/// Source: `code_sim_score` of LongBench's `metrics.py`.
pub fn code_line(prediction: &str) -> &str {
    let plain = |line: &&str| !["`", "#", "//"].iter().any(|mark| line.contains(mark));
    prediction.trim_start_matches('\n').split('\n').find(plain).unwrap_or_default()
}

/// Twice the longest common subsequence's share of the characters of both: `fuzz.ratio / 100` of RapidFuzz.
pub fn code_similarity(prediction: &str, gold: &str) -> f64 {
    rapidfuzz::fuzz::ratio(code_line(prediction).chars(), gold.chars())
}

/// The same by `fuzz.ratio / 100` of fuzzywuzzy, which LongBench's script imports: twice the share of the blocks that
/// Python's `difflib` finds, in whole percent. (Where python-Levenshtein is installed, fuzzywuzzy's is the other one.)
pub fn code_similarity_compat(prediction: &str, gold: &str) -> f64 {
    (100.0 * difflib_ratio(code_line(prediction), gold)).round_ties_even() / 100.0
}

/// From this length on, frequent characters begin no block.
const POPULAR_FROM: usize = 200;

/// `difflib.SequenceMatcher(None, a, b).ratio()`.
fn difflib_ratio(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.is_empty() && b.is_empty() {
        return 1.0;
    }
    let mut places: BTreeMap<char, Vec<usize>> = BTreeMap::new();
    for (j, c) in b.iter().enumerate() {
        places.entry(*c).or_default().push(j);
    }
    if b.len() >= POPULAR_FROM {
        places.retain(|_, at| at.len() <= b.len() / 100 + 1);
    }
    let mut matched = 0;
    let mut open = vec![[0, a.len(), 0, b.len()]];
    while let Some([a_low, a_high, b_low, b_high]) = open.pop() {
        let (i, j, size) = longest_block(&a, &b, &places, [a_low, a_high, b_low, b_high]);
        if size == 0 {
            continue;
        }
        matched += size;
        open.push([a_low, i, b_low, j]);
        open.push([i + size, a_high, j + size, b_high]);
    }
    2.0 * matched as f64 / (a.len() + b.len()) as f64
}

/// Where the longest common block begins in both, the first of equals, and its length.
fn longest_block(
    a: &[char],
    b: &[char],
    places: &BTreeMap<char, Vec<usize>>,
    [a_low, a_high, b_low, b_high]: [usize; 4],
) -> (usize, usize, usize) {
    let (mut i, mut j, mut size) = (a_low, b_low, 0);
    let mut ending: BTreeMap<usize, usize> = BTreeMap::new(); // lengths of blocks that end before a place of `b`
    for (at, c) in a.iter().enumerate().take(a_high).skip(a_low) {
        let mut next = BTreeMap::new();
        for &place in places.get(c).into_iter().flatten().filter(|p| (b_low..b_high).contains(*p)) {
            let length = ending.get(&place).copied().unwrap_or(0) + 1;
            next.insert(place + 1, length);
            if length > size {
                (i, j, size) = (at + 1 - length, place + 1 - length, length);
            }
        }
        ending = next;
    }
    // frequent characters begin no block, but go with one
    while i > a_low && j > b_low && a[i - 1] == b[j - 1] {
        (i, j, size) = (i - 1, j - 1, size + 1);
    }
    while i + size < a_high && j + size < b_high && a[i + size] == b[j + size] {
        size += 1;
    }
    (i, j, size)
}
