//! The work of each bench.

use super::measure::{Row, milliseconds, rounded, timed};
use super::shape::{PREFIX, SUFFIX};
use super::{Bench, BenchSettings};
use crate::config::OptimizerConfig;
use crate::order::{below, generator};
use crate::{Optimizer, Result, TrainError};
use candle_core::Tensor;
use e2llm::checkpoint::{Settings, untrained};
use e2llm::{E2llmConfig, E2llmModel, Example};
use e2llm_lm::{
    Ask, BertConfig, DecoderFiles, EncoderFiles, Generation, KvCache, Llama, LlamaConfig, Precision, Segment,
    Weights, generate_batch, prefill,
};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Tokens of the shortest context.
pub(super) const SHORTEST: usize = 4096;
impl Bench {
    /// Tokens of the shortest context that [`Bench::Context`] measures.
    pub const SHORTEST_CONTEXT: usize = SHORTEST;
}

/// Chunks that are encoded at once.
const WAVE: usize = 256;
/// The token that ends an answer which is learned.
const END: u32 = 2;

/// A model for inference, or one with all it takes to train it.
pub(super) struct Subject<'a> {
    settings: &'a BenchSettings,
    model: E2llmModel,
    optimizer: Option<Optimizer>,
}

impl<'a> Subject<'a> {
    /// A model of random weights.
    pub(super) fn new(settings: &'a BenchSettings, trained: bool) -> Result<Self> {
        let shape = &settings.shape;
        let dense = matches!(settings.precision, Precision::Dense(_));
        if !dense {
            return Err(TrainError::Config("quantised weights cannot be trained".into()));
        }
        let model_settings = Settings {
            device: settings.device.clone(),
            encoder: settings.precision,
            decoder: settings.precision,
            trainable: trained,
            merge_lora: settings.merge_lora && !trained,
            seed: settings.seed,
            untrained: E2llmConfig { soft_tokens_per_chunk: shape.soft, ..E2llmConfig::default() },
        };
        let (encoder, decoder) =
            (encoder(&shape.encoder, settings.seed), decoder(&shape.decoder, settings.seed));
        let (mut model, vars) = untrained(&encoder, &decoder, &model_settings)?;
        model.set_checkpointing(settings.checkpointing && trained);
        let optimizer =
            if trained { Some(Optimizer::new(&vars, &OptimizerConfig::default())?) } else { None };
        settings.device.synchronize()?;
        Ok(Self { settings, model, optimizer })
    }

    pub(super) fn is_trained(&self) -> bool {
        self.optimizer.is_some()
    }

    pub(super) fn run(&mut self, bench: Bench, each: &mut dyn FnMut(Row)) -> Result<()> {
        match bench {
            Bench::Encode => each(self.encode()?),
            Bench::Prefill => each(self.prefill()?),
            Bench::Decode => each(self.decode()?),
            Bench::Train => each(self.train()?),
            Bench::Context => {
                let mut tokens = SHORTEST;
                while tokens <= self.settings.max_context {
                    each(self.context(tokens)?);
                    tokens *= 4;
                }
            }
        }
        Ok(())
    }

    fn timed(&self, bench: Bench, work: impl FnMut() -> Result<Map<String, Value>>) -> Result<Row> {
        timed(self.settings, bench, self.settings.shape.tokens(bench), self.settings.repeats, work)
    }

    fn encode(&self) -> Result<Row> {
        let chunks = self.example().chunks;
        self.timed(Bench::Encode, || {
            self.model.soft_tokens(&chunks)?;
            Ok(Map::new())
        })
    }

    fn prefill(&self) -> Result<Row> {
        let decoder = self.model.decoder();
        let shape = (self.settings.shape.prompt(), decoder.config().hidden_size);
        let prompt = Tensor::randn(0f32, 1.0, shape, &self.settings.device)?.to_dtype(decoder.dtype())?;
        self.timed(Bench::Prefill, || {
            last_logits(decoder, &prompt)?;
            Ok(Map::new())
        })
    }

