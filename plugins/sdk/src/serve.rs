//! The plugin's side of the boundary: JSON in, JSON out, panics caught.

use crate::rows::Rows;
use crate::task::TaskOptions;
use crate::{
    Error, ErrorCode, Example, Examples, Host, Metric, MetricOptions, Result, Row, Scored, Source, Task,
};
use e2llm_plugin_abi as abi;
use e2llm_plugin_abi::{E2Buf, E2Host, E2Str};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Name and version of this SDK, as plugins state it.
pub const SDK: &str = concat!("e2llm-plugin ", env!("CARGO_PKG_VERSION"));

/// Request of the method `next`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NextRequest {
    /// The stream that `open` answered.
    pub stream: u64,
    /// At most so many examples.
    pub max_examples: usize,
    /// No further example once their contexts have so many bytes.
    pub max_bytes: usize,
}

/// Reply of the method `open`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct OpenReply {
    /// Number of the stream.
    pub stream: u64,
    /// Files it reads; empty for embedded or generated examples.
    pub files: Vec<PathBuf>,
}

/// Reply of the method `next`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct NextReply {
    /// At least one.
    pub examples: Vec<Example>,
}

/// Request of the method `close`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CloseRequest {
    /// The stream to close.
    pub stream: u64,
}

/// Request of the method `next_turn`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TurnRequest {
    /// The example, its context left empty.
    pub example: Example,
    /// The backend's response.
    pub response: String,
    /// Which turn it answers, from 1.
    pub turn: u32,
}

/// Request of the method `extract`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ResponseRequest {
    /// The example, its context left empty.
    pub example: Example,
    /// The backend's response.
    pub response: String,
}

/// Request of the method `aggregate`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AggregateRequest {
    /// All samples, in order.
    pub rows: Vec<Row>,
}

/// The same as it is read.
#[derive(Deserialize)]
struct AggregateTable {
    rows: Rows,
}

type Reply = Option<Vec<u8>>;

trait Serve: Send + Sync {
    fn call(&self, method: &str, request: &str) -> Result<Reply>;
}

struct Instance {
    serve: Box<dyn Serve>,
    panicked: AtomicBool,
}

fn request<T: DeserializeOwned>(method: &str, json: &str) -> Result<T> {
    serde_json::from_str(json).map_err(|e| Error::bad_request(format!("method `{method}`: {e}")))
}

fn reply<T: Serialize>(value: &T) -> Result<Reply> {
    serde_json::to_vec(value).map(Some).map_err(|e| Error::plugin(format!("reply cannot be written: {e}")))
}

fn unknown(kind: &str, method: &str) -> Error {
    Error::new(ErrorCode::NotImplemented, format!("a {kind} has no method `{method}`"))
}

/// A lock whose holder panicked guards data of an instance that is retired anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct TaskServe {
    task: Box<dyn Task>,
    streams: Mutex<BTreeMap<u64, Examples>>,
    opened: Mutex<u64>,
}

impl TaskServe {
    fn next(&self, r: &NextRequest) -> Result<Reply> {
        // taken out while it is read, so that two streams can be read at once
        let mut stream = lock(&self.streams)
            .remove(&r.stream)
            .ok_or_else(|| Error::bad_request(format!("no stream {} is open, or it is in use", r.stream)))?;
        let (mut examples, mut bytes) = (Vec::new(), 0);
        while examples.len() < r.max_examples.max(1) && bytes < r.max_bytes.max(1) {
            match stream.next() {
                // examples before a broken record are handed over first
                Some(Err(e)) if !examples.is_empty() => {
                    stream = Box::new(std::iter::once(Err(e)).chain(stream));
                    break;
                }
                Some(example) => {
                    let example = example?;
                    bytes += example.context.len();
                    examples.push(example);
                }
                None => break,
            }
        }
        if examples.is_empty() {
            return Ok(None);
        }
        lock(&self.streams).insert(r.stream, stream);
        reply(&NextReply { examples })
    }
}

