//! The decoder methods with a decoder of a few thousand parameters.

mod full;
mod selfextend;
#[path = "../../../e2llm/tests/tiny/mod.rs"]
pub(crate) mod tiny;
mod truncate;
mod tuned;
mod yarn;

use crate::decoder::Decoder;
use crate::register;
use e2llm_backend::{
    Backend, BackendError, BackendSpec, BuildContext, CancelFlag, Choice, Generation, ModelFiles, Options,
    Prompt, Registry, Request, Response, Usage,
};
use e2llm_lm::{DecoderModel, LlamaConfig, Precision};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

pub(crate) fn folder(window: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::decoder(folder.path(), window);
    folder
}

/// A decoder of one layer, whose keys and values depend on nothing but their own tokens.
pub(crate) fn shallow(window: usize) -> TempDir {
    let folder = folder(window);
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["num_hidden_layers"] = 1.into();
    tiny::write_json(folder.path(), "config.json", &config);
    tiny::weights(folder.path(), &LlamaConfig::from_file(&path).unwrap().tensors());
    folder
}

pub(crate) fn decoder(folder: &Path, window: usize) -> Decoder {
    let model = DecoderModel::load(folder, &candle_core::Device::Cpu, Precision::F32).unwrap();
    let tokenizer = Arc::new(model.tokenizer.clone());
    Decoder { tokenizer, model, window, cancel: CancelFlag::default() }
}

pub(crate) fn build(
    spec: BackendSpec,
    folder: &Path,
    options: &[(&str, &str)],
) -> Result<Box<dyn Backend>, BackendError> {
    let given: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let context = BuildContext {
        model: ModelFiles { name: "tiny".into(), decoder: Some(folder.to_owned()), ..ModelFiles::default() },
        options: Options::checked(spec.options, &given)?,
        ..BuildContext::default()
    };
    (spec.build)(&context)
}

pub(crate) fn prompt(context: &str, chat: bool) -> Prompt {
    Prompt {
        context: context.into(),
        instruction: "What?".into(),
        template: "Read: {context}\nQ: {instruction}".into(),
        chat,
        ..Prompt::default()
    }
}

pub(crate) fn request(prompt: Prompt) -> Request {
    let generation = Generation { max_new_tokens: 8, ..Generation::default() };
    Request { id: "1".into(), document: "d".into(), prompt, generation }
}

/// The backend's answer to one request.
pub(crate) fn answer(backend: &mut dyn Backend, request: &Request) -> Result<Response, BackendError> {
    backend.generate(std::slice::from_ref(request)).remove(0)
}

/// Fails unless a queue, whose texts are read ahead on other threads, is answered as each of its requests is alone: questions about two
/// documents in turns, one about none, and one that does not fit.
#[track_caller]
pub(crate) fn assert_queue_is_each_alone(make: impl Fn() -> Box<dyn Backend>, context: &str) {
    let other = context.replace('e', "o");
    let about = |context: &str, instruction: String| request(Prompt { instruction, ..prompt(context, true) });
    let queue: Vec<Request> = (0..9)
        .map(|i| match i {
            3 => about("", "Why?".into()),
            5 => about(context, noise(2000)),
            _ if i % 3 == 1 => about(&other, format!("What {i}?")),
            _ => about(context, format!("What {i}?")),
        })
        .collect();
    let told = |answer: Result<Response, BackendError>| match answer {
        Ok(Response { text, finish, usage }) => {
            let usage = Usage { time_to_first_token: 0.0, decode_time: 0.0, peak_memory: None, ..usage };
            Ok(format!("{text} {finish:?} {usage:?}"))
        }
        Err(error) => Err(error.kind),
    };
    let together: Vec<_> = make().generate_queue(&queue, 1).into_iter().map(told).collect();
    let mut alone = make();
    for (i, (request, told_together)) in queue.iter().zip(together).enumerate() {
        assert_eq!(told_together, told(answer(&mut *alone, request)), "request {i}");
        assert_eq!(told_together.is_err(), i == 5, "request {i}");
    }
}

/// How likely the backend finds a few answers, some of several tokens.
pub(crate) fn scores(backend: &mut dyn Backend, request: &Request) -> Choice {
    let choices = ["A", "yes", " no!"].map(str::to_owned);
    backend.choose(request, &choices).unwrap()
}

/// Fails unless both find the same answers equally likely and write the same one.
#[track_caller]
pub(crate) fn assert_same(a: &mut dyn Backend, b: &mut dyn Backend, request: &Request) {
    let difference = difference(&scores(a, request), &scores(b, request));
    assert!(difference < 1e-5, "log-likelihoods differ by {difference}");
    assert_eq!(answer(a, request).unwrap().text, answer(b, request).unwrap().text);
}

/// Greatest difference of log-likelihoods.
pub(crate) fn difference(a: &Choice, b: &Choice) -> f64 {
    let pairs = a.log_likelihoods.iter().zip(&b.log_likelihoods);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Text without a pattern.
pub(crate) fn noise(n: usize) -> String {
    let letter = |i: usize| char::from(b'a' + ((i * i * 31 + i * 17 + i / 5) % 26) as u8);
    (0..n).map(|i| if i % 7 == 6 { ' ' } else { letter(i) }).collect()
}

#[test]
fn registers_all_methods() {
    let mut registry = Registry::default();
    register(&mut registry);
    let names: Vec<_> = registry.iter().map(|s| s.name).collect();
    assert_eq!(
        names,
        [
            "cepe",
            "echo",
            "full",
            "lloco",
            "longllmlingua",
            "longlora",
            "no-context",
            "rag",
            "selfextend",
            "snapkv",
            "streaming",
            "truncate",
            "yarn"
        ]
    );
}
