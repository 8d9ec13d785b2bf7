//! Metrics of a task: which plugins, scoring a sample, and results out of samples.

use crate::failure::{Failure, Result};
use crate::plugins::{HOST, Index, provides};
use crate::store::{Outcome, SampleRecord};
use e2llm_backend::fingerprint::sha256_file;
use e2llm_plugin::client::MetricClient;
use e2llm_plugin::{Aggregation, Kind, MetricInfo, MetricOptions, Scored, Scores};
use std::path::PathBuf;

/// The values that a geometric mean is made of.
fn parts<'a>(info: &'a MetricInfo, id: &str) -> Option<&'a [String]> {
    match &info.values.iter().find(|v| v.id == id)?.aggregation {
        Aggregation::GeometricMean(of) => Some(of),
        Aggregation::Mean | Aggregation::Sum => None,
    }
}

/// A metric plugin in use.
#[derive(Debug, Clone)]
pub struct MetricPlugin {
    /// Its instance.
    pub client: MetricClient,
    /// What it says of itself.
    pub info: MetricInfo,
    /// Its library.
    pub path: PathBuf,
}

/// The metric plugins that provide a list of values.
#[derive(Debug, Clone, Default)]
pub struct MetricSet {
    /// In order of first use.
    pub plugins: Vec<MetricPlugin>,
    /// The values to report, in order.
    pub wanted: Vec<String>,
}

impl MetricSet {
    /// Loads the plugins of `wanted`: value ids, or a plugin's id for all of its values.
    ///
    /// # Errors
    /// An unknown metric; a plugin that cannot be loaded.
    pub fn load(index: &Index, wanted: &[String]) -> Result<Self> {
        let mut set = Self::default();
        for id in wanted {
            let candidate = index.metric_of(id)?;
            if !set.plugins.iter().any(|p| p.path == candidate.path) {
                let plugin = candidate.load()?;
                let info = MetricClient::create(&plugin, Some(&HOST))?.info()?;
                // what is not looked at need not be computed
                let own = |id: &&String| index.metric_of(id).is_ok_and(|c| c.path == candidate.path);
                let own: Vec<String> = wanted.iter().filter(own).cloned().collect();
                let whole = own.contains(&candidate.identity.id);
                let options = MetricOptions { values: (!whole).then_some(own) };
                let client = MetricClient::create_with(&plugin, Some(&HOST), &options)?;
                set.plugins.push(MetricPlugin { client, info, path: candidate.path.clone() });
            }
            if *id == candidate.identity.id && !provides(candidate).any(|p| p == id) {
                let info = set.plugins.iter().find(|p| p.path == candidate.path).map(|p| &p.info);
                let all: Vec<_> = info.iter().flat_map(|i| i.values.iter().map(|v| v.id.clone())).collect();
                set.wanted.extend(all);
            } else {
                set.wanted.push(id.clone());
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        set.wanted.retain(|id| seen.insert(id.clone()));
        for id in &set.wanted {
            if !set.plugins.iter().any(|p| p.info.values.iter().any(|v| v.id == *id)) {
                return Err(Failure::failed(format!(
                    "no loaded metric plugin has a value `{id}` of its own"
                )));
            }
        }
        Ok(set)
    }

    /// Scores an answered sample with every plugin.
    ///
    /// # Errors
    /// The first plugin that fails, named.
    pub fn score(&self, sample: &Scored) -> std::result::Result<Scores, String> {
        let mut all = Scores::new();
        for p in &self.plugins {
            let scores =
                p.client.score(sample).map_err(|e| format!("metric `{}`: {}", p.info.id, e.message))?;
            all.extend(scores.into_iter().filter(|(id, _)| self.needs(&p.info, id)));
        }
        Ok(all)
    }

    /// Whether a value is wanted, or part of one that is.
    fn needs(&self, info: &MetricInfo, id: &str) -> bool {
        self.wanted.iter().any(|w| w == id || parts(info, w).is_some_and(|of| of.iter().any(|o| o == id)))
    }

    /// The values of a sample whose means make a value: itself, or those of a geometric mean.
    pub fn parts(&self, id: &str) -> Vec<String> {
        let of = self.plugins.iter().find_map(|p| parts(&p.info, id));
        of.map_or_else(|| vec![id.to_owned()], <[String]>::to_vec)
    }

    /// Whether a stored answer was scored with other metrics: it has no value of one that is wanted.
    pub fn lacks(&self, record: &SampleRecord) -> bool {
        let mut needed = self.wanted.iter().flat_map(|id| self.parts(id));
        let is_answered = matches!(record.outcome, Outcome::Answered { .. });
        is_answered && needed.any(|id| !record.scores.contains_key(&id))
    }

    /// Scores a stored sample again.
    pub fn rescore(&self, record: &mut SampleRecord) {
        let Outcome::Answered { response, prediction, .. } = &record.outcome else { return };
        let sample = Scored {
            prediction: prediction.text.clone(),
            response: Some(response.clone()),
            references: record.references.clone(),
            meta: record.meta.clone(),
        };
        match self.score(&sample) {
            Ok(scores) => (record.scores, record.score_error) = (scores, None),
            Err(e) => (record.scores, record.score_error) = (Scores::new(), Some(e)),
        }
    }

    /// Name and library of every plugin, for the manifest.
    ///
    /// # Errors
    /// A library that cannot be read.
    pub fn used(&self) -> Result<Vec<(String, crate::store::PluginUsed)>> {
        self.plugins
            .iter()
            .map(|p| {
                let sha256 = sha256_file(&p.path).map_err(|e| Failure::io("read", &p.path, &e))?;
                let used = crate::store::PluginUsed { version: p.info.version.clone(), sha256 };
                Ok((format!("{}/{}", Kind::Metric.name(), p.info.id), used))
            })
            .collect()
    }
}
