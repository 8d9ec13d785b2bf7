//! `model`.

use super::args::{ConvertArgs, ElementType, MergeArgs, ModelArgs, ModelCommand, ModelLayout, RandomArgs};
use super::output;
use crate::config::ModelFlags;
use crate::failure::{Exit, Failure, Result};
use crate::models::{Fetcher, Kind};
use crate::run::fetcher;
use crate::training;
use e2llm::E2llmConfig;
use e2llm::checkpoint::{self, BaseModels, CheckpointError, Settings, Sources, Trained};
use e2llm_backend::{CancelFlag, Device, ModelFiles};
use e2llm_lm::{
    DecoderFiles, DecoderModel, EncoderFiles, LmError, PeftAdapter, Precision, RandomWeights, open_device,
    write_decoder, write_random_decoder, write_random_encoder,
};
use e2llm_train::bench::Shape;
use std::path::{Path, PathBuf};

/// Commands on models.
///
/// # Errors
/// An unknown model; files that cannot be had.
pub(super) fn model(args: &ModelArgs) -> Result<Exit> {
    match &args.command {
        ModelCommand::Fetch { name, models, quiet } => {
            let cancel = super::run::cancel_on_ctrl_c()?;
            let files =
                fetcher(models.models_file.as_deref(), models.offline, *quiet, &cancel)?.fetch(name)?;
            for path in [files.checkpoint, files.encoder, files.decoder].into_iter().flatten() {
                output::print(&format!("{}\n", path.display()))?;
            }
        }
        ModelCommand::Info { name, models, json } => {
            let fetcher =
                fetcher(models.models_file.as_deref(), models.offline, true, &CancelFlag::default())?;
            let info = fetcher.info(name)?;
            if *json { output::print_json(&info)? } else { output::print(&info.to_string())? }
        }
        ModelCommand::MergeLora(args) => merge_lora(args)?,
        ModelCommand::Convert(args) => convert(args)?,
        ModelCommand::Random(args) => random(args)?,
    }
    Ok(Exit::Done)
}

impl From<ElementType> for Precision {
    fn from(dtype: ElementType) -> Self {
        match dtype {
            ElementType::F32 => Self::F32,
            ElementType::Bf16 => Self::BF16,
        }
    }
}

impl From<CheckpointError> for Box<Failure> {
    fn from(e: CheckpointError) -> Self {
        Failure::failed(e.to_string())
    }
}

impl From<LmError> for Box<Failure> {
    fn from(e: LmError) -> Self {
        Failure::failed(e.to_string())
    }
}

fn open_fetcher(models: &ModelFlags) -> Result<Fetcher> {
    fetcher(models.models_file.as_deref(), models.offline, false, &super::run::cancel_on_ctrl_c()?)
}

/// A trained checkpoint's folder and its base models.
fn checkpoint_of(files: &ModelFiles) -> Result<(PathBuf, Sources)> {
    let untrained = || {
        Failure::usage(format!("`{}` is no trained E2LLM model", files.name))
            .help("give the folder of a checkpoint: one with e2llm_config.json and e2llm.safetensors")
    };
    let folder = files.checkpoint.clone().ok_or_else(untrained)?;
    Ok((folder, Sources::find(files)?))
}

fn merge_lora(args: &MergeArgs) -> Result<()> {
    let fetcher = open_fetcher(&args.models)?;
    let adapter = Path::new(&args.model);
    if adapter.join("adapter_config.json").is_file() {
        return merge_adapter(args, &fetcher, adapter);
    }
    let (folder, sources) = checkpoint_of(&fetcher.resolve(&args.model)?)?;
    let settings = Settings {
        device: open_device(Device::Cpu)?,
        encoder: Precision::F32,
        decoder: Precision::F32,
        trainable: false,
        merge_lora: false,
        seed: 0,
        untrained: E2llmConfig::default(),
    };
    let loaded = checkpoint::load(&sources, &settings)?;
    if !loaded.trained {
        return Err(Failure::usage(format!("{} has no trained tensors to merge", folder.display())));
    }
    super::new_folder(&args.out)?;
    let dtype = Precision::from(args.dtype).activations();
    checkpoint::merge_lora(&folder, &loaded, &args.out, dtype)?;
    output::note(&format!(
        "{0}/encoder and {0}/decoder are plain HF models; {0} as a whole is an E2LLM checkpoint on them",
        args.out.display()
    ));
    Ok(())
}

