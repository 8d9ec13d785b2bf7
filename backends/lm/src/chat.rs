//! Chat templates: a model's own Jinja source, rendered as transformers does.

use crate::{LmError, Result, clock};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The date `strftime_now` gives unless told otherwise: 26 July 2024, which Llama 3's templates write where there
/// is no clock. A prompt that changes from day to day could not be evaluated twice.
const DEFAULT_DATE: i64 = 1_721_952_000;
const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message of the given role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A chat template with the special tokens it may name.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// Syntax errors.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        Self::with_date(source, bos_token, eos_token, DEFAULT_DATE)
    }

    /// Parses a template whose `strftime_now` gives a time of the caller's, in seconds since 1970 (UTC).
    ///
    /// # Errors
    /// Syntax errors.
    pub fn with_date(source: &str, bos_token: &str, eos_token: &str, seconds: i64) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(template_error)?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<(), Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| {
            clock::strftime(&format, seconds).map_err(|m| Error::new(ErrorKind::InvalidOperation, m))
        });
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(template_error)?;
        let (bos, eos) = (bos_token.to_owned(), eos_token.to_owned());
        Ok(Self { environment: Arc::new(environment), source: source.into(), bos, eos })
    }

    /// The prompt's text, ending where the assistant's answer begins if `add_generation_prompt`.
    ///
    /// # Errors
    /// Messages the template refuses (e.g. roles out of order), errors within the template.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(template_error)?;
        let pairs =
            |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let context = context! {
            messages => messages.iter().map(pairs).collect::<Vec<_>>(),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        template.render(context).map_err(template_error)
    }

    /// SHA-256 of the template's source, in hexadecimal: names the template in a result.
    pub fn hash(&self) -> String {
        Sha256::digest(self.source.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn template_error(error: Error) -> LmError {
    LmError::Template(match error.line() {
        Some(line) => format!("{error} (line {line})"),
        None => error.to_string(),
    })
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=..)`: minijinja's own filter escapes HTML instead.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let text = match indent {
        Some(n) => {
            let spaces = vec![b' '; n];
            let mut out = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
                .map_err(failed)?;
            String::from_utf8_lossy(&out).into_owned()
        }
        None => {
            let mut out = Vec::new();
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?;
            String::from_utf8_lossy(&out).into_owned()
        }
    };
    Ok(Value::from_safe_string(text))
}

/// JSON on one line with Python's blanks after commas and colons.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String> {
        let messages = [Message::new("user", " Is 1 < 2? "), Message::new("assistant", "yes")];
        ChatTemplate::new(source, "<s>", "</s>")?.render(&messages, true)
    }

    #[test]
    fn python_methods_and_loop_controls_work() {
        let source = "{{ bos_token }}{% for m in messages %}{% if not loop.first %}{% break %}{% endif %}\
                      {{ m.content.strip() }}{% endfor %}{{ eos_token if add_generation_prompt }}";
        assert_eq!(render(source).unwrap(), "<s>Is 1 < 2?</s>");
    }

    #[test]
    fn blocks_leave_no_blank_lines() {
        assert_eq!(
            render("{% for m in messages %}\n  {% if true %}\n{{ m.role }};\n  {% endif %}\n{% endfor %}")
                .unwrap(),
            "user;\nassistant;\n"
        );
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(
            render("{{ messages[0] | tojson }}").unwrap(),
            r#"{"role": "user", "content": " Is 1 < 2? "}"#
        );
    }

    #[test]
    fn a_template_can_refuse_and_tell_the_date() {
        let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
        assert!(render("{% for %}").is_err());
    }
}
