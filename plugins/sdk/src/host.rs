//! What a plugin may ask of the host.

use e2llm_plugin_abi::{E2_OK, E2Host, E2Str};

/// Severity of a log message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed.
    Error = 1,
    /// Something a user should know.
    Warn = 2,
    /// Progress.
    Info = 3,
    /// For debugging.
    Debug = 4,
}

/// The host's services. Copyable; valid as long as the plugin's instance.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host {
    table: Option<&'static E2Host>,
    /// Who asks.
    plugin: &'static str,
}

impl Host {
    /// Wraps the host's table for the plugin of this id.
    ///
    /// # Safety
    /// `host` is null or valid for as long as the copy is used.
    pub(crate) unsafe fn from_raw(host: *const E2Host, plugin: &'static str) -> Self {
        // SAFETY: the caller's promise.
        Self { table: unsafe { host.as_ref() }, plugin }
    }

    /// Whether a field at `offset` exists on the host's side.
    fn covers(host: &E2Host, offset: usize, size: usize) -> bool {
        host.struct_size as usize >= offset + size
    }

    /// Logs a message through the host.
    pub fn log(self, level: LogLevel, message: &str) {
        let Some(h) = self.table else { return };
        let size = size_of_val(&h.log);
        if let Some(log) = h.log.filter(|_| Self::covers(h, std::mem::offset_of!(E2Host, log), size)) {
            // SAFETY: both strings live through the call.
            unsafe { log(level as i32, E2Str::new(self.plugin), E2Str::new(message)) }
        }
    }

    /// Whether the user asked to stop.
    pub fn is_cancelled(self) -> bool {
        let Some(h) = self.table else { return false };
        let at = std::mem::offset_of!(E2Host, is_cancelled);
        match h.is_cancelled.filter(|_| Self::covers(h, at, size_of_val(&h.is_cancelled))) {
            // SAFETY: no arguments.
            Some(f) => unsafe { f() != 0 },
            None => false,
        }
    }

    /// Tokens of `text` by the tokenizer of the backend under test; `None` where it has none.
    pub fn count_tokens(self, text: &str) -> Option<u64> {
        let h = self.table?;
        let at = std::mem::offset_of!(E2Host, count_tokens);
        let f = h.count_tokens.filter(|_| Self::covers(h, at, size_of_val(&h.count_tokens)))?;
        let mut n = 0;
        // SAFETY: the text lives through the call and `n` is writable.
        let status = unsafe { f(E2Str::new(text), &mut n) };
        (status == E2_OK).then_some(n)
    }
}
