//! Reading a checkpoint, or starting one.

use super::base::weights_hash;
use super::{BaseModels, CONFIG, CheckpointError, Problems, Sources, TRAINED};
use crate::adapter::Adapter;
use crate::config::E2llmConfig;
use crate::init::{OUTPUT_SCALE, initial_tensors, probe_ids};
use crate::model::E2llmModel;
use candle_core::{DType, Device, Tensor, Var};
use e2llm_lm::{
    BertEncoder, DecoderFiles, EncoderFiles, Llama, LmError, LoraSource, Params, Precision, TensorSpec,
    Weights, mean_norm,
};
use std::collections::BTreeMap;
use std::path::Path;

/// What every output of an untrained model has to say.
pub(crate) const UNTRAINED: &str = "the E2LLM adapter is UNTRAINED (random start values): its soft tokens carry no meaning, and neither do the scores";

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where to.
    pub device: Device,
    /// How the encoder's weights are held.
    pub encoder: Precision,
    /// How the decoder's weights are held.
    pub decoder: Precision,
    /// Whether trained tensors are variables. They are held in float32 then (float64 beside a float64 encoder).
    pub trainable: bool,
    /// Whether LoRA updates are added to the weights: faster, for inference only, and exact only in float32.
    pub merge_lora: bool,
    /// Seed of the start values where nothing is trained yet.
    pub seed: u64,
    /// The settings of a model that has no checkpoint, or one without settings.
    pub untrained: E2llmConfig,
}

/// A model and what is known of it.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: E2llmModel,
    /// The encoder's files.
    pub encoder: EncoderFiles,
    /// The decoder's files.
    pub decoder: DecoderFiles,
    /// Whether the trained tensors were read; otherwise they have start values.
    pub trained: bool,
    /// Number of trained parameters.
    pub trained_parameters: u64,
    /// The variables by name, in training.
    pub vars: BTreeMap<String, Var>,
    /// What a reader of any result must know.
    pub warnings: Vec<String>,
    /// The base models by the hashes of their weights: what belongs into the checkpoint's `base.json`.
    pub base: BaseHashes,
}

/// Hashes of the base models' weights ([`weights_hash`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseHashes {
    /// Of the encoder.
    pub encoder: String,
    /// Of the decoder.
    pub decoder: String,
}

/// All trained tensors of a model with these settings and base models.
pub(crate) fn trained_tensors(
    config: &E2llmConfig,
    encoder: &EncoderFiles,
    decoder: &DecoderFiles,
) -> Vec<TensorSpec> {
    let mut specs = encoder.config.lora_tensors(&config.encoder_lora, "encoder.");
    specs.extend(decoder.config.lora_tensors(&config.decoder_lora, "decoder."));
    specs.extend(Adapter::specs(config, encoder.config.hidden_size, decoder.config.hidden_size));
    if config.output_scale {
        specs.push(TensorSpec::new(OUTPUT_SCALE, vec![1]));
    }
    specs
}

/// Loads a model. Where a checkpoint has no trained tensors at all, or there is no checkpoint, they get seeded
/// start values, and the warnings say so.
///
/// # Errors
/// Files that cannot be read; settings out of range; every tensor of any part that is missing, unexpected or
/// of another shape, all at once.
pub fn load(sources: &Sources, settings: &Settings) -> Result<Loaded, CheckpointError> {
    let mut warnings = Vec::new();
    let folder = sources.checkpoint.as_deref();
    let config = match folder {
        Some(folder) => read_config(folder, &settings.untrained, &mut warnings)?,
        None => settings.untrained.clone(),
    };
    let encoder = EncoderFiles::open(&sources.encoder)?;
    let decoder = DecoderFiles::open(&sources.decoder)?;
    let specs = trained_tensors(&config, &encoder, &decoder);
    let trained = folder.filter(|f| Weights::exist(f, TRAINED));
    let file = trained.map(|f| Weights::open_named(f, TRAINED)).transpose()?;

    let mut problems = Vec::new();
    // Extra tensors of base models are looked at when these are built, by those who know which to ignore.
    problems.extend(encoder.weights.check(&encoder.config.tensors(), |_| true).err());
    problems.extend(decoder.weights.check(&decoder.config.tensors(), |_| true).err());
    problems.extend(file.as_ref().and_then(|f| f.check(&specs, |_| false).err()));
    if !problems.is_empty() {
        return Err(CheckpointError::Parts(Problems(problems)));
    }

    let tensors = match &file {
        Some(file) => specs
            .iter()
            .map(|s| Ok((s.name.clone(), file.load(&s.name, DType::F32, &Device::Cpu)?)))
            .collect::<Result<BTreeMap<_, _>, LmError>>()?,
        None => initial_tensors(&specs, settings.seed)?,
    };
    let (mut model, vars) = build(config, &encoder, &decoder, tensors, settings)?;
    if file.is_none() {
        warnings.insert(0, UNTRAINED.to_owned());
        start_output_scale(&mut model, &vars, settings.seed)?;
    }
    if settings.merge_lora {
        model.merge_lora()?;
    }
    let base = BaseHashes {
        encoder: weights_hash(&encoder.weights.files())?,
        decoder: weights_hash(&decoder.weights.files())?,
    };
    if let Some(folder) = folder {
        warnings.extend(BaseModels::of(folder)?.differences(&base.encoder, &base.decoder));
    }
    let trained_parameters = specs.iter().map(|s| s.len() as u64).sum();
    Ok(Loaded { model, encoder, decoder, trained: file.is_some(), trained_parameters, vars, warnings, base })
}

