//! Calls into a plugin: an instance, its replies, and another instance where one has panicked.

use super::plugin::Plugin;
use crate::serve::{CloseRequest, OpenReply};
use crate::{Error, ErrorCode, Result, Source};
use e2llm_plugin_abi as abi;
use e2llm_plugin_abi::{E2Buf, E2Host, E2Str};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A reply buffer, freed by its maker.
pub(super) struct Reply(pub(super) E2Buf);

impl Drop for Reply {
    fn drop(&mut self) {
        if let (false, Some(free)) = (self.0.ptr.is_null(), self.0.free) {
            // SAFETY: the plugin made it and it is freed once.
            unsafe { free(&mut self.0) }
        }
    }
}

impl Reply {
    fn text(&self) -> Result<&str> {
        let b = &self.0;
        if b.len == 0 {
            return Ok("");
        }
        let bad = |what: String| Err(Error::plugin(format!("its reply {what}")));
        if b.ptr.is_null() {
            return bad(format!("is a null pointer with length {}", b.len));
        }
        if b.len > b.cap {
            return bad(format!("has length {} in a buffer of {}", b.len, b.cap));
        }
        if b.len as u64 > abi::E2_MAX_PAYLOAD {
            return bad(format!("has {} bytes, at most {} are accepted", b.len, abi::E2_MAX_PAYLOAD));
        }
        if b.free.is_none() {
            return bad("has no `free` function".into());
        }
        // SAFETY: not null, and the plugin vouches for `len` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(b.ptr, b.len) };
        std::str::from_utf8(bytes).or_else(|e| bad(format!("is not UTF-8: {e}")))
    }

    pub(super) fn into_error(self, status: i32, method: &str) -> Error {
        let code = ErrorCode::from_status(status);
        let mut error = match self.text() {
            Ok("") => Error::new(code, format!("`{method}` failed with status {status} and no message")),
            Ok(json) => serde_json::from_str(json).unwrap_or_else(|_| {
                Error::new(code, format!("`{method}` failed with status {status}: {json}"))
            }),
            Err(e) => e.at(format!("`{method}` failed with status {status}")),
        };
        error.code = code; // the status decides, not what the text says
        error
    }
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::bad_request(format!("cannot be written as JSON: {e}")))
}

/// An instance of a plugin. Calls are serialised unless the plugin is reentrant; after a panic none goes through.
#[derive(Debug)]
pub struct Instance {
    plugin: Plugin,
    raw: *mut c_void,
    serial: Option<Mutex<()>>,
    retired: AtomicBool,
}

// SAFETY: the ABI lets an instance move between threads; calls are serialised where it is not reentrant.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

impl Instance {
    /// `raw` comes from the plugin's `create`.
    pub(super) fn new(plugin: Plugin, raw: *mut c_void, reentrant: bool) -> Self {
        Self { plugin, raw, serial: (!reentrant).then(Mutex::default), retired: AtomicBool::new(false) }
    }

    /// Whether it has panicked.
    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Calls a method; `None` is the end of a stream.
    ///
    /// # Errors
    /// The plugin's own error, or what is wrong with its reply.
    pub fn call<Q: Serialize, A: DeserializeOwned>(&self, method: &str, request: &Q) -> Result<Option<A>> {
        if self.is_retired() {
            return Err(Error::new(
                ErrorCode::Panicked,
                format!("plugin `{}` panicked before and is not called again", self.plugin.id()),
            ));
        }
        let json = to_json(request)?;
        let mut reply = Reply(E2Buf::empty());
        let Some(call) = self.plugin.raw.call else { return Err(Error::plugin("it has no `call`")) };
        let status = {
            let _serial = self.serial.as_ref().map(|m| m.lock().unwrap_or_else(PoisonError::into_inner));
            // SAFETY: the instance is alive and all arguments live through the call.
            unsafe { call(self.raw, E2Str::new(method), E2Str::new(&json), &mut reply.0) }
        };
        let place = || format!("plugin `{}`", self.plugin.id());
        match status {
            abi::E2_OK => {
                let text = reply.text().map_err(|e| e.at(format!("{}: `{method}`", place())))?;
                serde_json::from_str(text).map(Some).map_err(|e| {
                    Error::plugin(format!("{}: `{method}`: its reply cannot be read: {e}", place()))
                })
            }
            abi::E2_END => Ok(None),
            status => {
                if status == abi::E2_PANICKED {
                    self.retired.store(true, Ordering::SeqCst);
                }
                Err(reply.into_error(status, method).at(place()))
            }
        }
    }

    pub(super) fn answer<Q: Serialize, A: DeserializeOwned>(&self, method: &str, request: &Q) -> Result<A> {
        self.call(method, request)?.ok_or_else(|| {
            Error::plugin(format!("plugin `{}`: `{method}` ended a stream that is none", self.plugin.id()))
        })
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(destroy) = self.plugin.raw.destroy {
            // SAFETY: from `create`, destroyed once.
            unsafe { destroy(self.raw) }
        }
    }
}

/// An instance, and what it takes to make another one when it has panicked: a panic costs its call, not all calls
/// that follow.
#[derive(Debug)]
pub(super) struct Renewable {
    plugin: Plugin,
    host: Option<&'static E2Host>,
    options: Value,
    current: Mutex<Arc<Instance>>,
    /// What a task's prompts may depend on.
    pub(super) opened: Mutex<Option<Source>>,
}

impl Renewable {
    pub(super) fn create(
        plugin: &Plugin,
        host: Option<&'static E2Host>,
        options: &impl Serialize,
    ) -> Result<Arc<Self>> {
        let options = serde_json::to_value(options)
            .map_err(|e| Error::bad_request(format!("options cannot be written as JSON: {e}")))?;
        let current = Mutex::new(Arc::new(plugin.create(host, &options)?));
        Ok(Arc::new(Self { plugin: *plugin, host, options, current, opened: Mutex::default() }))
    }

    pub(super) fn instance(&self) -> Result<Arc<Instance>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_retired() {
            let fresh = self.plugin.create(self.host, &self.options)?;
            let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(source) = &*opened {
                let OpenReply { stream, .. } = fresh.answer("open", source)?;
                fresh.call::<_, ()>("close", &CloseRequest { stream })?;
            }
            *current = Arc::new(fresh);
        }
        Ok(Arc::clone(&current))
    }

    pub(super) fn answer<Q: Serialize, A: DeserializeOwned>(&self, method: &str, request: &Q) -> Result<A> {
        self.instance()?.answer(method, request)
    }
}
