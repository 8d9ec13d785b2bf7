//! Compares greedy answers on a GPU, where a step is one graph, with passes made one by one by hand: tokens, where they end
//! and what is remembered.
//!
//! Run with `cargo run --release -p e2llm-lm --features cuda --example greedy_check`. Random weights; prints a line for each
//! comparison and exits non-zero if one fails.

use std::process::ExitCode;

use candle_core::{DType, Device, Tensor};
use e2llm_lm::{
    Ask, Desk, Finish, Generated, Generation, KvCache, Llama, LlamaConfig, LmError, Precision, Queued,
    Result, RopeScaling, Segment, Weights, generate_batch, generate_queue, generate_with, prefill,
};

fn config() -> LlamaConfig {
    LlamaConfig {
        model_type: "llama".to_owned(),
        vocab_size: 4099,
        hidden_size: 576,
        num_hidden_layers: 4,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        intermediate_size: 1536,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: false,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn prompt(n: usize) -> [Segment; 1] {
    [Segment::Ids((0..n as u32).map(|i| (i * 7919 + 13 * n as u32) % 4099).collect())]
}

fn settings(max_new_tokens: usize) -> Generation {
    Generation { max_new_tokens, ..Generation::default() }
}

fn never() -> bool {
    false
}

/// An answer token by token, and what is remembered then.
fn by_hand(llama: &Llama, prompt: &[Segment], most: usize, end: Option<u32>) -> Result<(Vec<u32>, KvCache)> {
    let mut memory = KvCache::new(e2llm_lm::prompt_len(prompt) + most);
    let mut hidden = prefill(llama, prompt, &mut memory, &never)?;
    let mut ids = Vec::new();
    while ids.len() < most {
        let Some(&(id, _)) = llama.likeliest(&hidden)?.first() else { break };
        if Some(id) == end {
            break;
        }
        ids.push(id);
        if ids.len() < most {
            hidden = llama.forward_hidden(&llama.embed(&[id])?, None, Some(&mut memory))?;
        }
    }
    Ok((ids, memory))
}

/// The sum of differences of what two memories hold; infinite where they are not as long.
fn difference(a: &KvCache, b: &KvCache, layers: usize) -> Result<f64> {
    let mut sum = 0.0;
    for layer in 0..layers {
        let (Some((ak, av)), Some((bk, bv))) = (a.layer(layer)?, b.layer(layer)?) else {
            return Ok(f64::INFINITY);
        };
        for (a, b) in [(ak, bk), (av, bv)] {
            if a.dims() != b.dims() {
                return Ok(f64::INFINITY);
            }
            let gap = (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.sum_all()?;
            sum += f64::from(gap.to_scalar::<f32>()?);
        }
    }
    Ok(sum)
}

fn main() -> Result<ExitCode> {
    let gpu = match Device::new_cuda(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("no gpu to check: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let config = config();
    let weights = Weights::random(&config.tensors(), 3);
    let llama = Llama::load(&config, &weights, None, &gpu, Precision::Dense(DType::BF16))?;
    let mut failed = 0;
    let mut report = |name: &str, ok: bool| {
        println!("{} {name}", if ok { "ok  " } else { "FAIL" });
        failed += usize::from(!ok);
    };
    // One answer alone: short ones, across a new graph, to a token that ends it.
    for (n, most) in [(1, 40), (200, 120), (255, 20), (300, 600), (17, 5)] {
        let prompt = prompt(n);
        let (whole, _) = by_hand(&llama, &prompt, most, None)?;
        // The last token that had not come before ends the answer there; none leaves it whole.
        let late = (1..whole.len()).rfind(|&i| !whole[..i].contains(&whole[i]));
        for end in [None, late.map(|i| whole[i])] {
            let (ids, memory) = by_hand(&llama, &prompt, most, end)?;
            let mut own = KvCache::new(n + most);
            let eos: Vec<u32> = end.into_iter().collect();
            let answer = generate_with(&mut own, &llama, None, &eos, &prompt, &settings(most), &never)?;
            let finish = if ids.len() < most { Finish::Eos } else { Finish::Length };
            let same = answer.ids == ids && answer.finish == finish;
            let gap = difference(&own, &memory, config.num_hidden_layers)?;
            report(
                &format!("alone, {n} + {} of {most} tokens, memory {gap:.1e}", ids.len()),
                same && gap == 0.0,
            );
        }
    }
    // Side by side, with answers of several lengths, one that a token ends, and one of one token.
    for count in [3, 12, 40] {
        let prompts: Vec<_> = (0..count).map(|i| prompt(1 + 37 * i % 290)).collect();
        let all: Vec<_> = (0..count).map(|i| settings([90, 7, 1, 300, 33][i % 5])).collect();
        let asks: Vec<_> =
            prompts.iter().zip(&all).map(|(prompt, settings)| Ask { prompt, settings }).collect();
        let mut eos = Vec::new();
        for with_end in [false, true] {
            let answers = generate_batch(&llama, None, &eos, &asks, &never);
            let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
            // Rounding differs with the number of rows: each token must be as likely as the likeliest one, nearly.
            let (mut worst, mut ends) = (0f32, 0);
            for (answer, ask) in answers.iter().zip(&asks) {
                ends += usize::from(answer.finish == Finish::Eos);
                let whole = answer.ids.len() == ask.settings.max_new_tokens;
                if whole == (answer.finish == Finish::Eos) || answer.ids.iter().any(|id| eos.contains(id)) {
                    worst = f32::INFINITY;
                }
                worst = worst.max(shortfall(&llama, ask.prompt, &answer.ids)?);
            }
            let name =
                format!("{count} side by side, {ends} ended by a token, {worst:.1e} below the likeliest");
            report(&name, worst < 0.05 && with_end == (ends > 0));
            // One of the first answer's ends answers the next time, at the latest where it came in this one.
            eos.extend(answers.first().and_then(|answer| answer.ids.get(20)).copied());
        }
    }
    // A queue longer than its places: answers of many lengths, a prompt too long to share a pass, one of no numbers, some
    // that are sampled.
    for (places, with_sampled) in [(3, false), (9, false), (24, false), (9, true)] {
        let (first, second) = (queue(&llama, places, with_sampled)?, queue(&llama, places, with_sampled)?);
        let (mut worst, mut wrong) = (0f32, 0);
        for (i, answer) in first.iter().enumerate() {
            match answer {
                None => wrong += usize::from(i != NO_NUMBERS),
                Some(ids) => {
                    let (prompt, settings) = queued(i, with_sampled);
                    wrong += usize::from(i == NO_NUMBERS || ids.len() != settings.max_new_tokens);
                    if settings.temperature == 0.0 {
                        worst = worst.max(shortfall(&llama, &prompt, ids)?);
                    }
                }
            }
        }
        let name = format!(
            "{QUEUED} in {places} places{}, {wrong} wrong, {worst:.1e} below the likeliest, the same again",
            if with_sampled { ", some sampled" } else { "" }
        );
        report(&name, wrong == 0 && worst < 0.05 && first == second);
    }
    println!("{failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prompts of a queue, and which of them has no numbers.
const QUEUED: usize = 61;
const NO_NUMBERS: usize = 11;

/// A prompt of the queue and how its answer is chosen.
fn queued(i: usize, with_sampled: bool) -> ([Segment; 1], Generation) {
    let length = [90, 7, 1, 260, 33, 2, 140][i % 7];
    let temperature = if with_sampled && i % 5 == 3 { 0.9 } else { 0.0 };
    let settings = Generation { temperature, seed: i as u64, ..settings(length) };
    (prompt(if i % 17 == 16 { 700 } else { 1 + 37 * i % 290 }), settings)
}

/// The answers of a queue; nothing for one that failed.
fn queue(llama: &Llama, places: usize, with_sampled: bool) -> Result<Vec<Option<Vec<u32>>>> {
    let width = llama.config().hidden_size;
    let nothing = Tensor::full(f32::NAN, (40, width), llama.device())?;
    let mut numbers = 0..QUEUED;
    let mut next = || {
        let number = numbers.next()?;
        let (prompt, settings) = queued(number, with_sampled);
        let prompt =
            if number == NO_NUMBERS { vec![Segment::Embeds(nothing.clone())] } else { prompt.to_vec() };
        Some(Queued { number, prompt, settings })
    };
    let mut answers = vec![None; QUEUED];
    let mut done = |number: usize, answer: Result<Generated>| answers[number] = answer.ok().map(|a| a.ids);
    let desk = Desk { llama, tokenizer: None, eos_ids: &[], cancelled: &never };
    generate_queue(desk, places, &mut next, &mut done)?;
    Ok(answers)
}

/// How far below the likeliest token's logit those of an answer are at most, read in one pass.
fn shortfall(llama: &Llama, prompt: &[Segment], ids: &[u32]) -> Result<f32> {
    let [Segment::Ids(start)] = prompt else { return Err(LmError::Input("a prompt of ids".to_owned())) };
    let all: Vec<u32> = start.iter().chain(ids).copied().collect();
    let mut memory = KvCache::new(all.len());
    let hidden = llama.forward_hidden(&llama.embed(&all)?, None, Some(&mut memory))?;
    let logits = llama.logits(&hidden)?.squeeze(0)?.to_dtype(DType::F32)?;
    let mut worst = 0f32;
    for (i, &id) in ids.iter().enumerate() {
        let row: Vec<f32> = logits.get(start.len() + i - 1)?.to_vec1()?;
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        worst = worst.max(most - row[id as usize]);
    }
    Ok(worst)
}