/// A model of opened base models with start values in everything that is trained, and the variables by name where it is
/// to be trained.
///
/// # Errors
/// Base models that do not fit their configuration or each other.
pub fn untrained(
    encoder: &EncoderFiles,
    decoder: &DecoderFiles,
    settings: &Settings,
) -> Result<(E2llmModel, BTreeMap<String, Var>), CheckpointError> {
    let config = settings.untrained.clone();
    let tensors = initial_tensors(&trained_tensors(&config, encoder, decoder), settings.seed)?;
    let (mut model, vars) = build(config, encoder, decoder, tensors, settings)?;
    start_output_scale(&mut model, &vars, settings.seed)?;
    if settings.merge_lora {
        model.merge_lora()?;
    }
    Ok((model, vars))
}

/// A checkpoint without settings but with trained tensors belongs to nobody knows what; one with neither is new.
fn read_config(
    folder: &Path,
    untrained: &E2llmConfig,
    warnings: &mut Vec<String>,
) -> Result<E2llmConfig, CheckpointError> {
    if !folder.join(CONFIG).exists() && !Weights::exist(folder, TRAINED) {
        return Ok(untrained.clone());
    }
    let (config, unknown) = parse_settings(folder)?;
    for key in unknown {
        tracing::warn!(folder = %folder.display(), key, "unknown key in a model's settings");
        warnings.push(format!("{CONFIG}: unknown key `{key}`"));
    }
    Ok(config)
}

/// A checkpoint's settings, and the keys that nobody knows.
fn parse_settings(folder: &Path) -> Result<(E2llmConfig, Vec<String>), CheckpointError> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(CheckpointError::io(&path))?;
    E2llmConfig::from_json(&text).map_err(|source| CheckpointError::Config { path, source })
}

/// A checkpoint's settings.
pub(super) fn settings_of(folder: &Path) -> Result<E2llmConfig, CheckpointError> {
    parse_settings(folder).map(|(config, _)| config)
}

fn build(
    config: E2llmConfig,
    encoder: &EncoderFiles,
    decoder: &DecoderFiles,
    tensors: BTreeMap<String, Tensor>,
    settings: &Settings,
) -> Result<(E2llmModel, BTreeMap<String, Var>), CheckpointError> {
    let activations = settings.encoder.activations();
    // Small updates would be lost in 8 bits of mantissa: masters are wide, and cast where they are used.
    let dtype = if settings.trainable && activations != DType::F64 { DType::F32 } else { activations };
    let mut params = Params::new(tensors, &settings.device, dtype, settings.trainable);
    let (e, d) = (encoder.config.hidden_size, decoder.config.hidden_size);
    let adapter = Adapter::load(&config, e, d, &mut params)?;
    let scale = if config.output_scale { Some(params.get(OUTPUT_SCALE, &[1])?) } else { None };
    let device = &settings.device;
    let lora = LoraSource { config: &config.encoder_lora, params: &mut params, prefix: "encoder." };
    let encoder = BertEncoder::load(&encoder.config, &encoder.weights, Some(lora), device, settings.encoder)?;
    let lora = LoraSource { config: &config.decoder_lora, params: &mut params, prefix: "decoder." };
    let decoder = Llama::load(&decoder.config, &decoder.weights, Some(lora), device, settings.decoder)?;
    let vars = params.finish()?;
    Ok((E2llmModel::new(config, encoder, adapter, scale, decoder), vars))
}

/// Texts that the start of `output_scale` is measured on, and their length in tokens.
const PROBES: (usize, usize) = (8, 32);

/// Starts `output_scale` so that soft tokens are as long as the decoder's embeddings are on average: much longer ones
/// drown everything else in the first layers.
fn start_output_scale(
    model: &mut E2llmModel,
    vars: &BTreeMap<String, Var>,
    seed: u64,
) -> Result<(), CheckpointError> {
    if !model.config().output_scale {
        return Ok(());
    }
    let (count, length) = (PROBES.0, PROBES.1.min(model.encoder().config().window()));
    let ids = probe_ids(seed, count * length, model.encoder().config().vocab_size);
    let probes: Vec<_> = ids.chunks(length).map(<[u32]>::to_vec).collect();
    let soft = mean_norm(&model.soft_tokens(&probes)?.detach())?;
    let scale = model.decoder().embedding_norm()? / soft.max(f64::MIN_POSITIVE);
    if let Some(var) = vars.get(OUTPUT_SCALE) {
        var.set(&Tensor::full(scale, 1, var.device())?.to_dtype(var.dtype())?)?;
    } else {
        let (dtype, device) = (model.encoder().dtype(), model.encoder().device().clone());
        model.set_output_scale(Tensor::full(scale, 1, &device)?.to_dtype(dtype)?);
    }
    Ok(())
}