impl Serve for TaskServe {
    fn call(&self, method: &str, json: &str) -> Result<Reply> {
        match method {
            "info" => reply(&self.task.info()),
            "open" => {
                let source: Source = request(method, json)?;
                let examples = self.task.open(&source)?;
                let stream = {
                    let mut n = lock(&self.opened);
                    *n += 1;
                    *n
                };
                lock(&self.streams).insert(stream, examples);
                reply(&OpenReply { stream, files: source.opened_files() })
            }
            "next" => self.next(&request(method, json)?),
            "close" => {
                let r: CloseRequest = request(method, json)?;
                lock(&self.streams).remove(&r.stream);
                reply(&())
            }
            "prompt" => reply(&self.task.prompt(&request(method, json)?)?),
            "next_turn" => {
                let r: TurnRequest = request(method, json)?;
                reply(&self.task.next_turn(&r.example, &r.response, r.turn)?)
            }
            "extract" => {
                let r: ResponseRequest = request(method, json)?;
                reply(&self.task.extract(&r.example, &r.response))
            }
            _ => Err(unknown("task", method)),
        }
    }
}

struct MetricServe(Box<dyn Metric>);

impl Serve for MetricServe {
    fn call(&self, method: &str, json: &str) -> Result<Reply> {
        match method {
            "info" => reply(&self.0.info()),
            "score" => reply(&self.0.score(&request::<Scored>(method, json)?)?),
            "aggregate" => {
                let rows = request::<AggregateTable>(method, json)?.rows;
                reply(&self.0.aggregate(&mut rows.iter())?)
            }
            _ => Err(unknown("metric", method)),
        }
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

/// Runs `f`; a panic becomes an error of code [`ErrorCode::Panicked`].
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        let message = format!("the plugin panicked: {}", panic_message(&*payload));
        Err(Error::new(ErrorCode::Panicked, message)
            .with_help("this is a bug of the plugin; report it to its author"))
    })
}

/// # Safety
/// `s` holds valid memory for the time of the call.
unsafe fn text<'a>(s: E2Str) -> Result<&'a str> {
    let bytes = if s.len == 0 {
        &[]
    } else if s.ptr.is_null() {
        return Err(Error::bad_request("a null string with a length"));
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(s.ptr, s.len) }
    };
    std::str::from_utf8(bytes).map_err(|e| Error::bad_request(format!("a string is not UTF-8: {e}")))
}

unsafe extern "C" fn free(buf: *mut E2Buf) {
    // SAFETY: the host passes a buffer that `put` made, once.
    unsafe {
        let Some(b) = buf.as_mut() else { return };
        if !b.ptr.is_null() {
            drop(Vec::from_raw_parts(b.ptr, b.len, b.cap));
        }
        *b = E2Buf::empty();
    }
}

/// # Safety
/// `out` is null or writable.
unsafe fn put(out: *mut E2Buf, bytes: Vec<u8>) {
    let mut bytes = std::mem::ManuallyDrop::new(bytes);
    let buf = E2Buf { ptr: bytes.as_mut_ptr(), len: bytes.len(), cap: bytes.capacity(), free: Some(free) };
    if out.is_null() {
        drop(std::mem::ManuallyDrop::into_inner(bytes));
    } else {
        // SAFETY: the caller's promise.
        unsafe { out.write(buf) }
    }
}

/// # Safety
/// `out` is null or writable.
unsafe fn fail(out: *mut E2Buf, error: &Error) -> i32 {
    let json = serde_json::to_vec(error).unwrap_or_default();
    // SAFETY: the caller's promise.
    unsafe { put(out, json) };
    error.code.status()
}

unsafe fn create(
    out: *mut *mut c_void,
    error: *mut E2Buf,
    make: impl FnOnce() -> Result<Box<dyn Serve>>,
) -> i32 {
    match guarded(make) {
        Ok(serve) if !out.is_null() => {
            let instance = Box::new(Instance { serve, panicked: AtomicBool::new(false) });
            // SAFETY: not null, and the host promises that it is writable.
            unsafe { out.write(Box::into_raw(instance).cast()) };
            abi::E2_OK
        }
        Ok(_) => abi::E2_BAD_REQUEST,
        // SAFETY: the host promises a writable buffer.
        Err(e) => unsafe { fail(error, &e) },
    }
}

