//! `openai`: a model behind any server that speaks OpenAI's HTTP interface (vLLM, llama.cpp, ollama, TGI, hosted ones).
//!
//! ```text
//! Request --context--> text --protocol--> JSON --pool--> client (retries, Retry-After, timeout) --> Response
//! ```
//!
//! Guarantees: the key comes from the environment only and is in no message, no option and no file, nor in a log above
//! level `trace`, where the HTTP library's own dump of all bytes begins; a request that fails fails alone; Ctrl-C ends all waiting at once; nothing of a prompt is cut unless `policy` asks for it.

mod address;
mod client;
mod context;
mod key;
pub mod openai;
mod pool;
mod protocol;
mod refusal;
mod retry;
mod settings;
mod stream;

/// Adds the backends of this crate to `registry`.
pub fn register(registry: &mut e2llm_backend::Registry) {
    registry.register(openai::spec());
}
