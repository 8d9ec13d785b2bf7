//! Sentence embeddings the way sentence-transformers makes them of an encoder's folder.

use crate::config::read_json;
use crate::{BertEncoder, EncoderFiles, LmError, Precision, Result, Tokenizer};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// How the states of a text's tokens become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first, `[CLS]`.
    Cls,
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "mean" => Ok(Self::Mean),
            "cls" => Ok(Self::Cls),
            _ => Err(format!("unknown pooling `{text}`: known are mean, cls")),
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Mean { "mean" } else { "cls" })
    }
}

/// What an encoder's folder says about making sentence embeddings with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentenceSettings {
    /// `1_Pooling/config.json`; the mean where the folder has none.
    pub pooling: Pooling,
    /// Text put before a query: `prompts` of `config_sentence_transformers.json`.
    pub query_prompt: String,
    /// Text put before a passage.
    pub passage_prompt: String,
    /// Tokens a text is cut to, special ones included: `sentence_bert_config.json`; `None` for the encoder's window.
    pub max_tokens: Option<usize>,
    /// Those of the files above that are there, for hashing.
    pub files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    #[serde(default)]
    default_prompt_name: Option<String>,
}

#[derive(Deserialize)]
struct Limits {
    max_seq_length: Option<usize>,
}

impl SentenceSettings {
    /// Reads what the folder has of sentence-transformers' files.
    ///
    /// # Errors
    /// Damaged files; poolings and modules that are not supported.
    pub fn of(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut find = |name: &str| {
            let path = folder.join(name);
            path.is_file().then(|| {
                files.push(path.clone());
                path
            })
        };
        if let Some(path) = find("modules.json") {
            let modules: Vec<Module> = read_json(&path)?;
            let known = ["Transformer", "Pooling", "Normalize"];
            if let Some(m) = modules.iter().find(|m| !known.iter().any(|k| m.kind.ends_with(k))) {
                let message = format!(
                    "{}: module `{}` of a sentence encoder ({})",
                    path.display(),
                    m.kind,
                    known.join(", ")
                );
                return Err(LmError::Unsupported(message));
            }
        }
        let pooling = match find("1_Pooling/config.json") {
            Some(path) => pooling_of(&path)?,
            None => Pooling::Mean,
        };
        let prompts: Prompts = match find("config_sentence_transformers.json") {
            Some(path) => read_json(&path)?,
            None => Prompts::default(),
        };
        let default = prompts.default_prompt_name.iter().map(String::as_str);
        let prompt = |names: &[&str]| {
            let mut names = names.iter().copied().chain(default.clone());
            names.find_map(|name| prompts.prompts.get(name)).cloned().unwrap_or_default()
        };
        let (query_prompt, passage_prompt) = (prompt(&["query"]), prompt(&["document", "passage", "corpus"]));
        let max_tokens = match find("sentence_bert_config.json") {
            Some(path) => read_json::<Limits>(&path)?.max_seq_length,
            None => None,
        };
        Ok(Self { pooling, query_prompt, passage_prompt, max_tokens, files })
    }
}

/// The pooling that is switched on in a `1_Pooling/config.json`.
fn pooling_of(path: &Path) -> Result<Pooling> {
    let config: BTreeMap<String, serde_json::Value> = read_json(path)?;
    let modes: Vec<_> = config
        .iter()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(key, _)| key.as_str())
        .collect();
    match modes.as_slice() {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        other => {
            let found = if other.is_empty() { "none".to_owned() } else { other.join(", ") };
            Err(LmError::Unsupported(format!("{}: pooling {found} (mean or cls alone)", path.display())))
        }
    }
}

/// An encoder with what makes its states sentence embeddings.
#[derive(Debug)]
pub struct SentenceEncoder {
    encoder: BertEncoder,
    tokenizer: Tokenizer,
    settings: SentenceSettings,
}

impl SentenceEncoder {
    /// Loads an encoder's files to be used as `settings` say.
    ///
    /// # Errors
    /// No tokenizer; tensors that do not fit the configuration.
    pub fn load(
        files: EncoderFiles,
        settings: SentenceSettings,
        device: &Device,
        precision: Precision,
    ) -> Result<Self> {
        let encoder = files.load(device, precision)?;
        let Some(tokenizer) = files.tokenizer else {
            return Err(LmError::file(files.weights.path(), "this folder has no `tokenizer.json`"));
        };
        Ok(Self { encoder, tokenizer, settings })
    }

    /// How embeddings are made.
    pub fn settings(&self) -> &SentenceSettings {
        &self.settings
    }

    /// Tokens a text is cut to, special ones included.
    pub fn window(&self) -> usize {
        let window = self.encoder.config().window();
        self.settings.max_tokens.map_or(window, |n| n.min(window))
    }

