//! Tokens a second of many answers of different lengths: in batches that end with their longest answer, and from a queue.
//!
//! `cargo run --release -p e2llm-lm [--features cuda] --example queue_speed -- FOLDER|135m|7b cpu|cuda f32|bf16 PROMPTS PLACES...`
//! 135m and 7b are the shapes of SmolLM2 and Llama-2 with random weights. Prompts have 50 to 450 tokens; lengths of answers are
//! spread evenly over their logarithms from 4 to 256 tokens, so that the mean is 60 and the longest of eight mostly above 150.

use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use e2llm_lm::{
    Ask, DecoderFiles, Desk, Generation, Llama, LlamaConfig, LmError, Precision, Queued, Result, RopeScaling,
    Segment, Weights, generate_batch, generate_queue,
};

fn config(name: &str) -> Option<LlamaConfig> {
    let [width, layers, heads, kv_heads, head_dim, intermediate, vocabulary] = match name {
        "135m" => [576, 30, 9, 3, 64, 1536, 49152],
        "7b" => [4096, 32, 32, 32, 128, 11008, 32000],
        _ => return None,
    };
    Some(LlamaConfig {
        model_type: "llama".to_owned(),
        vocab_size: vocabulary,
        hidden_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        intermediate_size: intermediate,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: name == "135m",
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    })
}

/// A number from 0 to 1 that looks like chance.
fn spread(i: usize, of: u64) -> f64 {
    let x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ of).rotate_left(23);
    (x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f64 / (1u64 << 24) as f64
}

fn question(i: usize, vocabulary: usize) -> (Vec<Segment>, Generation) {
    let length = 50 + (400.0 * spread(i, 7)) as usize;
    let ids = (0..length).map(|j| ((i * 7919 + j * 104_729) % (vocabulary - 10)) as u32).collect();
    let answer = 4.0 * 64f64.powf(spread(i, 1));
    (vec![Segment::Ids(ids)], Generation { max_new_tokens: answer as usize, ..Generation::default() })
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage =
        || LmError::Input("queue_speed FOLDER|135m|7b cpu|cuda f32|bf16 PROMPTS PLACES...".to_owned());
    let [model, device, dtype, count, places @ ..] = &args[..] else { return Err(usage()) };
    let device = if device == "cpu" { Device::Cpu } else { Device::new_cuda(0)? };
    e2llm_kernels::keep_freed_memory(&device)?;
    let precision: Precision = dtype.parse()?;
    let llama = match config(model) {
        Some(config) => {
            Llama::load(&config, &Weights::random(&config.tensors(), 1), None, &device, precision)?
        }
        None => {
            let files = DecoderFiles::open(Path::new(model))?;
            Llama::load(&files.config, &files.weights, None, &device, precision)?
        }
    };
    let count: usize = count.parse().map_err(|_| usage())?;
    let all: Vec<_> = (0..count).map(|i| question(i, llama.config().vocab_size)).collect();
    let tokens: usize = all.iter().map(|(_, settings)| settings.max_new_tokens).sum();
    let read: usize = all.iter().map(|(prompt, _)| e2llm_lm::prompt_len(prompt)).sum();
    println!("{count} prompts of {read} tokens, answers of {tokens}");
    let never = || false;
    let asks: Vec<_> = all.iter().map(|(prompt, settings)| Ask { prompt, settings }).collect();
    for places in places {
        let places: usize = places.parse().map_err(|_| usage())?;
        let batches = || -> Result<()> {
            for batch in asks.chunks(places) {
                generate_batch(&llama, None, &[], batch, &never).into_iter().collect::<Result<Vec<_>>>()?;
            }
            Ok(())
        };
        let queue = || -> Result<()> {
            let mut waiting = all.iter().enumerate().map(|(number, (prompt, settings))| Queued {
                number,
                prompt: prompt.clone(),
                settings: settings.clone(),
            });
            let desk = Desk { llama: &llama, tokenizer: None, eos_ids: &[], cancelled: &never };
            let mut answers = Vec::new();
            generate_queue(desk, places, &mut || waiting.next(), &mut |_, answer| answers.push(answer))?;
            answers.into_iter().collect::<Result<Vec<_>>>().map(drop)
        };
        let ways: [(&str, &dyn Fn() -> Result<()>); 2] = [("batches", &batches), ("queue", &queue)];
        for (name, way) in ways {
            if device.is_cuda() {
                way()?; // compiles kernels
            }
            let start = Instant::now();
            way()?;
            device.synchronize()?;
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "{places} places, {name}: {seconds:.2} s, {:.0} tokens/s written",
                tokens as f64 / seconds
            );
        }
    }
    Ok(())
}
