//! Flags of `model`.

use crate::config::ModelFlags;
use clap::{Args, Subcommand, ValueEnum};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Flags of `model`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: ModelCommand,
}

/// Commands of `model`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Download a model of the catalogue and check it
    Fetch {
        /// Catalogue name
        name: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        models: ModelFlags,
        /// No progress
        #[arg(short, long)]
        quiet: bool,
    },
    /// What is known of a model: parts, parameters, files and their state
    Info {
        /// Catalogue name or path
        name: String,
        #[command(flatten)]
        #[allow(missing_docs)]
        models: ModelFlags,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a plain HF model: LoRA added to the weights of its base models
    MergeLora(MergeArgs),
    /// Write an E2LLM checkpoint in another form: element type, file size, LoRA to and from PEFT's layout
    Convert(ConvertArgs),
    /// Write a pair of base models of some size without weights: random ones are made when it is loaded, to measure speed
    /// and memory
    Random(RandomArgs),
}

/// Flags of `model random`.
#[derive(Debug, Args)]
pub struct RandomArgs {
    /// Sizes: MiniLM before SmolLM2-135M, or BERT large before Llama-2 7B
    #[arg(long, value_parser = e2llm_train::bench::Shape::NAMES)]
    pub shape: String,
    /// New folder for `encoder/` and `decoder/`
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The model whose encoder's and decoder's tokenizers and vocabularies are taken
    #[arg(long, value_name = "NAME|PATH", default_value = "e2llm-135m")]
    pub tokenizers: String,
    /// Positions the decoder may use [default: 8192 for 135m, 4096 for 7b]
    #[arg(long, value_name = "N")]
    pub window: Option<NonZeroUsize>,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Flags of `model merge-lora`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// An E2LLM model (catalogue name or folder), or the folder of a LoRA adapter in PEFT's layout
    pub model: String,
    /// New folder: `encoder/` and `decoder/` of an E2LLM model, the decoder itself of an adapter
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The decoder that an adapter is for [default: the one it names]
    #[arg(long, value_name = "NAME|PATH")]
    pub decoder: Option<String>,
    /// Element type of the weights
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: ElementType,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Flags of `model convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A trained E2LLM model: catalogue name or folder
    pub model: String,
    /// New folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// What is written: a checkpoint, or its LoRA as PEFT adapters in `encoder/` and `decoder/`
    #[arg(long, value_enum, default_value = "e2llm")]
    pub to: ModelLayout,
    /// Take LoRA from the PEFT adapters in this folder's `encoder/` and `decoder/`
    #[arg(long, value_name = "DIR")]
    pub from_peft: Option<PathBuf>,
    /// Element type of the tensors
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: ElementType,
    /// Most MiB of one file of tensors; more are written as shards
    #[arg(long, value_name = "N")]
    pub max_file_mib: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: ModelFlags,
}

/// Element type of written tensors.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ElementType {
    /// float32
    F32,
    /// bfloat16
    Bf16,
}

/// Layout of a written model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelLayout {
    /// An E2LLM checkpoint
    E2llm,
    /// PEFT adapters
    Peft,
}
