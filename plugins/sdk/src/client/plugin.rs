//! A plugin's descriptor, checked field by field.

use super::instance::{Instance, Reply, to_json};
use crate::{Error, Kind, Result};
use e2llm_plugin_abi as abi;
use e2llm_plugin_abi::{E2Buf, E2Host, E2Plugin, E2Str};
use serde::Serialize;

/// A plugin whose descriptor was checked.
#[derive(Debug, Clone, Copy)]
pub struct Plugin {
    pub(super) raw: &'static E2Plugin,
    kind: Kind,
}

impl Plugin {
    /// Checks a descriptor field by field.
    ///
    /// # Errors
    /// What is wrong with it, with the value found and the one expected.
    ///
    /// # Safety
    /// `raw` is null or points to memory that stays valid for ever and holds at least the 16 bytes up to
    /// `abi_minor`, and `struct_size` bytes where the magic number is right.
    pub unsafe fn from_raw(raw: *const E2Plugin) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::plugin("the entry function returned null"));
        }
        // SAFETY: the caller's promise; fields are read through raw pointers since the struct may be shorter.
        let (magic, size, major, minor) =
            unsafe { ((*raw).magic, (*raw).struct_size as usize, (*raw).abi_major, (*raw).abi_minor) };
        if magic != abi::E2_MAGIC {
            return Err(Error::plugin("the descriptor does not begin with `E2LLMPLG`")
                .with_help("the library exports e2llm_plugin_entry but is no e2llm-bench plugin"));
        }
        if major != abi::E2_ABI_MAJOR {
            return Err(Error::plugin(format!(
                "it was built for ABI {major}.{minor}, this program has ABI {}.{}",
                abi::E2_ABI_MAJOR,
                abi::E2_ABI_MINOR
            ))
            .with_help("rebuild the plugin with this program's SDK"));
        }
        if size < size_of::<E2Plugin>() {
            return Err(Error::plugin(format!(
                "its descriptor has {size} bytes, at least {} are needed",
                size_of::<E2Plugin>()
            )));
        }
        // SAFETY: large enough, as just checked.
        let raw = unsafe { &*raw };
        let kind = match raw.kind {
            abi::E2_KIND_TASK => Kind::Task,
            abi::E2_KIND_METRIC => Kind::Metric,
            k => return Err(Error::plugin(format!("its kind is {k}, expected 1 (task) or 2 (metric)"))),
        };
        if raw.create.is_none() || raw.call.is_none() || raw.destroy.is_none() {
            return Err(Error::plugin("a function of its descriptor is null"));
        }
        let plugin = Self { raw, kind };
        for (name, s) in [("id", raw.id), ("version", raw.version), ("description", raw.description)] {
            // SAFETY: strings of a static descriptor live for ever, by the ABI.
            let text = unsafe { static_text(s) }.map_err(|e| e.at(format!("its {name}")))?;
            if text.is_empty() && name != "description" {
                return Err(Error::plugin(format!("its {name} is empty")));
            }
        }
        Ok(plugin)
    }

    /// Task or metric.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Name within its kind.
    pub fn id(&self) -> &'static str {
        // SAFETY: checked by `from_raw`, lives for ever.
        unsafe { static_text(self.raw.id) }.unwrap_or_default()
    }

    /// The plugin's version.
    pub fn version(&self) -> &'static str {
        // SAFETY: checked by `from_raw`, lives for ever.
        unsafe { static_text(self.raw.version) }.unwrap_or_default()
    }

    /// Makes an instance.
    ///
    /// # Errors
    /// The plugin's own error, or what is wrong with its answer.
    pub fn create(&self, host: Option<&'static E2Host>, options: &impl Serialize) -> Result<Instance> {
        let config = to_json(options)?;
        let host = host.map_or(std::ptr::null(), std::ptr::from_ref);
        let (mut instance, mut error) = (std::ptr::null_mut(), Reply(E2Buf::empty()));
        let Some(create) = self.raw.create else { return Err(Error::plugin("it has no `create`")) };
        // SAFETY: the descriptor was checked; all arguments live through the call, the host for ever.
        let status = unsafe { create(host, E2Str::new(&config), &mut instance, &mut error.0) };
        if status != abi::E2_OK {
            return Err(error.into_error(status, "create"));
        }
        if instance.is_null() {
            return Err(Error::plugin("`create` succeeded without an instance"));
        }
        let reentrant = self.raw.flags & abi::E2_FLAG_REENTRANT != 0;
        Ok(Instance::new(*self, instance, reentrant))
    }
}

/// # Safety
/// `s` points to memory that lives for ever.
unsafe fn static_text(s: E2Str) -> Result<&'static str> {
    if s.len == 0 {
        return Ok("");
    }
    if s.ptr.is_null() {
        return Err(Error::plugin(format!("a null pointer with length {}", s.len)));
    }
    if s.len as u64 > abi::E2_MAX_PAYLOAD {
        return Err(Error::plugin(format!("a string of {} bytes", s.len)));
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(s.ptr, s.len) };
    std::str::from_utf8(bytes).map_err(|e| Error::plugin(format!("not UTF-8: {e}")))
}
