//! Times a training step of the 135m shape on random weights: `cargo run --release -p e2llm-train --features cuda
//! --example step [-- CHUNKS STEPS MICRO_BATCHES]`. A step restates CHUNKS windows of one chunk of about 115 encoder
//! tokens each. The gradient norm is also that of a step with checkpointing, which must be the same.

use candle_core::{DType, Device, Tensor};
use e2llm::checkpoint::{Settings, untrained};
use e2llm::{AdapterKind, E2llmConfig, Example};
use e2llm_lm::{
    BertConfig, DecoderFiles, EncoderFiles, LlamaConfig, LoraConfig, Precision, RopeScaling, Weights,
};
use e2llm_train::{Optimizer, config::OptimizerConfig};
use std::error::Error;
use std::time::Instant;

fn bert() -> BertConfig {
    BertConfig {
        vocab_size: 30522,
        hidden_size: 384,
        num_hidden_layers: 6,
        num_attention_heads: 12,
        intermediate_size: 1536,
        max_position_embeddings: 512,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_act: "gelu".into(),
        pad_token_id: 0,
        model_type: "bert".into(),
        position_embedding_type: "absolute".into(),
    }
}

fn llama() -> LlamaConfig {
    LlamaConfig {
        model_type: "llama".into(),
        vocab_size: 49152,
        hidden_size: 576,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        intermediate_size: 1536,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        rope_theta: 100_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        qkv_bias: false,
        output_bias: false,
        mlp_bias: false,
        qk_norm: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
    }
}

fn ids(seed: usize, count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| 3 + ((seed * 7919 + i * 104_729) % (vocabulary - 3)) as u32).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let mut next = |default| args.next().unwrap_or(Ok(default));
    let (chunks, steps, micro_batches) = (next(256)?, next(8)?, next(1)?);
    let device = Device::new_cuda(0).unwrap_or(Device::Cpu);
    e2llm_kernels::keep_freed_memory(&device)?;
    let (encoder, decoder) = (bert(), llama());
    let lora = |names: &[&str]| LoraConfig {
        r: 32,
        lora_alpha: 64.0,
        target_modules: names.iter().map(|n| (*n).to_owned()).collect(),
    };
    let settings = Settings {
        device: device.clone(),
        encoder: Precision::BF16,
        decoder: Precision::BF16,
        trainable: true,
        merge_lora: false,
        seed: 1,
        untrained: E2llmConfig {
            adapter: AdapterKind::Mean,
            soft_tokens_per_chunk: 16,
            encoder_lora: lora(&["query", "key", "value", "dense"]),
            decoder_lora: lora(&[
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ]),
            ..E2llmConfig::default()
        },
    };
    let weights = Weights::random(&encoder.tensors(), 1);
    let of_encoder = EncoderFiles { config: encoder, weights, tokenizer: None, files: Vec::new() };
    let weights = Weights::random(&decoder.tensors(), 2);
    let of_decoder = DecoderFiles { config: decoder, weights, tokenizer: None, files: Vec::new() };
    let (mut model, vars) = untrained(&of_encoder, &of_decoder, &settings)?;
    let mut optimizer = Optimizer::new(&vars, &OptimizerConfig::default())?;
    let batch: Vec<Example> = (0..chunks)
        .map(|i| Example {
            chunks: vec![ids(i, 100 + i * 7 % 31, 30522)],
            prefix: ids(i + 1, 30, 49152),
            suffix: ids(i + 2, 30, 49152),
            answer: ids(i + 3, 96 + i * 11 % 37, 49152),
        })
        .collect();
    let tokens: usize =
        batch.iter().map(|e| e.chunks[0].len() + 16 + e.prefix.len() + e.suffix.len() + e.answer.len()).sum();
    let mut times = Vec::new();
    for step in 0..steps + 3 {
        // The first steps, with and without checkpointing, change nothing.
        model.set_checkpointing(step == 0);
        let start = Instant::now();
        let mut sum: Option<Tensor> = None;
        for micro in batch.chunks(chunks.div_ceil(micro_batches)) {
            let loss = model.answer_loss(micro)?.sum;
            optimizer.accumulate(&mut e2llm_kernels::backward(&(&loss / chunks as f64)?)?)?;
            sum = Some(match sum {
                Some(before) => (before + loss.detach())?,
                None => loss.detach(),
            });
        }
        let queued = start.elapsed().as_secs_f64();
        let norm = optimizer.gradient_norm()?;
        let waited = start.elapsed().as_secs_f64();
        let loss = sum.map_or(Ok(0.0), |s| s.to_dtype(DType::F64)?.to_scalar::<f64>())?;
        if step < 2 {
            optimizer.discard();
        } else {
            optimizer.step(1e-4, norm)?;
        }
        device.synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "step {step}: loss {loss:.3}, gradient norm {norm:.5}, {:.1} ms (queued after {:.1}, norm after {:.1})",
            seconds * 1e3,
            queued * 1e3,
            waited * 1e3
        );
        if step > 2 {
            times.push(seconds);
        }
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let peak = e2llm_kernels::peak_memory(&device)?.map_or(f64::NAN, |b| b as f64 / (1u64 << 30) as f64);
    println!(
        "{tokens} tokens in {:.1} ms: {:.0} tokens/s, at most {peak:.1} GiB",
        median * 1e3,
        tokens as f64 / median
    );
    Ok(())
}
