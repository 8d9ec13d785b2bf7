//! Microseconds a pair on one core: `bench PAIRS.jsonl [VARIANT...]`, a line of PAIRS being
//! `{"prediction": "...", "references": ["..."]}`. Without variants: the four of rouge_score with stemmer.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use e2llm_rouge::{Scorer, Selection, Variant};
use serde_json::Value;

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: bench PAIRS.jsonl [VARIANT...]")?;
    let names: Vec<String> = args.collect();
    let mut variants = Vec::new();
    for name in &names {
        let found = Variant::ALL.into_iter().find(|variant| variant.id() == name);
        variants.push(found.ok_or_else(|| format!("no variant `{name}`"))?);
    }
    if variants.is_empty() {
        variants
            .extend_from_slice(&Variant::ALL[Variant::Rouge1Stem as usize..=Variant::RougeLsumStem as usize]);
    }
    let selection = Selection::of(&variants);
    let mut pairs = Vec::new();
    for line in std::fs::read_to_string(&path)?.lines() {
        let pair: Value = serde_json::from_str(line)?;
        let references: Vec<String> = serde_json::from_value(pair["references"].clone())?;
        pairs.push((pair["prediction"].as_str().ok_or("`prediction` is no text")?.to_owned(), references));
    }
    let mut scorer = Scorer::default();
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for (prediction, references) in &pairs {
            black_box(scorer.score(prediction, references, selection));
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let ids: Vec<&str> = variants.iter().map(|variant| variant.id()).collect();
    println!("{:.2} us a pair: {}", best * 1e6 / pairs.len().max(1) as f64, ids.join(" "));
    Ok(())
}
