//! Answers that are written side by side are those that are written alone.

use crate::model::{F64, ids, llama_of};
use crate::support::{llama_json, never};
use crate::text::byte_tokenizer;
use candle_core::Tensor;
use e2llm_lm::{
    Ask, Desk, Finish, Generated, Generation, KvCache, Llama, LmError, Precision, Queued, Result, Segment,
    Tokenizer, generate, generate_batch, generate_queue, prefill,
};
use serde_json::json;

/// A question of a test.
struct Question {
    prompt: Vec<Segment>,
    settings: Generation,
}

fn question(prompt: Vec<Segment>, max_new_tokens: usize) -> Question {
    Question { prompt, settings: Generation { max_new_tokens, ..Generation::default() } }
}

fn words(n: usize, vocab: u32) -> Segment {
    Segment::Ids(ids(n, vocab))
}

fn soft(n: usize, seed: u64) -> Segment {
    let values: Vec<f64> = (0..n * 32).map(|i| (i as f64 * 0.37 + seed as f64).sin()).collect();
    Segment::Embeds(Tensor::from_vec(values, (n, 32), &candle_core::Device::Cpu).unwrap())
}

/// Prompts of ragged lengths, words and soft tokens; answers of one, a few and many tokens, likeliest and sampled.
fn questions(vocab: u32) -> Vec<Question> {
    let sampled = |seed, top_p| Generation {
        temperature: 1.3,
        top_p,
        seed,
        max_new_tokens: 25,
        ..Generation::default()
    };
    vec![
        question(vec![words(1, vocab)], 9),
        question(vec![words(20, vocab), soft(3, 1)], 40),
        question(vec![soft(2, 5), words(7, vocab)], 0),
        Question { prompt: vec![words(11, vocab)], settings: sampled(4, 1.0) },
        question(vec![words(520, vocab)], 1),
        question(vec![soft(33, 9)], 300),
        Question { prompt: vec![words(5, vocab)], settings: sampled(7, 0.8) },
        question(vec![words(90, vocab)], 60),
    ]
}

fn side_by_side(
    llama: &Llama,
    tokenizer: Option<&Tokenizer>,
    eos: &[u32],
    questions: &[Question],
    cancelled: &dyn Fn() -> bool,
) -> Vec<Result<Generated>> {
    let asks: Vec<_> = questions.iter().map(|q| Ask { prompt: &q.prompt, settings: &q.settings }).collect();
    generate_batch(llama, tokenizer, eos, &asks, cancelled)
}

fn alone(llama: &Llama, tokenizer: Option<&Tokenizer>, eos: &[u32], q: &Question) -> Generated {
    generate(llama, tokenizer, eos, &q.prompt, &q.settings, &never).unwrap()
}

fn assert_same(together: &Generated, alone: &Generated, what: &str) {
    assert_eq!(together.ids, alone.ids, "{what}");
    assert_eq!((&together.text, together.finish), (&alone.text, alone.finish), "{what}");
    assert_eq!(together.prompt_tokens, alone.prompt_tokens, "{what}");
}

#[test]
fn answers_are_those_of_one_at_a_time() {
    let variants = [
        json!({}),
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        json!({"model_type": "qwen3", "tie_word_embeddings": false}),
    ];
    for variant in variants {
        for precision in [F64, Precision::F32] {
            let mut config = llama_json();
            config.as_object_mut().unwrap().extend(variant.as_object().unwrap().clone());
            let llama = llama_of(&config, precision);
            let questions = questions(64);
            // A token that comes early in one answer and later or never in others ends them all where it comes.
            let end = alone(&llama, None, &[], &questions[1]).ids[4];
            for eos in [&[][..], &[end]] {
                let together = side_by_side(&llama, None, eos, &questions, &never);
                assert_eq!(together.len(), questions.len());
                let mut ends = Vec::new();
                for (i, (answer, q)) in together.into_iter().zip(&questions).enumerate() {
                    let answer = answer.unwrap();
                    assert_same(&answer, &alone(&llama, None, eos, q), &format!("{variant} {i}"));
                    ends.push(answer.finish);
                }
                assert_eq!(ends.contains(&Finish::Eos), !eos.is_empty(), "{variant}: {ends:?}");
            }
        }
    }
}