    /// Tokens of a passage with its prompt, special ones included and nothing cut.
    ///
    /// # Errors
    /// Text that cannot be tokenised.
    pub fn passage_len(&self, text: &str) -> Result<usize> {
        let text = format!("{}{text}", self.settings.passage_prompt);
        Ok(self.tokenizer.encode(&text, true)?.len())
    }

    /// The embedding of a query, of length 1.
    ///
    /// # Errors
    /// Text that cannot be tokenised; failing tensor operations.
    pub fn query(&self, text: &str) -> Result<Vec<f32>> {
        let ids = self.ids(&self.settings.query_prompt, text)?;
        Ok(self.embed(&[ids])?.remove(0))
    }

    /// The ids of a passage with its prompt, cut to the window.
    ///
    /// # Errors
    /// Text that cannot be tokenised.
    pub fn passage_ids(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(&self.settings.passage_prompt, text)
    }

    /// Embeddings of passages, see [`SentenceEncoder::embeddings`].
    ///
    /// # Errors
    /// As [`SentenceEncoder::query`]; [`LmError::Cancelled`].
    pub fn passages(
        &self,
        texts: &[&str],
        wave: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        let ids = texts.iter().map(|text| self.passage_ids(text)).collect::<Result<Vec<_>>>()?;
        self.embeddings(&ids, wave, cancelled)
    }

    /// Embeddings of passages given by their ids, of length 1, `wave` of like length at once. `cancelled` is asked before
    /// every wave.
    ///
    /// # Errors
    /// Failing tensor operations; [`LmError::Cancelled`].
    pub fn embeddings(
        &self,
        ids: &[Vec<u32>],
        wave: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&i| ids[i].len());
        let mut all = vec![Vec::new(); ids.len()];
        for wave in order.chunks(wave.max(1)) {
            if cancelled() {
                return Err(LmError::Cancelled);
            }
            let rows: Vec<_> = wave.iter().map(|&i| ids[i].clone()).collect();
            for (&i, embedding) in wave.iter().zip(self.embed(&rows)?) {
                all[i] = embedding;
            }
        }
        Ok(all)
    }

    fn ids(&self, prompt: &str, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_at_most(&format!("{prompt}{text}"), self.window())
    }

    fn embed(&self, ids: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let vectors = match self.settings.pooling {
            Pooling::Mean => self.encoder.embed(ids)?,
            Pooling::Cls => {
                let (states, _) = self.encoder.forward(ids)?;
                normalised(&states.narrow(1, 0, 1)?.squeeze(1)?.to_dtype(DType::F32)?)?
            }
        };
        Ok(vectors.to_vec2()?)
    }
}

/// Rows of length 1.
fn normalised(rows: &Tensor) -> candle_core::Result<Tensor> {
    rows.broadcast_div(&rows.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(files: &[(&str, serde_json::Value)]) -> Result<SentenceSettings> {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        }
        SentenceSettings::of(folder.path())
    }

    #[test]
    fn a_folder_without_a_word_means_the_mean() {
        let found = settings(&[]).unwrap();
        assert_eq!((found.pooling, found.max_tokens), (Pooling::Mean, None));
        assert!(found.query_prompt.is_empty() && found.passage_prompt.is_empty() && found.files.is_empty());
    }

    #[test]
    fn poolings_prompts_and_limits_are_the_folders() {
        let found = settings(&[
            (
                "1_Pooling/config.json",
                json!({"word_embedding_dimension": 384, "pooling_mode_cls_token": true,
                "pooling_mode_mean_tokens": false, "include_prompt": true}),
            ),
            (
                "config_sentence_transformers.json",
                json!({"prompts": {"query": "Find: ", "document": "Text: "},
                "default_prompt_name": null}),
            ),
            ("sentence_bert_config.json", json!({"max_seq_length": 256, "do_lower_case": false})),
            (
                "modules.json",
                json!([{"type": "sentence_transformers.models.Transformer"},
                {"type": "sentence_transformers.models.Normalize"}]),
            ),
        ])
        .unwrap();
        assert_eq!((found.pooling, found.max_tokens), (Pooling::Cls, Some(256)));
        assert_eq!((found.query_prompt.as_str(), found.passage_prompt.as_str()), ("Find: ", "Text: "));
        assert_eq!(found.files.len(), 4);
        let named = json!({"prompts": {"all": "Say: "}, "default_prompt_name": "all"});
        let found = settings(&[("config_sentence_transformers.json", named)]).unwrap();
        assert_eq!((found.query_prompt.as_str(), found.passage_prompt.as_str()), ("Say: ", "Say: "));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let pooling = json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true});
        let error = settings(&[("1_Pooling/config.json", pooling)]).unwrap_err().to_string();
        assert!(error.contains("pooling_mode_max_tokens"), "{error}");
        assert!(settings(&[("1_Pooling/config.json", json!({}))]).is_err());
        let dense = json!([{"type": "sentence_transformers.models.Dense"}]);
        let error = settings(&[("modules.json", dense)]).unwrap_err().to_string();
        assert!(error.contains("Dense"), "{error}");
    }
}
