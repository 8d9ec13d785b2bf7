//! Examples of an open source.

use super::instance::{Instance, Renewable};
use crate::serve::{CloseRequest, NextReply, NextRequest, OpenReply};
use crate::{Error, Example, Examples, Result, Source};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

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

impl ExampleStream {
    /// A stream that `open` began.
    pub(super) fn of_plugin(
        plugin: Arc<Renewable>,
        source: Source,
        instance: Arc<Instance>,
        stream: u64,
        files: Vec<PathBuf>,
    ) -> Self {
        let open =
            PluginStream { plugin, source, instance, stream, fetched: 0, buffer: Vec::new(), done: false };
        Self { files, origin: Origin::Plugin(open) }
    }

    pub(super) fn of_host(examples: Examples, files: Vec<PathBuf>) -> Self {
        Self { files, origin: Origin::Host(examples) }
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
