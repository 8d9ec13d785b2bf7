//! Task and metric plugins: finding, checking and loading shared libraries.
//!
//! Finding reads files and runs nothing of theirs ([`discover`]); loading runs a library's code with the user's
//! rights ([`library`]), and happens only for what a command uses.

mod discover;
mod host;
mod identity;
mod library;

pub use discover::{Candidate, FoundTask, Index, Rejected, SearchPath, provides};
pub use host::{HOST, set_cancel_flag, set_token_counter};
pub use library::load;