/// What is exported, with its id.
pub trait Exported {
    /// The plugin's id.
    const ID: &'static str;
}

/// `create` of a task.
///
/// # Safety
/// As the ABI says: `host` outlives the instance, `config` the call, both outputs are writable.
pub unsafe extern "C" fn create_task<T: Task + Exported + Default + 'static>(
    host: *const E2Host,
    config: E2Str,
    instance: *mut *mut c_void,
    error: *mut E2Buf,
) -> i32 {
    let make = || -> Result<Box<dyn Serve>> {
        // SAFETY: the host's promise.
        let (config, host) = unsafe { (text(config)?, Host::from_raw(host, T::ID)) };
        let options: TaskOptions =
            if config.is_empty() { TaskOptions::default() } else { request("create", config)? };
        let mut task = Box::new(T::default());
        task.configure(&options, host)?;
        Ok(Box::new(TaskServe { task, streams: Mutex::default(), opened: Mutex::new(0) }))
    };
    // SAFETY: the host's promise.
    unsafe { create(instance, error, make) }
}

/// `create` of a metric.
///
/// # Safety
/// As [`create_task`].
pub unsafe extern "C" fn create_metric<T: Metric + Default + 'static>(
    _host: *const E2Host,
    config: E2Str,
    instance: *mut *mut c_void,
    error: *mut E2Buf,
) -> i32 {
    let make = || -> Result<Box<dyn Serve>> {
        // SAFETY: the host's promise.
        let config = unsafe { text(config)? };
        let options: MetricOptions =
            if config.is_empty() { MetricOptions::default() } else { request("create", config)? };
        let mut metric = Box::new(T::default());
        if let Some(values) = &options.values {
            metric.only(values);
        }
        Ok(Box::new(MetricServe(metric)))
    };
    // SAFETY: the host's promise.
    unsafe { create(instance, error, make) }
}

/// `call` of every plugin made with this SDK.
///
/// # Safety
/// As the ABI says: `instance` comes from `create` and was not destroyed, the strings live through the call, the
/// reply is writable.
pub unsafe extern "C" fn call(instance: *mut c_void, method: E2Str, json: E2Str, out: *mut E2Buf) -> i32 {
    // SAFETY: the host's promise.
    let Some(instance) = (unsafe { instance.cast::<Instance>().as_ref() }) else {
        // SAFETY: the host's promise.
        return unsafe { fail(out, &Error::bad_request("a null instance")) };
    };
    let result = if instance.panicked.load(Ordering::SeqCst) {
        Err(Error::new(ErrorCode::Panicked, "the plugin panicked before and is not called again"))
    } else {
        // SAFETY: the host's promise.
        guarded(|| unsafe { instance.serve.call(text(method)?, text(json)?) })
    };
    match result {
        Ok(Some(bytes)) => {
            // SAFETY: the host's promise.
            unsafe { put(out, bytes) };
            abi::E2_OK
        }
        Ok(None) => abi::E2_END,
        Err(e) => {
            if e.code == ErrorCode::Panicked {
                instance.panicked.store(true, Ordering::SeqCst);
            }
            // SAFETY: the host's promise.
            unsafe { fail(out, &e) }
        }
    }
}

/// `destroy` of every plugin made with this SDK. A panic of a destructor is swallowed: there is nobody to tell.
///
/// # Safety
/// `instance` is null or comes from `create` and is not used after.
pub unsafe extern "C" fn destroy(instance: *mut c_void) {
    if !instance.is_null() {
        // SAFETY: the host's promise.
        let instance = unsafe { Box::from_raw(instance.cast::<Instance>()) };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(instance)));
    }
}
