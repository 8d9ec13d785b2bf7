//! `longlora`: a decoder fine-tuned for a longer window with shifted sparse attention, which reads the whole prompt.
//!
//! Source: LongLoRA (Chen et al. 2023, arXiv 2309.12307). Positions are interpolated (Chen et al. 2023, arXiv
//! 2306.15595): pair i of a head turns by `m f_i / s` at position m for a stretch s, so that a window L becomes s L. In
//! training a position attends within groups of T/4 positions, shifted by half a group in half of the heads (S2-Attn);
//! LoRA of q, k, v, o is trained, and embeddings and norms in full. At inference attention is full: this backend is
//! `full` in the window that the model was trained for.
//!
//! Cost: that of `full`, O(T^2) attention and O(T) memory, for T up to s L. In training O(T^2 / 4) attention.
//!
//! Ours: which positions a group has where T is no multiple of 4 (`e2llm-lm`'s `shifted`); no dropout in the adapters.
//! What the model's folder says is never asked again: stretch, rank, targets.

use crate::decoder::{Decoder, DecoderBackend, Draft, Method, WINDOW};
use crate::prompt::Whole;
use e2llm_backend::{BackendError, BackendSpec, BuildContext, ErrorKind, Prompt};
use e2llm_lm::TunedDecoder;

const NAME: &str = "longlora";

/// The registry entry.
pub fn spec() -> BackendSpec {
    BackendSpec {
        name: NAME,
        description: "the whole prompt in a window that the decoder was fine-tuned for with shifted sparse attention",
        source: "LongLoRA, arXiv 2309.12307",
        needs_model: true,
        options: &[WINDOW],
        build: |context| {
            check(context)?;
            Ok(Box::new(DecoderBackend::new(NAME, "none", LongLora, context)?))
        },
    }
}

/// Refuses a model that another method trained, or none.
fn check(context: &BuildContext) -> Result<(), BackendError> {
    let folder = context.model.checkpoint.as_deref().filter(|folder| TunedDecoder::is_at(folder));
    let method = folder.map(TunedDecoder::settings).transpose()?.map(|(method, _)| method);
    if method.as_deref() == Some(NAME) {
        return Ok(());
    }
    let found = match method {
        Some(method) => format!("was trained with the method `{method}`"),
        None => "is no folder of a trained decoder".to_owned(),
    };
    let message = format!(
        "`{}` {found}: give one that `e2llm-bench train` made with method = \"longlora\" (configs/longlora.toml)",
        context.model.name
    );
    Err(BackendError::new(ErrorKind::BadRequest, message))
}

struct LongLora;

impl Method for LongLora {
    fn draft(&self, decoder: &Decoder, prompt: &Prompt, room: usize) -> Result<Draft<'_>, BackendError> {
        Whole::new(decoder, prompt)?.within_window(decoder, room).map(Draft::from)
    }
}
