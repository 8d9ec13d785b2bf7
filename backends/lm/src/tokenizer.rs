//! Text to token ids and back.

use crate::chat::ChatTemplate;
use crate::config::{Ids, read_json};
use crate::{Gguf, LmError, Result, gguf_tokenizer};
use serde::Deserialize;
use std::path::Path;

/// A tokenizer with the model's special tokens and chat template.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens that stand before and after a single text.
    affixes: (Vec<u32>, Vec<u32>),
    chat: Option<ChatTemplate>,
    bos_id: Option<u32>,
    eos_ids: Vec<u32>,
}

/// What is read of `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Default, Deserialize)]
struct Settings {
    #[serde(default)]
    bos_token: Option<Token>,
    #[serde(default)]
    eos_token: Option<Token>,
    #[serde(default)]
    chat_template: Option<Template>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Full { content: String },
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Text(content) | Self::Full { content } => content,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Template {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    eos_token_id: Ids,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; its own truncation and padding are switched off.
    ///
    /// # Errors
    /// Unreadable or damaged files.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| LmError::io(path, e))?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| LmError::file(path, format!("no tokenizer: {e}")))?;
        Self::new(inner)
    }

    /// Reads the tokenizer of an HF folder: `tokenizer.json`, and where they are there the chat template
    /// (`chat_template.jinja` or in `tokenizer_config.json`) and the ids that end an answer
    /// (`generation_config.json`, else `eos_token`).
    ///
    /// # Errors
    /// Unreadable or damaged files.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let mut tokenizer = Self::from_file(&folder.join("tokenizer.json"))?;
        let settings: Settings = read_optional(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let token = |t: &Option<Token>| t.as_ref().map(|t| t.text().to_owned());
        let (bos, eos) = (token(&settings.bos_token), token(&settings.eos_token));
        tokenizer.bos_id = bos.as_deref().and_then(|t| tokenizer.inner.token_to_id(t));
        let generation: Option<GenerationConfig> = read_optional(&folder.join("generation_config.json"))?;
        tokenizer.eos_ids = generation.map(|g| g.eos_token_id.into_vec()).unwrap_or_default();
        if tokenizer.eos_ids.is_empty() {
            tokenizer.eos_ids =
                eos.as_deref().and_then(|t| tokenizer.inner.token_to_id(t)).into_iter().collect();
        }
        let jinja = folder.join("chat_template.jinja");
        let source = if jinja.is_file() {
            Some(std::fs::read_to_string(&jinja).map_err(|e| LmError::io(&jinja, e))?)
        } else {
            settings.chat_template.and_then(|t| match t {
                Template::One(source) => Some(source),
                Template::Several(all) => all.into_iter().find(|t| t.name == "default").map(|t| t.template),
            })
        };
        if let Some(source) = source {
            let (bos, eos) = (bos.unwrap_or_default(), eos.unwrap_or_default());
            tokenizer.chat = Some(ChatTemplate::new(&source, &bos, &eos)?);
        }
        Ok(tokenizer)
    }

    /// Builds the tokenizer that a GGUF file describes, with its chat template.
    ///
    /// # Errors
    /// Tokenizers of another kind than byte-level BPE, unknown splitting rules, damaged lists.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let mut tokenizer = Self::new(gguf_tokenizer::build(gguf)?)?;
        let id = |key: &str| -> Result<Option<u32>> {
            let id = gguf.integer_or(&format!("tokenizer.ggml.{key}_token_id"), usize::MAX)?;
            Ok(u32::try_from(id).ok())
        };
        tokenizer.bos_id = id("bos")?;
        tokenizer.eos_ids = id("eos")?.into_iter().chain(id("eot")?).collect();
        tokenizer.eos_ids.dedup();
        if gguf.has_key("tokenizer.chat_template") {
            let text =
                |id: Option<u32>| id.and_then(|id| tokenizer.inner.id_to_token(id)).unwrap_or_default();
            let (bos, eos) = (text(tokenizer.bos_id), text(tokenizer.eos_ids.first().copied()));
            let source = gguf.text("tokenizer.chat_template")?;
            tokenizer.chat = Some(ChatTemplate::new(source, &bos, &eos)?);
        }
        Ok(tokenizer)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self> {
        let failed = |e: tokenizers::Error| LmError::Tokenizer(e.to_string());
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let mut tokenizer =
            Self { inner, affixes: Default::default(), chat: None, bos_id: None, eos_ids: Vec::new() };
        let (bare, full) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
        let start = full.windows(bare.len().max(1)).position(|w| w == bare).unwrap_or(0);
        let end = full.len().min(start + bare.len());
        tokenizer.affixes = (full[..start].to_vec(), full[end..].to_vec());
        Ok(tokenizer)
    }

    /// Token ids of a text, with the special tokens that stand around a text where `add_special`.
    ///
    /// Special tokens written in the text (`<|im_start|>`) are read as such.
    ///
    /// # Errors
    /// Texts the tokenizer cannot represent.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding =
            self.inner.encode_fast(text, add_special).map_err(|e| LmError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text with the byte range each came from; no special tokens are added.
    ///
    /// # Errors
    /// Texts the tokenizer cannot represent.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(u32, std::ops::Range<usize>)>> {
        let encoding = self.inner.encode(text, false).map_err(|e| LmError::Tokenizer(e.to_string()))?;
        let ranges = encoding.get_offsets().iter().map(|(a, b)| *a..*b);
        Ok(encoding.get_ids().iter().copied().zip(ranges).collect())
    }

    /// Token ids of at most `max` tokens, the special ones around them included: the text's end is cut.
    ///
    /// # Errors
    /// Texts the tokenizer cannot represent.
    pub fn encode_at_most(&self, text: &str, max: usize) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, false)?;
        ids.truncate(max.saturating_sub(self.affixes.0.len() + self.affixes.1.len()));
        Ok(self.wrap(&ids))
    }

    /// Special tokens that stand before and after a single text, e.g. `[CLS]` and `[SEP]`.
    pub fn affixes(&self) -> (&[u32], &[u32]) {
        (&self.affixes.0, &self.affixes.1)
    }

    /// Puts the special tokens around the ids of a text.
    pub fn wrap(&self, ids: &[u32]) -> Vec<u32> {
        [&self.affixes.0, ids, &self.affixes.1].concat()
    }

    /// Text of token ids, special tokens left out where `skip_special`.
    ///
    /// # Errors
    /// Any of the tokenizer's decoder.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| LmError::Tokenizer(e.to_string()))
    }

    /// The id of a token by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of a token id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Writes it as a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.inner.to_string(true).map_err(|e| LmError::Tokenizer(e.to_string()))?;
        std::fs::write(path, text).map_err(|e| LmError::io(path, e))
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The chat template, where the model has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// The token that begins a text, where the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The tokens that end an answer.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }
}

/// Reads a JSON file that need not be there.
fn read_optional<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}