/// Where the window is left, also in the midst of an answer, every token is what one pass over all before it gives.
#[test]
fn dynamic_angles_do_not_change_while_an_answer_is_written() {
    let mut config = llama_json();
    config["rope_scaling"] = json!({"rope_type": "dynamic", "factor": 4.0});
    let llama = llama_of(&config, F64);
    let questions: Vec<_> = [20, 50, 90].map(|n| question(vec![words(n, 64)], 30)).into();
    let together = side_by_side(&llama, None, &[], &questions, &never);
    for (n, (q, answer)) in [20, 50, 90].into_iter().zip(questions.iter().zip(together)) {
        let answer = answer.unwrap();
        assert_same(&answer, &alone(&llama, None, &[], q), &n.to_string());
        assert_eq!(answer.ids.len(), 30);
        let mut read = ids(n, 64);
        for token in answer.ids {
            let all = [Segment::Ids(read.clone())];
            let hidden = prefill(&llama, &all, &mut KvCache::new(n + 30), &never).unwrap();
            let logits = llama.logits(&hidden).unwrap().flatten_all().unwrap();
            let likeliest = logits.argmax(0).unwrap().to_scalar::<u32>().unwrap();
            assert_eq!(token, likeliest, "{n}: token {}", read.len() - n);
            read.push(token);
        }
    }
}

#[test]
fn stop_strings_end_their_own_answer_only() {
    let mut config = llama_json();
    config["vocab_size"] = json!(257);
    let llama = llama_of(&config, Precision::F32);
    let mut questions = questions(256);
    let tokenizer = Some(byte_tokenizer());
    let text = alone(&llama, tokenizer, &[], &questions[5]).text;
    let stop = text.chars().skip(20).find(char::is_ascii).unwrap();
    questions[5].settings.stop = vec!["never there".into(), stop.to_string()];
    let together = side_by_side(&llama, tokenizer, &[256], &questions, &never);
    let mut stopped = Vec::new();
    for (i, (answer, q)) in together.into_iter().zip(&questions).enumerate() {
        let answer = answer.unwrap();
        assert_same(&answer, &alone(&llama, tokenizer, &[256], q), &i.to_string());
        stopped.extend((answer.finish == Finish::Stop).then_some(i));
    }
    assert_eq!(stopped, [5]);
}

#[test]
fn what_fails_fails_alone() {
    let llama = llama_of(&llama_json(), Precision::F32);
    let mut questions = questions(64);
    questions[0].settings.temperature = -1.0;
    questions[1].prompt = vec![];
    questions[3].prompt = vec![Segment::Ids(vec![64])];
    // Without numbers in the prompt there are none in the logits.
    let nothing = Tensor::full(f32::NAN, (2, 32), &candle_core::Device::Cpu).unwrap();
    questions[7].prompt = vec![Segment::Embeds(nothing)];
    let together = side_by_side(&llama, None, &[], &questions, &never);
    for (i, (answer, q)) in together.iter().zip(&questions).enumerate() {
        match answer {
            Ok(answer) => assert_same(answer, &alone(&llama, None, &[], q), &i.to_string()),
            Err(error) => {
                let own = generate(&llama, None, &[], &q.prompt, &q.settings, &never).unwrap_err();
                // Behind the first line is where it happened.
                let first = |e: &LmError| e.to_string().lines().next().map(str::to_owned);
                assert_eq!(first(error), first(&own));
            }
        }
    }
    let failed: Vec<_> = (0..together.len()).filter(|i| together[*i].is_err()).collect();
    assert_eq!(failed, [0, 1, 3, 7]);
    assert!(side_by_side(&llama, None, &[], &[], &never).is_empty());
}

