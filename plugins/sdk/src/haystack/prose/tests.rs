use super::*;

fn story(seed: u64, words: usize) -> String {
    let mut prose = Prose::new(seed).unwrap();
    let (mut text, mut n) = (String::new(), 0);
    while n < words {
        let episode = prose.next_episode().unwrap().expect("more to tell");
        n += episode.split_whitespace().count();
        text += &episode;
        text += "\n\n";
    }
    text
}

fn split(text: &str) -> Vec<&str> {
    let mut start = 0;
    let piece = |end| {
        let piece = text[start..end].trim();
        start = end;
        piece
    };
    sentences::ends(text).into_iter().map(piece).collect()
}

#[test]
fn every_tale_can_be_told() {
    let book = BOOK.as_ref().unwrap();
    assert!(book.tales.len() >= 30);
    // all slots of all wordings mean something, whatever is drawn
    let mut prose = Prose::new(3).unwrap();
    for tale in &book.tales {
        let cast = Some([0, 1, 2]);
        let mut memo = voice::Memo::default();
        for step in tale.episodes.iter().flatten() {
            let Step::Sentence { wordings, .. } = step else { continue };
            for wording in wordings {
                for _ in 0..20 {
                    let mut voice = prose.voice(cast, memo.clone());
                    let text = voice.say(wording).unwrap();
                    memo = voice.memo;
                    assert!(text.ends_with(['.', '"', '?']), "{text}");
                    assert!(!text.contains(['{', '}', '[', ']', '|']), "{text}");
                }
            }
        }
        let memory = tale.memory.as_ref().expect("a memory");
        prose.voice(cast, memo).say(memory).unwrap();
    }
}

#[test]
fn a_hundred_thousand_words_repeat_nothing() {
    let text = story(1, 100_000);
    let all = split(&text);
    let mut seen = BTreeSet::new();
    for pair in all.windows(2) {
        assert_ne!(opening_of(pair[0]), opening_of(pair[1]));
    }
    for sentence in &all {
        assert!(seen.insert(*sentence), "twice: {sentence}");
        assert!(sentence.starts_with(|c: char| c.is_uppercase() || c == '"'), "{sentence}");
    }
    let words: Vec<_> =
        text.split_whitespace().map(|w| w.trim_matches(|c: char| !c.is_alphabetic())).collect();
    let types: BTreeSet<_> = words.iter().map(|w| w.to_lowercase()).collect();
    let mean = words.len() as f64 / all.len() as f64;
    assert!((12.0..24.0).contains(&mean), "{mean} words a sentence");
    assert!(types.len() > 2000, "{} different words", types.len());
    assert!(!text.contains(|c: char| c.is_ascii_digit()));
    let dropped = text.contains("  ") || text.contains(" ,") || text.contains(" .");
    assert!(!dropped);
}

#[test]
fn stories_depend_on_their_seed_only() {
    assert_eq!(story(5, 3000), story(5, 3000));
    assert_ne!(story(5, 500), story(6, 500));
    assert!(story(5, 3000).starts_with(&story(5, 1000)));
}

#[test]
fn what_came_of_a_tale_is_talked_about_once() {
    let text = story(8, 30_000);
    // wordings of the list `gossip`
    let talk =
        ["about how ", "had not forgotten how ", "would often recall how ", "had heard how ", "learned how "];
    let after = |s: &'static str| {
        text.split(s).skip(1).filter_map(|rest| rest.split_once('.')).map(|(clause, _)| clause)
    };
    let clauses: Vec<_> = talk.into_iter().flat_map(after).collect();
    let distinct: BTreeSet<_> = clauses.iter().collect();
    assert!(clauses.len() > 10, "{}", clauses.len());
    assert_eq!(distinct.len(), clauses.len());
}
