//! What a GPU's whole layers read and write through the memories that methods have, against the graph of small operations and
//! against passes made one by one.
//!
//! Run with `cargo run --release -p e2llm-lm --features cuda --example memory_check`. Random weights; prints a line for each
//! comparison and exits non-zero if one fails.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use e2llm_lm::{
    CrossKeys, CrossMemory, Generation, Heads, KvCache, Llama, LlamaConfig, Memory, Params, Precision,
    Result, RollingCache, Rope, RopeScaling, Segment, Weights, generate_with, prefill,
};

const STATES: usize = 384;

fn config(scaling: RopeScaling) -> LlamaConfig {
    LlamaConfig {
        model_type: "llama".to_owned(),
        vocab_size: 1999,
        hidden_size: 576,
        num_hidden_layers: 3,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        intermediate_size: 1536,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: scaling,
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
    [Segment::Ids((0..n as u32).map(|i| (i * 7919 + 13 * n as u32) % 1999).collect())]
}

fn never() -> bool {
    false
}

/// A memory that no whole layer writes.
struct Slow(Box<dyn Memory>);

impl Memory for Slow {
    fn offset(&self) -> usize {
        self.0.offset()
    }

    fn block(&self) -> usize {
        self.0.block()
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> candle_core::Result<Tensor> {
        self.0.attend(layer, heads, rope)
    }

    fn cross(&self) -> Option<Arc<Vec<CrossKeys>>> {
        self.0.cross()
    }

    fn advance(&mut self, t: usize) {
        self.0.advance(t);
    }

    fn prompt_read(&mut self) -> candle_core::Result<()> {
        self.0.prompt_read()
    }

    fn fork(&self) -> candle_core::Result<Box<dyn Memory>> {
        self.0.fork()
    }
}

/// The same decoder in both types, with cross-attention.
struct Pair {
    exact: Llama,
    own: Llama,
}

impl Pair {
    fn new(gpu: &Device, scaling: RopeScaling) -> Result<Self> {
        let config = config(scaling);
        let weights = Weights::random(&config.tensors(), 3);
        let mut tensors = BTreeMap::new();
        for spec in config.cross_attention_tensors(STATES, "") {
            let inputs = *spec.shape.last().unwrap_or(&1) as f64;
            let random = Tensor::randn(0f32, 1f32, spec.shape.clone(), &Device::Cpu)?;
            let norm = spec.name.ends_with("layernorm.weight");
            let tensor = if norm { random.affine(0.1, 1.0)? } else { (random / inputs.sqrt())? };
            tensors.insert(spec.name, tensor.to_dtype(DType::BF16)?.to_dtype(DType::F32)?);
        }
        let load = |dtype| -> Result<Llama> {
            let mut llama = Llama::load(&config, &weights, None, gpu, Precision::Dense(dtype))?;
            let mut params = Params::new(tensors.clone(), gpu, dtype, false);
            llama.add_cross_attention(STATES, &mut params, "")?;
            Ok(llama)
        };
        Ok(Self { exact: load(DType::F32)?, own: load(DType::BF16)? })
    }
}

/// Makes a memory for a decoder, for sequences of so many positions.
type Make<'a> = &'a dyn Fn(&Llama, usize) -> Result<Box<dyn Memory>>;

/// The last state of a prompt, in float32.
fn last(llama: &Llama, memory: &mut dyn Memory, n: usize) -> Result<Vec<f32>> {
    let hidden = prefill(llama, &prompt(n), memory, &never)?;
    Ok(hidden.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Root mean square of the differences, relative to that of `b`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let sum = |v: &mut dyn Iterator<Item = f64>| v.sum::<f64>();
    let gaps = sum(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)));
    (gaps / sum(&mut b.iter().map(|b| f64::from(*b).powi(2)))).sqrt()
}

/// How many tokens of an answer are the likeliest ones, and how far below its logit others are at most, where each is read in a pass
/// of its own: a graph moves what is remembered at other steps, so that rounding differs.
fn by_hand(llama: &Llama, memory: &mut dyn Memory, n: usize, ids: &[u32]) -> Result<(usize, f32)> {
    let mut hidden = prefill(llama, &prompt(n), memory, &never)?;
    let (mut same, mut worst) = (0, 0f32);
    for &id in ids {
        let logits: Vec<f32> = llama.logits(&hidden)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        same += usize::from(logits[id as usize] == most);
        worst = worst.max(most - logits[id as usize]);
        hidden = llama.forward_hidden(&llama.embed(&[id])?, None, Some(&mut *memory))?;
    }
    Ok((same, worst))
}

fn main() -> Result<ExitCode> {
    let gpu = match Device::new_cuda(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            eprintln!("no gpu to check: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let mut failed = 0;
    let mut report = |name: &str, ok: bool| {
        println!("{} {name}", if ok { "ok  " } else { "FAIL" });
        failed += usize::from(!ok);
    };
    for (kind, scaling) in [("plain", RopeScaling::None), ("yarn", RopeScaling::yarn(2.0, 2048))] {
        let pair = Pair::new(&gpu, scaling)?;
        let states = Tensor::randn(0f32, 1f32, (1, 333, STATES), &gpu)?;
        let crossed = |llama: &Llama, expected: usize| -> Result<Box<dyn Memory>> {
            let keys = Arc::new(llama.cross_keys(&states.to_dtype(llama.dtype())?)?);
            Ok(Box::new(CrossMemory::new(KvCache::new(expected), keys)))
        };
        let rolling = |sinks: usize, recent: usize| {
            move |_: &Llama, expected: usize| -> Result<Box<dyn Memory>> {
                Ok(Box::new(RollingCache::new(sinks, recent, expected)))
            }
        };
        let (four, none, narrow) = (rolling(4, 508), rolling(0, 300), rolling(2, 62));
        let memories: [(&str, Make<'_>); 4] = [
            ("cross", &crossed),
            ("rolling 4+508", &four),
            ("rolling 0+300", &none),
            ("rolling 2+62", &narrow),
        ];
        for (name, make) in memories {
            for n in [1, 5, 60, 511, 520, 1700] {
                let exact = last(&pair.exact, &mut *make(&pair.exact, n)?, n)?;
                let whole = last(&pair.own, &mut *make(&pair.own, n)?, n)?;
                let slow = last(&pair.own, &mut Slow(make(&pair.own, n)?), n)?;
                let (gap, of_slow) = (difference(&whole, &exact), difference(&slow, &exact));
                let name = format!("{kind} {name}, {n} read: {gap:.1e}, by small operations {of_slow:.1e}");
                report(&name, gap < 2e-2 && gap < 2.0 * of_slow + 2e-3);
            }
            for (n, most) in [(1, 70), (3, 300), (490, 40), (505, 300), (900, 600)] {
                let settings = Generation { max_new_tokens: most, ..Generation::default() };
                let mut memory = make(&pair.own, n + most)?;
                let answer =
                    generate_with(&mut *memory, &pair.own, None, &[], &prompt(n), &settings, &never)?;
                let mut memory = make(&pair.own, n + most + 1)?;
                let (same, worst) = by_hand(&pair.own, &mut *memory, n, &answer.ids)?;
                let kinds = answer.ids.iter().collect::<std::collections::BTreeSet<_>>().len();
                let name = format!(
                    "{kind} {name}, {n} + {most} tokens of {kinds} kinds, {same} the likeliest, others {worst:.1e} below"
                );
                report(&name, answer.ids.len() == most && 10 * same >= 9 * most && worst < 0.1);
            }
        }
    }
    println!("{failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
