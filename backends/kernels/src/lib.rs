//! Fused operations for candle with exact backward passes.
//!
//! candle's matrix products are fast, its memory-bound operations are not, and several of its fused ones cut the
//! gradient without saying so. This crate replaces those: every function here takes and returns
//! [`candle_core::Tensor`], runs on rows in parallel on the CPU (and, with the feature `cuda`, in one kernel on the
//! GPU), accumulates in float32, and has a backward pass for every input that can be trained.
//!
//! Supported element types are `f32` and `bf16`, and `f64` on the CPU, which exists so that gradients can be checked
//! against finite differences. All inputs of one call share one element type unless a function says otherwise.

mod activation;
mod attention;
mod bf16;
mod cache;
mod checkpoint;
#[cfg(feature = "cuda")]
mod cuda;
mod dense_linear;
mod element;
mod embedding;
mod gather;
mod gemm;
mod head;
mod host;
mod host_product;
mod layer;
mod linear;
mod lora;
mod loss;
mod memory;
mod node;
mod norm;
mod optimizer;
pub mod profile;
mod residual;
mod rope;
mod simd;
mod trained;

pub use activation::{gelu, silu_mul};
pub use attention::{HeadGroups, Mask, attention, attention_lse, attention_rows, group_attention};
pub use cache::{RowLengths, store_last};
pub use checkpoint::checkpoint;
#[cfg(feature = "cuda")]
pub use cuda::layer::{
    CachedLayer, CachedPass, Cross, GreedySteps, Plain, Positions, Rolling, Span, StepModel, embed_norm,
    float_scores, likeliest,
};
pub use dense_linear::dense_linear;
pub use embedding::embedding;
pub use gather::{RowMap, gather_rows, gather_rows_onto};
pub use head::head_loss;
pub use host::on_workers;
pub use layer::{Adapted, DecoderLayer, EncoderLayer, Seen};
pub use linear::linear;
pub use lora::lora_linear;
pub use loss::{IGNORED, cross_entropy};
pub use memory::{keep_freed_memory, peak_memory, reset_peak_memory, unwritten};
pub use node::backward;
pub use norm::{layer_norm, rms_norm};
pub use optimizer::{AdamW, Update, adamw_step, adamw_steps, global_norm};
pub use residual::residual;
pub use rope::rope;
pub use trained::trained_linear;