    fn decode(&self) -> Result<Row> {
        let (settings, tokens) = (self.settings, self.settings.shape.decode);
        let example = Example { answer: Vec::new(), ..self.example() };
        let generation = Generation { max_new_tokens: tokens, ..Generation::default() };
        let batch = settings.batch;
        timed(settings, Bench::Decode, batch * tokens, (settings.repeats / 2).max(2), || {
            let start = Instant::now();
            let mut prompts = Vec::with_capacity(batch);
            for _ in 0..batch {
                let prompt = self.model.inputs(std::slice::from_ref(&example))?.embeddings.squeeze(0)?;
                prompts.push([Segment::Embeds(prompt)]);
            }
            let asks: Vec<_> = prompts.iter().map(|prompt| Ask { prompt, settings: &generation }).collect();
            let answers = generate_batch(self.model.decoder(), None, &[], &asks, &|| false);
            let mut decode = Duration::ZERO;
            for answer in answers {
                decode = decode.max(answer?.decode_time);
            }
            let first = start.elapsed().saturating_sub(decode).as_secs_f64();
            let speed = (batch * (tokens - 1)) as f64 / decode.as_secs_f64();
            Ok(object(json!({
                "batch": batch, "first_token_ms": milliseconds(first), "decode_tokens_per_s": rounded(speed, 1),
            })))
        })
    }

    fn train(&mut self) -> Result<Row> {
        let example = [self.example()];
        let (shape, model) = (&self.settings.shape, &self.model);
        let decoder_tokens = shape.prompt() + shape.answer;
        let more = object(json!({
            "encoder_tokens": shape.tokens(Bench::Encode), "decoder_tokens": decoder_tokens,
        }));
        let Some(optimizer) = &mut self.optimizer else {
            return Err(TrainError::Config("this model is not to be trained".into()));
        };
        let tokens = shape.tokens(Bench::Train);
        timed(self.settings, Bench::Train, tokens, self.settings.repeats, || {
            let loss = model.answer_loss(&example)?;
            optimizer.accumulate(&mut e2llm_kernels::backward(&loss.mean()?)?)?;
            let norm = optimizer.gradient_norm()?;
            let sum: f32 = loss.sum.to_scalar()?;
            if !(norm.is_finite() && sum.is_finite()) {
                let message = format!("the loss is {sum} and the gradient norm {norm}: nothing to measure");
                return Err(TrainError::Data(message));
            }
            optimizer.step(OptimizerConfig::default().lr, norm)?;
            Ok(more.clone())
        })
    }

    fn context(&self, tokens: usize) -> Result<Row> {
        let shape = &self.settings.shape;
        let mut rng = self.rng();
        let chunks = chunks(&mut rng, tokens / shape.chunk_tokens, shape.chunk_tokens, &shape.encoder);
        timed(self.settings, Bench::Context, tokens, 2, || {
            let waves: candle_core::Result<Vec<_>> =
                chunks.chunks(WAVE).map(|wave| self.model.soft_tokens(wave)?.flatten(0, 1)).collect();
            let logits = last_logits(self.model.decoder(), &Tensor::cat(&waves?, 0)?)?;
            logits.flatten_all()?.argmax(0)?.to_scalar::<u32>()?;
            Ok(Map::new())
        })
    }

    fn rng(&self) -> ChaCha8Rng {
        generator(self.settings.seed, "bench", 0)
    }

    /// A context, an instruction and an answer.
    fn example(&self) -> Example {
        let shape = &self.settings.shape;
        let mut rng = self.rng();
        let chunks = chunks(&mut rng, shape.chunks, shape.chunk_tokens, &shape.encoder);
        let mut words = |n| ids(&mut rng, n, shape.decoder.vocab_size);
        let (prefix, suffix, mut answer) = (words(PREFIX), words(SUFFIX), words(shape.answer - 1));
        answer.push(END);
        Example { chunks, prefix, suffix, answer }
    }
}

/// Logits `[1, 1, V]` behind a prompt `[T, D]`.
fn last_logits(decoder: &Llama, prompt: &Tensor) -> Result<Tensor> {
    let mut cache = KvCache::new(prompt.dim(0)?);
    let hidden = prefill(decoder, &[Segment::Embeds(prompt.clone())], &mut cache, &|| false)?;
    Ok(decoder.logits(&hidden)?)
}

fn encoder(config: &BertConfig, seed: u64) -> EncoderFiles {
    let weights = Weights::random(&config.tensors(), seed);
    EncoderFiles { config: config.clone(), weights, tokenizer: None, files: Vec::new() }
}

fn decoder(config: &LlamaConfig, seed: u64) -> DecoderFiles {
    let weights = Weights::random(&config.tensors(), seed);
    DecoderFiles { config: config.clone(), weights, tokenizer: None, files: Vec::new() }
}

fn chunks(rng: &mut ChaCha8Rng, count: usize, length: usize, encoder: &BertConfig) -> Vec<Vec<u32>> {
    (0..count).map(|_| ids(rng, length, encoder.vocab_size)).collect()
}

/// Ids of no special meaning.
fn ids(rng: &mut ChaCha8Rng, count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|_| 3 + below(rng, vocabulary - 3) as u32).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
