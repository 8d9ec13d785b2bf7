//! The C ABI between the harness and its plugins: types only, no code that runs, no dependencies.
//!
//! A plugin is a shared library with one exported function, [`E2EntryFn`] under the name [`ENTRY_SYMBOL`],
//! that returns a static [`E2Plugin`]. Everything else goes through that struct's function pointers; payloads
//! are UTF-8 JSON. Rust authors use the crate `e2llm-plugin` and never see this; `include/e2llm_plugin.h` is
//! generated from this file for everybody else.
//!
//! Rules:
//! - Structs only grow at the end. A reader reads no field beyond the `struct_size` it was given.
//! - The major version must be equal on both sides; the minor one may differ.
//! - Memory is freed by the side that made it ([`E2Buf::free`]).
//! - No exception and no panic crosses; a function reports by its return value, an `E2_*` status.

#![no_std]

use core::ffi::{c_int, c_void};

/// Major version: equal on both sides, or the library is refused.
pub const E2_ABI_MAJOR: u16 = 1;
/// Minor version: grows when a struct grows or a method is added.
pub const E2_ABI_MINOR: u16 = 0;
/// First bytes of [`E2Plugin`].
pub const E2_MAGIC: [u8; 8] = *b"E2LLMPLG";
/// Name of the exported entry function.
pub const ENTRY_SYMBOL: &[u8] = b"e2llm_plugin_entry\0";
/// Name of the section (ELF) that holds the plugin's identity as JSON, readable without loading the library.
pub const IDENTITY_SECTION: &str = ".e2llm_plugin";
/// Largest payload in bytes that either side accepts.
pub const E2_MAX_PAYLOAD: u64 = 256 << 20;

/// [`E2Plugin::kind`]: a benchmark.
pub const E2_KIND_TASK: u32 = 1;
/// [`E2Plugin::kind`]: a metric family.
pub const E2_KIND_METRIC: u32 = 2;

/// [`E2Plugin::flags`]: one instance may be called from several threads at once.
pub const E2_FLAG_REENTRANT: u64 = 1;
/// [`E2Plugin::flags`]: equal requests get equal replies.
pub const E2_FLAG_DETERMINISTIC: u64 = 2;

/// Done.
pub const E2_OK: i32 = 0;
/// The stream has no more examples; the reply holds none.
pub const E2_END: i32 = 1;
/// The request is unusable.
pub const E2_BAD_REQUEST: i32 = 2;
/// The plugin has no such method.
pub const E2_NOT_IMPLEMENTED: i32 = 3;
/// A file could not be read.
pub const E2_IO: i32 = 4;
/// The host asked to stop.
pub const E2_CANCELLED: i32 = 5;
/// The plugin failed.
pub const E2_PLUGIN_ERROR: i32 = 6;
/// The plugin panicked; the instance must not be called again, only destroyed.
pub const E2_PANICKED: i32 = 7;

/// Borrowed UTF-8 bytes, not NUL-terminated; valid for the call, or for ever inside a static [`E2Plugin`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct E2Str {
    /// First byte; may be null where `len` is 0.
    pub ptr: *const u8,
    /// Bytes.
    pub len: usize,
}

impl E2Str {
    /// Borrows `text`.
    pub const fn new(text: &str) -> Self {
        Self { ptr: text.as_ptr(), len: text.len() }
    }
}

/// An owned buffer, freed by the side that made it.
#[repr(C)]
#[derive(Debug)]
pub struct E2Buf {
    /// First byte; may be null where `len` is 0.
    pub ptr: *mut u8,
    /// Bytes in use.
    pub len: usize,
    /// Bytes allocated, at least `len`.
    pub cap: usize,
    /// Frees the memory; must be present where `ptr` is not null.
    pub free: Option<unsafe extern "C" fn(buf: *mut E2Buf)>,
}

impl E2Buf {
    /// A buffer that holds nothing, for a callee to fill.
    pub const fn empty() -> Self {
        Self { ptr: core::ptr::null_mut(), len: 0, cap: 0, free: None }
    }
}

/// What a plugin may ask of the host; valid as long as the instance it was given to.
#[repr(C)]
#[derive(Debug)]
pub struct E2Host {
    /// Bytes of this struct on the host's side.
    pub struct_size: u32,
    /// The host's [`E2_ABI_MAJOR`].
    pub abi_major: u16,
    /// The host's [`E2_ABI_MINOR`].
    pub abi_minor: u16,
    /// Logs a message; level 1 error, 2 warning, 3 information, 4 debug, 5 trace. Any thread.
    pub log: Option<unsafe extern "C" fn(level: c_int, target: E2Str, message: E2Str)>,
    /// Whether the user asked to stop: 0 or 1. Any thread.
    pub is_cancelled: Option<unsafe extern "C" fn() -> c_int>,
    /// Tokens of `text` by the tokenizer of the backend under test; [`E2_NOT_IMPLEMENTED`] where it has none.
    pub count_tokens: Option<unsafe extern "C" fn(text: E2Str, n: *mut u64) -> c_int>,
    /// An extension of the host by its name, null where it has none.
    pub extension: Option<unsafe extern "C" fn(id: E2Str) -> *const c_void>,
}

/// A plugin: a static of the library, never changed, shared by all threads.
#[repr(C)]
#[derive(Debug)]
pub struct E2Plugin {
    /// [`E2_MAGIC`].
    pub magic: [u8; 8],
    /// Bytes of this struct on the plugin's side.
    pub struct_size: u32,
    /// The [`E2_ABI_MAJOR`] it was built with.
    pub abi_major: u16,
    /// The [`E2_ABI_MINOR`] it was built with.
    pub abi_minor: u16,
    /// [`E2_KIND_TASK`] or [`E2_KIND_METRIC`].
    pub kind: u32,
    /// Sum of `E2_FLAG_*`.
    pub flags: u64,
    /// Unique name within its kind, e.g. `qmsum`.
    pub id: E2Str,
    /// The plugin's own version, e.g. `0.1.0`.
    pub version: E2Str,
    /// One line for listings.
    pub description: E2Str,
    /// Name and version of the SDK, or of the compiler, it was built with.
    pub sdk: E2Str,
    /// Target triple it was built for.
    pub target: E2Str,
    /// Makes an instance from a JSON object of options. On failure `error_json` holds `{code, message, help}`.
    pub create: Option<
        unsafe extern "C" fn(
            host: *const E2Host,
            config_json: E2Str,
            instance: *mut *mut c_void,
            error_json: *mut E2Buf,
        ) -> i32,
    >,
    /// Calls a method with a JSON request. The reply is the method's, or on failure `{code, message, help}`.
    pub call: Option<
        unsafe extern "C" fn(
            instance: *mut c_void,
            method: E2Str,
            request_json: E2Str,
            reply_json: *mut E2Buf,
        ) -> i32,
    >,
    /// Ends an instance; it is not used after.
    pub destroy: Option<unsafe extern "C" fn(instance: *mut c_void)>,
}

// SAFETY: the struct is immutable and its pointers refer to statics and functions.
unsafe impl Sync for E2Plugin {}
// SAFETY: as above.
unsafe impl Send for E2Plugin {}
// SAFETY: immutable function pointers.
unsafe impl Sync for E2Host {}
// SAFETY: as above.
unsafe impl Send for E2Host {}

/// Type of the exported entry function: returns the static, never allocates, never fails.
pub type E2EntryFn = unsafe extern "C" fn() -> *const E2Plugin;
