//! What this program offers to plugins.

use crate::names::NameHash;
use e2llm_backend::{CancelFlag, TokenCounter};
use e2llm_plugin_abi as abi;
use e2llm_plugin_abi::{E2Host, E2Str};
use std::collections::HashSet;
use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError, RwLock};

/// The table handed to every plugin.
pub static HOST: E2Host = E2Host {
    struct_size: size_of::<E2Host>() as u32,
    abi_major: abi::E2_ABI_MAJOR,
    abi_minor: abi::E2_ABI_MINOR,
    log: Some(log),
    is_cancelled: Some(is_cancelled),
    count_tokens: Some(count_tokens),
    extension: Some(extension),
};

// The ABI's callbacks carry no context: a process runs one evaluation.
static COUNTER: RwLock<Option<TokenCounter>> = RwLock::new(None);
static CANCEL: OnceLock<CancelFlag> = OnceLock::new();
static SAID: LazyLock<Mutex<HashSet<NameHash>>> = LazyLock::new(Mutex::default);

/// Sets what `count_tokens` counts with: the backend under test's tokenizer.
pub fn set_token_counter(counter: Option<TokenCounter>) {
    *COUNTER.write().unwrap_or_else(PoisonError::into_inner) = counter;
}

/// Sets the flag that plugins may look at. Only the first call counts.
pub fn set_cancel_flag(flag: &CancelFlag) {
    let _ = CANCEL.set(flag.clone());
}

/// # Safety
/// `s` holds valid memory for the time of the call.
unsafe fn text<'a>(s: E2Str) -> Option<&'a str> {
    if s.len == 0 {
        return Some("");
    }
    if s.ptr.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    std::str::from_utf8(unsafe { std::slice::from_raw_parts(s.ptr, s.len) }).ok()
}

unsafe extern "C" fn log(level: c_int, target: E2Str, message: E2Str) {
    // SAFETY: the plugin's promise.
    let (Some(target), Some(message)) = (unsafe { (text(target), text(message)) }) else { return };
    let _ = catch_unwind(|| {
        if level <= WARNING && !is_new(target, message) {
            return;
        }
        match level {
            1 => tracing::error!("{target}: {message}"),
            2 => tracing::warn!("{target}: {message}"),
            3 => tracing::info!("{target}: {message}"),
            _ => tracing::debug!("{target}: {message}"),
        }
    });
}

/// The level of warnings, above which nobody is told unless he asks.
const WARNING: c_int = 2;

/// Whether a user was not told this before: a source is opened once for the plan and once for the work.
fn is_new(target: &str, message: &str) -> bool {
    let hash = NameHash::of(&format!("{target} {message}"));
    SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(hash)
}

unsafe extern "C" fn is_cancelled() -> c_int {
    c_int::from(CANCEL.get().is_some_and(CancelFlag::is_cancelled))
}

unsafe extern "C" fn count_tokens(s: E2Str, n: *mut u64) -> c_int {
    // SAFETY: the plugin's promise.
    let Some(text) = (unsafe { text(s) }) else { return abi::E2_BAD_REQUEST };
    let counter = COUNTER.read().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(counter) = counter else { return abi::E2_NOT_IMPLEMENTED };
    match catch_unwind(AssertUnwindSafe(|| counter(text))) {
        Ok(count) if !n.is_null() => {
            // SAFETY: not null, and the plugin promises that it is writable.
            unsafe { n.write(count as u64) };
            abi::E2_OK
        }
        Ok(_) => abi::E2_BAD_REQUEST,
        Err(_) => abi::E2_PLUGIN_ERROR,
    }
}

unsafe extern "C" fn extension(_id: E2Str) -> *const c_void {
    std::ptr::null()
}