/// A LoRA adapter of a decoder alone, as `train` writes it for `sft-*`.
fn merge_adapter(args: &MergeArgs, fetcher: &Fetcher, folder: &Path) -> Result<()> {
    let adapter = PeftAdapter::read(folder)?;
    let named = PeftAdapter::base_of(folder)?;
    let base = args.decoder.clone().or(named).ok_or_else(|| {
        Failure::usage(format!("{} names no base model", folder.display())).help("name it with --decoder")
    })?;
    let path = fetcher.resolve(&base)?.decoder;
    let path = path.ok_or_else(|| Failure::usage(format!("`{base}` is no decoder")))?;
    let files = DecoderFiles::open(&path)?;
    let device = open_device(Device::Cpu)?;
    let model = DecoderModel::with_adapter(files, Some(adapter), &device, Precision::F32)?;
    super::new_folder(&args.out)?;
    let dtype = Precision::from(args.dtype).activations();
    write_decoder(&args.out, &model.llama, &DecoderFiles::open(&path)?, dtype)?;
    output::note(&format!("{} is a plain HF model", args.out.display()));
    Ok(())
}

fn convert(args: &ConvertArgs) -> Result<()> {
    let fetcher = open_fetcher(&args.models)?;
    let (folder, sources) = checkpoint_of(&fetcher.resolve(&args.model)?)?;
    let mut trained = Trained::read(&folder)?;
    if let Some(peft) = &args.from_peft {
        let (encoder, decoder) =
            (EncoderFiles::open(&sources.encoder)?, DecoderFiles::open(&sources.decoder)?);
        trained.read_peft(peft, &encoder, &decoder)?;
    }
    let base = BaseModels::of(&folder)?;
    super::new_folder(&args.out)?;
    let dtype = Precision::from(args.dtype).activations();
    match args.to {
        ModelLayout::Peft => trained.write_peft(&args.out, &base, dtype)?,
        ModelLayout::E2llm => {
            trained.save(&args.out, &base, dtype, args.max_file_mib.map(|n| n << 20))?;
            refer_to_bases(&fetcher, &args.model, &args.out)?;
        }
    }
    output::note(&format!("written to {}", args.out.display()));
    Ok(())
}

fn random(args: &RandomArgs) -> Result<()> {
    let shape =
        Shape::named(&args.shape).ok_or_else(|| Failure::usage(format!("no shape `{}`", args.shape)))?;
    let files = open_fetcher(&args.models)?.resolve(&args.tokenizers)?;
    let (Some(encoder), Some(decoder)) = (files.encoder, files.decoder) else {
        return Err(Failure::usage(format!("`{}` has not both an encoder and a decoder", args.tokenizers))
            .help("give --tokenizers a model of both, such as e2llm-135m"));
    };
    let (encoder_shape, decoder_shape) = shape.base_models();
    let mut decoder_shape = decoder_shape.clone();
    if let Some(window) = args.window {
        decoder_shape.max_position_embeddings = window.get();
    }
    let weights = RandomWeights { seed: args.seed };
    super::new_folder(&args.out)?;
    let part = |name: &str| -> Result<PathBuf> {
        let path = args.out.join(name);
        std::fs::create_dir(&path).map_err(|e| Failure::io("create", &path, &e))?;
        Ok(path)
    };
    write_random_encoder(&part("encoder")?, encoder_shape, &EncoderFiles::open(&encoder)?, weights)?;
    write_random_decoder(&part("decoder")?, &decoder_shape, &DecoderFiles::open(&decoder)?, weights)?;
    output::note(&format!("--model {} has random weights of shape {}", args.out.display(), args.shape));
    Ok(())
}

/// Says in a new checkpoint where its base models are.
fn refer_to_bases(fetcher: &Fetcher, model: &str, folder: &Path) -> Result<()> {
    for (kind, part) in [(Kind::Encoder, "encoder"), (Kind::Decoder, "decoder")] {
        if let Some(name) = fetcher.base_name(model, kind)? {
            let pick =
                if kind == Kind::Encoder { |f: ModelFiles| f.encoder } else { |f: ModelFiles| f.decoder };
            let base = training::base(fetcher, &name, part, pick)?;
            base.refer(&folder.join(part)).map_err(training::failure)?;
        }
    }
    Ok(())
}
