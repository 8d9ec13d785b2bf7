//! The host's side of the boundary: everything a plugin hands over is checked before it is believed.

use crate::serve::{CloseRequest, NextReply, NextRequest, OpenReply, ResponseRequest, TurnRequest};
use crate::{
    Aggregate, Error, ErrorCode, Example, Examples, Kind, MetricInfo, MetricOptions, Prediction, Prompt,
    Result, Row, Scored, Scores, Source, Task, TaskInfo, TaskOptions,
};
use e2llm_plugin_abi as abi;
use e2llm_plugin_abi::{E2Buf, E2Host, E2Plugin, E2Str};
use serde::de::DeserializeOwned;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::ffi::c_void;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A plugin whose descriptor was checked.
#[derive(Debug, Clone, Copy)]
pub struct Plugin {
    raw: &'static E2Plugin,
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
        Ok(Instance {
            plugin: *self,
            raw: instance,
            serial: (!reentrant).then(Mutex::default),
            retired: AtomicBool::new(false),
        })
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

/// A reply buffer, freed by its maker.
struct Reply(E2Buf);

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

    fn into_error(self, status: i32, method: &str) -> Error {
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

fn to_json<T: Serialize>(value: &T) -> Result<String> {
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
    /// Whether it has panicked.
    fn is_retired(&self) -> bool {
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

    fn answer<Q: Serialize, A: DeserializeOwned>(&self, method: &str, request: &Q) -> Result<A> {
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
struct Renewable {
    plugin: Plugin,
    host: Option<&'static E2Host>,
    options: Value,
    current: Mutex<Arc<Instance>>,
    /// What a task's prompts may depend on.
    opened: Mutex<Option<Source>>,
}

impl Renewable {
    fn create(plugin: &Plugin, host: Option<&'static E2Host>, options: &impl Serialize) -> Result<Arc<Self>> {
        let options = serde_json::to_value(options)
            .map_err(|e| Error::bad_request(format!("options cannot be written as JSON: {e}")))?;
        let current = Mutex::new(Arc::new(plugin.create(host, &options)?));
        Ok(Arc::new(Self { plugin: *plugin, host, options, current, opened: Mutex::default() }))
    }

    fn instance(&self) -> Result<Arc<Instance>> {
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

    fn answer<Q: Serialize, A: DeserializeOwned>(&self, method: &str, request: &Q) -> Result<A> {
        self.instance()?.answer(method, request)
    }
}

/// A task behind the boundary, or one of the host's own. After a panic of a plugin its next call goes to a fresh
/// instance.
#[derive(Debug, Clone)]
pub struct TaskClient(Served);

#[derive(Clone)]
enum Served {
    Plugin(Arc<Renewable>),
    Host(Arc<dyn Task>),
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plugin(plugin) => plugin.fmt(f),
            Self::Host(task) => f.debug_tuple("Host").field(&task.info().id).finish(),
        }
    }
}

impl TaskClient {
    /// Makes an instance of a task plugin.
    ///
    /// # Errors
    /// A plugin of another kind, or its own error.
    pub fn create(plugin: &Plugin, host: Option<&'static E2Host>, options: &TaskOptions) -> Result<Self> {
        if plugin.kind != Kind::Task {
            return Err(Error::bad_request(format!("plugin `{}` is no task", plugin.id())));
        }
        Renewable::create(plugin, host, options).map(|plugin| Self(Served::Plugin(plugin)))
    }

    /// A task that is part of the host, used like any other.
    pub fn host(task: Arc<dyn Task>) -> Self {
        Self(Served::Host(task))
    }

    /// See [`crate::Task::info`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn info(&self) -> Result<TaskInfo> {
        match &self.0 {
            Served::Plugin(plugin) => plugin.answer("info", &()),
            Served::Host(task) => Ok(task.info()),
        }
    }

    /// See [`crate::Task::open`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn open(&self, source: &Source) -> Result<ExampleStream> {
        match &self.0 {
            Served::Plugin(plugin) => {
                let instance = plugin.instance()?;
                let OpenReply { stream, files } = instance.answer("open", source)?;
                *plugin.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(source.clone());
                let open = PluginStream {
                    plugin: Arc::clone(plugin),
                    source: source.clone(),
                    instance,
                    stream,
                    fetched: 0,
                    buffer: Vec::new(),
                    done: false,
                };
                Ok(ExampleStream { files, origin: Origin::Plugin(open) })
            }
            Served::Host(task) => {
                let examples = task.open(source)?;
                Ok(ExampleStream { files: source.opened_files(), origin: Origin::Host(examples) })
            }
        }
    }

    /// See [`crate::Task::prompt`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn prompt(&self, example: &Example) -> Result<Prompt> {
        match &self.0 {
            Served::Plugin(plugin) => plugin.answer("prompt", example),
            Served::Host(task) => task.prompt(example),
        }
    }

    /// See [`crate::Task::next_turn`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn next_turn(&self, example: &Example, response: &str, turn: u32) -> Result<Option<Prompt>> {
        let ResponseRequest { example, response } = without_context(example, response);
        let request = TurnRequest { example, response, turn };
        match &self.0 {
            Served::Plugin(plugin) => plugin.answer("next_turn", &request),
            Served::Host(task) => task.next_turn(&request.example, &request.response, turn),
        }
    }

