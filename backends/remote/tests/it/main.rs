//! `openai` against a server in this process that misbehaves on demand.
#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod answers;
mod choices;
mod faults;
mod key;
mod stub;
