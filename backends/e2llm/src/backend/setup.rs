//! The backend's entry, its options, and what is said of a model that was loaded with them.

use super::E2llmBackend;
use crate::checkpoint::{self, Loaded, Settings, Sources};
use crate::config::E2llmConfig;
use e2llm_backend::{
    BackendError, BackendInfo, BackendSpec, BuildContext, ErrorKind, Fingerprint, OptionSpec, Options,
};
use e2llm_lm::{Precision, Tokenizer, Weights, open_device};

const NAME: &str = "e2llm";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "compresses the whole context into soft tokens by a text encoder and an adapter",
        source: "E2LLM, arXiv 2409.06679",
        needs_model: true,
        options: &[
            OptionSpec {
                name: "encode_batch",
                default: "",
                help: "chunks encoded at once; default: 32 on a processor, 256 on a GPU",
            },
            OptionSpec {
                name: "cache_mib",
                default: "256",
                help: "memory for soft tokens of recent contexts, in MiB; the last one is always kept",
            },
            OptionSpec {
                name: "adapter",
                default: "",
                help: "vpma, cls or mean, for a model without a checkpoint (untrained); a checkpoint knows its own",
            },
            OptionSpec {
                name: "soft_tokens_per_chunk",
                default: "",
                help: "soft tokens of a chunk, for a model without a checkpoint",
            },
            OptionSpec {
                name: "output_scale",
                default: "",
                help: "true: soft tokens as long as embeddings, for a model without a checkpoint",
            },
        ],
        build: |context| Ok(Box::new(E2llmBackend::new(context)?)),
    }
}

pub(super) fn bad_option(name: &str, what: &str) -> BackendError {
    BackendError::new(ErrorKind::BadRequest, format!("backend option `{name}`: {what}"))
}

pub(super) fn settings(context: &BuildContext, sources: &Sources) -> Result<Settings, BackendError> {
    let device = open_device(context.device)?;
    let decoder: Precision = match context.dtype.as_str() {
        "" if device.is_cpu() => Precision::F32,
        "" => Precision::BF16,
        name => name.parse()?,
    };
    // Eight-bit products would save nothing worth their error in a model this small.
    let encoder = if decoder == Precision::Quantised { Precision::F32 } else { decoder };
    let merge_lora = decoder.merges(&device);
    Ok(Settings {
        device,
        encoder,
        decoder,
        trainable: false,
        merge_lora,
        seed: context.seed,
        untrained: untrained(&context.options, sources)?,
    })
}

/// The settings of a model without a checkpoint. One with a checkpoint has its own, and they cannot be overruled.
fn untrained(options: &Options, sources: &Sources) -> Result<E2llmConfig, BackendError> {
    let mut config = E2llmConfig::default();
    let mut named = ["adapter", "soft_tokens_per_chunk", "output_scale"].into_iter();
    if let Some(folder) = &sources.checkpoint
        && let Some(name) = named.find(|n| !options.text(n).is_empty())
    {
        let what = format!("the checkpoint {} has its own settings", folder.display());
        return Err(bad_option(name, &what));
    }
    if !options.text("adapter").is_empty() {
        config.adapter = options.text("adapter").parse().map_err(|e| BackendError::failed(&e))?;
    }
    if let Some(k) = options.parse("soft_tokens_per_chunk")? {
        config.soft_tokens_per_chunk = k;
    }
    if let Some(scale) = options.parse("output_scale")? {
        config.output_scale = scale;
    }
    config.check().map_err(|e| BackendError::failed(&e))?;
    Ok(config)
}

pub(super) fn info(
    context: &BuildContext,
    sources: &Sources,
    settings: &Settings,
    loaded: &Loaded,
) -> Result<BackendInfo, BackendError> {
    let positions = loaded.decoder.config.max_position_embeddings as u64;
    let window = context.model.window.unwrap_or(positions).min(positions);
    let mut warnings = loaded.warnings.clone();
    warnings.extend(loaded.encoder.weights.warning());
    warnings.extend(loaded.decoder.weights.warning());
    let template = loaded.decoder.tokenizer.as_ref().and_then(Tokenizer::chat);
    if template.is_none() {
        warnings.push("the decoder has no chat template: prompts are raw text".into());
    }
    let base = loaded.encoder.config.parameters() + loaded.decoder.config.parameters();
    Ok(BackendInfo {
        name: NAME.into(),
        model: context.model.name.clone(),
        parameters: base + loaded.trained_parameters,
        trained_parameters: if loaded.trained { loaded.trained_parameters } else { 0 },
        window: Some(window),
        dtype: settings.decoder.to_string(),
        device: context.device.to_string(),
        truncation: "none".into(),
        fingerprint: fingerprint(sources, settings, loaded, window)?,
        chat_template: template.map(|t| t.hash()),
        warnings,
    })
}

/// Hash of everything that decides an answer beside the request.
fn fingerprint(
    sources: &Sources,
    settings: &Settings,
    loaded: &Loaded,
    window: u64,
) -> Result<String, BackendError> {
    let mut hash = Fingerprint::new(NAME, env!("CARGO_PKG_VERSION"));
    let config = loaded.model.config().to_json().map_err(|e| BackendError::failed(&e))?;
    hash.text("settings", &config).text("dtype", &settings.decoder.to_string());
    hash.text("window", &window.to_string());
    hash.text("encoder", &loaded.base.encoder).text("decoder", &loaded.base.decoder);
    let weights = [loaded.encoder.weights.files(), loaded.decoder.weights.files()].concat();
    for file in loaded.encoder.files.iter().chain(&loaded.decoder.files).filter(|f| !weights.contains(f)) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        hash.file(&name, file).map_err(|e| BackendError::failed(&e))?;
    }
    match sources.checkpoint.as_ref().filter(|_| loaded.trained) {
        Some(folder) => {
            let files = Weights::open_named(folder, checkpoint::TRAINED)?.files();
            hash.text("trained", &checkpoint::weights_hash(&files)?)
        }
        None => hash.text("seed", &settings.seed.to_string()),
    };
    Ok(hash.finish())
}