    /// See [`crate::Task::extract`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn extract(&self, example: &Example, response: &str) -> Result<Prediction> {
        let request = without_context(example, response);
        match &self.0 {
            Served::Plugin(plugin) => plugin.answer("extract", &request),
            Served::Host(task) => Ok(task.extract(&request.example, response)),
        }
    }
}

fn without_context(example: &Example, response: &str) -> ResponseRequest {
    let Example { id, instruction, references, group, meta, .. } = example.clone();
    let example = Example { id, context: String::new(), instruction, references, group, meta };
    ResponseRequest { example, response: response.to_owned() }
}

/// Examples of an open source; those of a plugin are fetched in batches.
#[derive(Debug)]
pub struct ExampleStream {
    /// Files it reads.
    pub files: Vec<PathBuf>,
    origin: Origin,
}

enum Origin {
    Plugin(PluginStream),
    Host(Examples),
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plugin(stream) => stream.fmt(f),
            Self::Host(_) => f.write_str("Host"),
        }
    }
}

impl Iterator for ExampleStream {
    type Item = Result<Example>;

    fn next(&mut self) -> Option<Result<Example>> {
        match &mut self.origin {
            Origin::Plugin(stream) => stream.next(),
            Origin::Host(examples) => examples.next(),
        }
    }
}

#[derive(Debug)]
struct PluginStream {
    plugin: Arc<Renewable>,
    source: Source,
    instance: Arc<Instance>,
    stream: u64,
    /// Examples that came so far.
    fetched: usize,
    buffer: Vec<Example>, // reversed
    done: bool,
}

impl PluginStream {
    fn next(&mut self) -> Option<Result<Example>> {
        if self.buffer.is_empty() && !self.done {
            if let Err(e) = self.fetch() {
                self.done = true;
                return Some(Err(e));
            }
            self.done |= self.buffer.is_empty();
        }
        self.buffer.pop().map(Ok)
    }

    /// Fills the buffer; leaves it empty at the end.
    fn fetch(&mut self) -> Result<()> {
        // another call may have panicked meanwhile: the stream goes on where it was, from a fresh instance
        if self.instance.is_retired() {
            self.instance = self.plugin.instance()?;
            let OpenReply { stream, .. } = self.instance.answer("open", &self.source)?;
            self.stream = stream;
            let mut missing = self.fetched;
            while missing > 0 {
                let mut batch = self.batch()?;
                if batch.is_empty() {
                    return Err(Error::plugin("its examples are fewer than they were"));
                }
                let passed = missing.min(batch.len());
                missing -= passed;
                self.buffer = batch.drain(passed..).rev().collect();
            }
            if !self.buffer.is_empty() {
                self.fetched += self.buffer.len();
                return Ok(());
            }
        }
        let batch = self.batch()?;
        self.fetched += batch.len();
        self.buffer = batch.into_iter().rev().collect();
        Ok(())
    }

    fn batch(&self) -> Result<Vec<Example>> {
        let request = NextRequest { stream: self.stream, max_examples: 64, max_bytes: 8 << 20 };
        let reply = self.instance.call::<_, NextReply>("next", &request)?;
        Ok(reply.map(|r| r.examples).unwrap_or_default())
    }
}

impl Drop for PluginStream {
    fn drop(&mut self) {
        // a stream that cannot be closed ends with its instance
        let _ = self.instance.call::<_, ()>("close", &CloseRequest { stream: self.stream });
    }
}

/// An [`crate::serve::AggregateRequest`] whose rows are written one by one.
struct Rows<I>(I);

impl<I: Iterator<Item = Row> + Clone> Serialize for Rows<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        struct Each<'a, I>(&'a I);
        impl<I: Iterator<Item = Row> + Clone> Serialize for Each<'_, I> {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.clone())
            }
        }
        let mut request = serializer.serialize_struct("AggregateRequest", 1)?;
        request.serialize_field("rows", &Each(&self.0))?;
        request.end()
    }
}

/// A metric behind the boundary. After a panic its next call goes to a fresh instance.
#[derive(Debug, Clone)]
pub struct MetricClient(Arc<Renewable>);

impl MetricClient {
    /// Makes an instance of a metric plugin that gives all of its values.
    ///
    /// # Errors
    /// A plugin of another kind, or its own error.
    pub fn create(plugin: &Plugin, host: Option<&'static E2Host>) -> Result<Self> {
        Self::create_with(plugin, host, &MetricOptions::default())
    }

    /// Makes an instance that need not give other values than those of `options`.
    ///
    /// # Errors
    /// As [`MetricClient::create`].
    pub fn create_with(
        plugin: &Plugin,
        host: Option<&'static E2Host>,
        options: &MetricOptions,
    ) -> Result<Self> {
        if plugin.kind != Kind::Metric {
            return Err(Error::bad_request(format!("plugin `{}` is no metric", plugin.id())));
        }
        Renewable::create(plugin, host, options).map(Self)
    }

    /// See [`crate::Metric::info`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn info(&self) -> Result<MetricInfo> {
        self.0.answer("info", &())
    }

    /// See [`crate::Metric::score`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn score(&self, sample: &Scored) -> Result<Scores> {
        self.0.answer("score", sample)
    }

    /// See [`crate::Metric::aggregate`].
    ///
    /// # Errors
    /// The plugin's own.
    pub fn aggregate(&self, rows: impl IntoIterator<Item = Row, IntoIter: Clone>) -> Result<Aggregate> {
        self.0.answer("aggregate", &Rows(rows.into_iter()))
    }
}
