//! A task, behind the boundary or the host's own.

use super::instance::Renewable;
use super::plugin::Plugin;
use super::stream::ExampleStream;
use crate::serve::{OpenReply, ResponseRequest, TurnRequest};
use crate::{Error, Example, Kind, Prediction, Prompt, Result, Source, Task, TaskInfo, TaskOptions};
use e2llm_plugin_abi::E2Host;
use std::fmt;
use std::sync::{Arc, PoisonError};

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
        if plugin.kind() != Kind::Task {
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
                Ok(ExampleStream::of_plugin(Arc::clone(plugin), source.clone(), instance, stream, files))
            }
            Served::Host(task) => {
                let examples = task.open(source)?;
                Ok(ExampleStream::of_host(examples, source.opened_files()))
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
