//! Decoder and encoder runtimes: Llama and BERT families on candle, for inference and for training of LoRA.
//!
//! - Models: [`Llama`] and [`BertEncoder`], with or without [`LoraConfig`] adapters; the same forward pass serves
//!   training and inference.
//! - Files: [`Weights`] reads HF folders, safetensors and GGUF, checked against the configuration before
//!   anything is allocated; [`DecoderFiles`] and [`EncoderFiles`] find a model's parts.
//! - Text: [`Tokenizer`], [`ChatTemplate`].
//! - Running: [`DecoderModel`], [`generate`], [`generate_batch`], [`score_continuations`].

mod batch;
mod batch_cache;
mod bert;
mod block_layers;
mod chat;
mod clock;
mod config;
mod cross_attention;
mod error;
mod generate;
mod gguf_tokenizer;
mod hf_folder;
mod kv_cache;
mod linear;
mod llama;
mod loader;
mod lora;
mod lora_targets;
mod memory;
mod mixed;
mod model;
mod packed;
mod params;
mod peft;
mod prefill;
mod quantised;
mod reader;
mod requests;
mod rolling;
mod rope;
mod score;
mod sentence;
mod shifted;
mod stack;
#[cfg(feature = "cuda")]
mod steps;
mod stretch;
mod tensor_store;
mod text_stream;
mod tokenizer;
mod tuned;
mod weights;
#[cfg(feature = "cuda")]
mod whole_layers;

pub use batch::{Ask, Desk, Queued, generate_batch, generate_queue};
pub use bert::BertEncoder;
pub use chat::{ChatTemplate, Message};
pub use config::{BertConfig, LlamaConfig, TensorSpec};
pub use cross_attention::{CrossKeys, CrossMemory, Source};
pub use error::{LmError, Result, TensorProblems};
pub use generate::{Finish, Generated, Generation, generate, generate_with};
pub use hf_folder::{write_decoder, write_encoder, write_random_decoder, write_random_encoder};
pub use kv_cache::KvCache;
pub use linear::{Linear, Lora};
pub use llama::{Llama, mean_norm};
pub use lora::{LoraConfig, LoraSource};
pub use lora_targets::lora_targets;
pub use memory::{Heads, Memory};
pub use mixed::Part;
pub use model::{DecoderFiles, DecoderModel, EncoderFiles, Precision};
pub use params::Params;
pub use peft::{PeftAdapter, PeftTask};
pub use prefill::{PREFILL_BLOCK, Segment, prefill, prompt_len};
pub use reader::{Bookmark, Reader};
pub use requests::{Prepared, answer_queue, continuation_ids, open_device, queue_of, token_counter};
pub use rolling::RollingCache;
pub use rope::{Rope, RopeScaling};
pub use score::{score_continuations, score_continuations_with, tail_log_probs, token_log_probs};
pub use sentence::{Pooling, SentenceEncoder, SentenceSettings};
pub use stretch::{Stretch, StretchError};
pub use tensor_store::{StoreCounts, TensorStore};
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use tuned::TunedDecoder;
pub use weights::{Gguf, RandomWeights, TensorInfo, Weights, uniform, write_safetensors};