#[test]
fn cancelling_ends_what_has_not_ended() {
    let llama = llama_of(&llama_json(), Precision::F32);
    let questions = questions(64);
    let asked = std::cell::Cell::new(0);
    // The short prompts ask once together, the one of two blocks three times, then each pass once.
    let later = || asked.replace(asked.get() + 1) == 19;
    let answers = side_by_side(&llama, None, &[], &questions, &later);
    for (i, answer) in answers.iter().enumerate() {
        let is_short = questions[i].settings.max_new_tokens < 15;
        assert_eq!(answer.is_ok(), is_short, "{i}");
        assert!(matches!(answer, Ok(_) | Err(LmError::Cancelled)), "{i}");
    }
}

/// Answers of a queue, by the numbers of their prompts, and the order in which they were given and came.
fn from_queue(
    llama: &Llama,
    questions: &[Question],
    at_once: usize,
    cancelled: &dyn Fn() -> bool,
) -> (Result<()>, Vec<Option<Result<Generated>>>, Vec<usize>) {
    let mut answers: Vec<Option<Result<Generated>>> = questions.iter().map(|_| None).collect();
    let mut order = Vec::new();
    let mut numbers = 0..questions.len();
    let mut next = || {
        let number = numbers.next()?;
        let Question { prompt, settings } = &questions[number];
        Some(Queued { number, prompt: prompt.clone(), settings: settings.clone() })
    };
    let mut done = |number: usize, answer| {
        assert!(answers[number].replace(answer).is_none(), "{number} is answered twice");
        order.push(number);
    };
    let desk = Desk { llama, tokenizer: None, eos_ids: &[], cancelled };
    let ended = generate_queue(desk, at_once, &mut next, &mut done);
    (ended, answers, order)
}

#[test]
fn a_queue_is_answered_as_its_prompts_alone() {
    let llama = llama_of(&llama_json(), F64);
    let mut all: Vec<_> = (0..3).flat_map(|_| questions(64)).collect();
    // One without numbers in the midst: the next one takes its place.
    let nothing = Tensor::full(f32::NAN, (2, 32), &candle_core::Device::Cpu).unwrap();
    all[9].prompt = vec![Segment::Embeds(nothing)];
    all[12].prompt = vec![];
    let expected: Vec<_> =
        all.iter().map(|q| generate(&llama, None, &[], &q.prompt, &q.settings, &never)).collect();
    for at_once in [1, 2, 5, 8, 100] {
        let (ended, answers, order) = from_queue(&llama, &all, at_once, &never);
        ended.unwrap();
        assert_eq!(order.len(), all.len());
        for (i, (answer, alone)) in answers.into_iter().zip(&expected).enumerate() {
            match (answer.unwrap(), alone) {
                (Ok(answer), Ok(alone)) => assert_same(&answer, alone, &format!("{i}, {at_once} at once")),
                (Err(_), Err(_)) => assert!(i == 9 || i == 12, "{i}"),
                (answer, _) => panic!("{i}, {at_once} at once: {answer:?}"),
            }
        }
        // A place does not wait for the longest answer of all.
        let longest = order.iter().position(|&i| all[i].settings.max_new_tokens == 300).unwrap();
        assert!(at_once == 1 || order[..longest].iter().any(|&i| i >= 8), "{order:?}");
    }
}

#[test]
fn an_interrupt_ends_a_queue_and_asks_for_no_more() {
    let llama = llama_of(&llama_json(), Precision::F32);
    let all: Vec<_> = (0..5).flat_map(|_| questions(64)).collect();
    for at_once in [1, 3] {
        let asked = std::cell::Cell::new(0);
        let later = || asked.replace(asked.get() + 1) >= 60;
        let (ended, answers, order) = from_queue(&llama, &all, at_once, &later);
        assert!(matches!(ended, Err(LmError::Cancelled)));
        let known = answers.iter().flatten().count();
        assert!(known == order.len() && known < all.len());
        assert!(answers.iter().flatten().any(|answer| answer.is_ok()));
        assert!(answers.iter().flatten().any(|answer| matches!(answer, Err(LmError::Cancelled))));
    }
}
