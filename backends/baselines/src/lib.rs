//! Methods that E2LLM is compared with, one module each, and `echo`, which needs no model.
//!
//! Each method gets the same prompts with the same decoder, window, chat template and generation settings, and says
//! in [`Usage`](e2llm_backend::Usage) what became of the context.

pub mod cepe;
mod decoder;
mod draft;
pub mod echo;
pub mod full;
pub mod lloco;
pub mod longllmlingua;
pub mod longlora;
pub mod no_context;
mod options;
mod prompt;
pub mod rag;
pub mod selfextend;
pub mod snapkv;
pub mod streaming;
#[cfg(test)]
mod tests;
pub mod trained;
pub mod truncate;
pub mod yarn;

pub use e2llm_backend::{Kept, Policy};

/// Methods that need a model of their own training: no other model can be given to them.
pub const TRAINED: &[&str] = &["cepe", "lloco", "longlora"];

/// Adds every method of this crate to `registry`.
pub fn register(registry: &mut e2llm_backend::Registry) {
    registry.register(cepe::spec());
    registry.register(echo::spec());
    registry.register(full::spec());
    registry.register(lloco::spec());
    registry.register(longllmlingua::spec());
    registry.register(longlora::spec());
    registry.register(no_context::spec());
    registry.register(rag::spec());
    registry.register(selfextend::spec());
    registry.register(snapkv::spec());
    registry.register(streaming::spec());
    registry.register(truncate::spec());
    registry.register(yarn::spec());
}
