//! A metric behind the boundary.

use super::instance::Renewable;
use super::plugin::Plugin;
use crate::{Aggregate, Error, Kind, MetricInfo, MetricOptions, Result, Row, Scored, Scores};
use e2llm_plugin_abi::E2Host;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::sync::Arc;

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
        if plugin.kind() != Kind::Metric {
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
