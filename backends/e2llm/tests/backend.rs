//! The backend with models of a few thousand parameters.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails its test")]

mod tiny;

use e2llm::checkpoint::{BaseModel, BaseModels, save};
use e2llm::{AdapterKind, E2llmConfig, PromptIds, PromptStyle, backend, initial_tensors};
use e2llm_backend::{
    Backend, BackendError, BuildContext, CancelFlag, ErrorKind, Generation, ModelFiles, Options, Prompt,
    Request, Response, Usage,
};
use e2llm_lm::{BertConfig, LlamaConfig, LoraConfig, TensorSpec, Tokenizer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const ENCODER_WINDOW: usize = 64;
const DECODER_WINDOW: usize = 256;

struct Models {
    _folder: TempDir,
    encoder: PathBuf,
    decoder: PathBuf,
    checkpoint: PathBuf,
}

fn models() -> Models {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let models = Models {
        encoder: at("encoder"),
        decoder: at("decoder"),
        checkpoint: at("checkpoint"),
        _folder: folder,
    };
    tiny::encoder(&models.encoder, ENCODER_WINDOW);
    tiny::decoder(&models.decoder, DECODER_WINDOW);
    models
}

fn context(models: &Models, checkpoint: bool, options: &[(&str, &str)]) -> BuildContext {
    let given: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    BuildContext {
        model: ModelFiles {
            name: "tiny".into(),
            checkpoint: checkpoint.then(|| models.checkpoint.clone()),
            encoder: Some(models.encoder.clone()),
            decoder: Some(models.decoder.clone()),
            window: None,
        },
        options: Options::checked(backend::spec().options, &given).unwrap(),
        ..BuildContext::default()
    }
}

fn untrained(models: &Models, options: &[(&str, &str)]) -> backend::E2llmBackend {
    backend::E2llmBackend::new(&context(models, false, options)).unwrap()
}

fn request(context: &str, instruction: &str) -> Request {
    Request {
        id: "r".into(),
        document: "d".into(),
        prompt: Prompt {
            context: context.into(),
            instruction: instruction.into(),
            template: "{context}\n{instruction}".into(),
            chat: true,
            ..Prompt::default()
        },
        generation: Generation { max_new_tokens: 4, ..Generation::default() },
    }
}

fn answer(backend: &mut impl Backend, request: &Request) -> Result<Response, BackendError> {
    backend.generate(std::slice::from_ref(request)).remove(0)
}

fn scores(backend: &mut impl Backend, request: &Request) -> Vec<f64> {
    let choices = ["A".to_owned(), "no".to_owned(), " é".to_owned()];
    backend.choose(request, &choices).unwrap().log_likelihoods
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

/// Sentences of different lengths, so that chunks and waves differ.
fn text(sentences: usize) -> String {
    (0..sentences).map(|i| format!("Sentence {i}{} ends.", " goes on".repeat(i % 7))).collect()
}

#[test]
fn a_context_becomes_soft_tokens_and_nothing_is_dropped() {
    let models = models();
    let mut backend = untrained(&models, &[("adapter", "mean"), ("soft_tokens_per_chunk", "3")]);
    let request = request(&text(20), "What is it?");
    let usage = answer(&mut backend, &request).unwrap().usage;
    let bytes = request.prompt.context.len() as u64;
    assert_eq!((usage.context_tokens, usage.context_compressed), (bytes, bytes));
    assert_eq!((usage.context_seen, usage.context_dropped, usage.truncation), (0, 0, None));
    // 512 characters do not fit 64 tokens of the encoder (62 and two special ones): each chunk is cut again.
    assert!(usage.soft_tokens.is_multiple_of(3) && usage.soft_tokens / 3 >= bytes.div_ceil(62));
    let around =
        "<s>user:Given the contexts:\n\nPlease follow the instruction:\nWhat is it?</s><s>assistant:";
    let words = around.replace("<s>", "1").replace("</s>", "2").len() as u64;
    assert_eq!(usage.prompt_tokens, usage.soft_tokens + words);
    assert!(usage.generated_tokens <= 4 && usage.time_to_first_token > 0.0);

    let info = backend.info();
    assert!(info.warnings[0].contains("UNTRAINED"), "{:?}", info.warnings);
    assert_eq!((info.trained_parameters, info.window), (0, Some(DECODER_WINDOW as u64)));
    assert_eq!((info.dtype.as_str(), info.truncation.as_str()), ("f32", "none"));
}

#[test]
fn many_questions_of_one_document_encode_it_once() {
    let models = models();
    let mut backend = untrained(&models, &[]);
    let (first, second) = (text(9), text(10));
    for question in ["a?", "b?", "c?"] {
        answer(&mut backend, &request(&first, question)).unwrap();
    }
    assert_eq!(backend.contexts_encoded(), 1);
    let fresh = scores(&mut untrained(&models, &[]), &request(&first, "d?"));
    assert_eq!(scores(&mut backend, &request(&first, "d?")), fresh, "cached and fresh differ");
    answer(&mut backend, &request(&second, "a?")).unwrap();
    answer(&mut backend, &request(&first, "a?")).unwrap();
    assert_eq!(backend.contexts_encoded(), 2);
    let mut forgetful = untrained(&models, &[("cache_mib", "0")]);
    for context in [&first, &first, &second, &first] {
        answer(&mut forgetful, &request(context, "a?")).unwrap();
    }
    assert_eq!(forgetful.contexts_encoded(), 3, "the last context is kept even so");
}

#[test]
fn answers_depend_on_the_context_but_not_on_the_waves() {
    let models = models();
    for adapter in ["vpma", "cls", "mean"] {
        let options = |batch| [("adapter", adapter), ("output_scale", "true"), ("encode_batch", batch)];
        let whole = scores(&mut untrained(&models, &options("64")), &request(&text(12), "?"));
        let single = scores(&mut untrained(&models, &options("1")), &request(&text(12), "?"));
        assert!(close(&whole, &single), "{adapter}: {whole:?} {single:?}");
        let other = scores(&mut untrained(&models, &options("64")), &request("Ganz anders, 日本語!", "?"));
        assert!(!close(&whole, &other), "{adapter}: {whole:?} {other:?}");
    }
}

#[test]
fn a_prompt_without_context_works_and_an_empty_one_does_not() {
    let models = models();
    let mut backend = untrained(&models, &[]);
    let usage = answer(&mut backend, &request("", "Name a colour.")).unwrap().usage;
    assert_eq!((usage.context_tokens, usage.soft_tokens), (0, 0));
    assert_eq!(usage.prompt_tokens, "1user:Name a colour.21assistant:".len() as u64);
    assert_eq!(answer(&mut backend, &request("", "")).unwrap_err().kind, ErrorKind::BadRequest);
    assert!(answer(&mut backend, &request("x", "one character")).is_ok());
}

#[test]
fn too_many_soft_tokens_are_a_clear_error_and_fail_alone() {
    let models = models();
    let mut backend = untrained(&models, &[("adapter", "mean"), ("soft_tokens_per_chunk", "32")]);
    let requests = [request(&text(200), "?"), request("short.", "?")];
    let results = backend.generate(&requests);
    let error = results[0].as_ref().unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContextTooLong);
    assert!(error.message.contains("soft tokens") && error.message.contains("256"), "{error}");
    assert!(results[1].is_ok());
    assert_eq!(backend.contexts_encoded(), 1, "what cannot be answered is not encoded");
    let mut greedy = request("short.", "?");
    greedy.generation.max_new_tokens = 1000;
    assert_eq!(answer(&mut backend, &greedy).unwrap_err().kind, ErrorKind::ContextTooLong);
}

#[test]
fn a_batch_is_answered_as_its_requests_are() {
    let models = models();
    let options = [("adapter", "mean"), ("soft_tokens_per_chunk", "3")];
    let mut requests: Vec<_> = (0..5).map(|i| request(&text(1 + 3 * i), &format!("Question {i}?"))).collect();
    for (i, request) in requests.iter_mut().enumerate() {
        request.generation.max_new_tokens = 3 + 9 * i;
        request.generation.temperature = if i == 2 { 1.0 } else { 0.0 };
    }
    requests[3].prompt.context = String::new();
    requests[1].prompt.instruction = String::new();
    requests[1].prompt.context = String::new();
    let mut alone = untrained(&models, &options);
    let together = untrained(&models, &options).generate(&requests);
    assert_eq!(together.len(), 5);
    for (i, (batched, request)) in together.into_iter().zip(&requests).enumerate() {
        match (batched, answer(&mut alone, request)) {
            (Ok(a), Ok(b)) => {
                assert_eq!((&a.text, a.finish), (&b.text, b.finish), "{i}");
                assert!(a.usage.time_to_first_token > 0.0 && a.usage.decode_time > 0.0);
                let without_times =
                    |u: &Usage| Usage { time_to_first_token: 0.0, decode_time: 0.0, ..u.clone() };
                assert_eq!(without_times(&a.usage), without_times(&b.usage), "{i}");
            }
            (Err(a), Err(b)) => assert_eq!((i, a), (1, b)),
            (a, b) => panic!("{i}: {a:?} {b:?}"),
        }
    }
}

#[test]
fn cancelling_ends_requests() {
    let models = models();
    let cancel = CancelFlag::default();
    let context = BuildContext { cancel: cancel.clone(), ..context(&models, false, &[]) };
    let mut backend = backend::E2llmBackend::new(&context).unwrap();
    cancel.cancel();
    assert_eq!(answer(&mut backend, &request("a", "b")).unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(backend.choose(&request("a", "b"), &["A".into()]).unwrap_err().kind, ErrorKind::Cancelled);
}

#[test]
fn the_prompt_is_cut_out_of_the_chat_template() {
    let models = models();
    let tokenizer = Tokenizer::from_folder(&models.decoder).unwrap();
    let config = E2llmConfig::default();
    let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
    let chat = PromptStyle { template: tokenizer.chat(), answer_prefix: "Answer: " };
    // The mark's own text in the instruction must not confuse the cut.
    let ids = PromptIds::with_context(&config, &tokenizer, "Why <soft-tokens>?", chat).unwrap();
    assert_eq!(text(&ids.prefix), "<s>user:Given the contexts:\n");
    let suffix = "\nPlease follow the instruction:\nWhy <soft-tokens>?</s><s>assistant:Answer: ";
    assert_eq!(text(&ids.suffix), suffix);
    let raw = PromptStyle { template: None, answer_prefix: "" };
    let ids = PromptIds::with_context(&config, &tokenizer, "Why?", raw).unwrap();
    assert_eq!(text(&ids.prefix), "<s>Given the contexts:\n");
    assert_eq!(text(&ids.suffix), "\nPlease follow the instruction:\nWhy?");
    let ids = PromptIds::without_context(&tokenizer, "Why?", chat).unwrap();
    assert_eq!((ids.prefix.len(), text(&ids.suffix)), (0, "<s>user:Why?</s><s>assistant:Answer: ".into()));
}

fn config() -> E2llmConfig {
    E2llmConfig {
        adapter: AdapterKind::Mean,
        soft_tokens_per_chunk: 2,
        output_scale: true,
        decoder_lora: LoraConfig {
            r: 2,
            lora_alpha: 4.0,
            target_modules: vec!["q_proj".into(), "down_proj".into()],
        },
        ..E2llmConfig::default()
    }
}

fn specs(models: &Models, config: &E2llmConfig) -> Vec<TensorSpec> {
    let encoder = BertConfig::from_file(&models.encoder.join("config.json")).unwrap();
    let decoder = LlamaConfig::from_file(&models.decoder.join("config.json")).unwrap();
    let mut specs = encoder.lora_tensors(&config.encoder_lora, "encoder.");
    specs.extend(decoder.lora_tensors(&config.decoder_lora, "decoder."));
    specs.extend(e2llm::adapter::Adapter::specs(config, encoder.hidden_size, decoder.hidden_size));
    specs.push(TensorSpec::new("output_scale", vec![1]));
    specs
}

fn trained(models: &Models, base: &BaseModels) {
    let tensors = initial_tensors(&specs(models, &config()), 5).unwrap();
    save(&models.checkpoint, &config(), &tensors, base, None).unwrap();
}

fn build(models: &Models, options: &[(&str, &str)]) -> Result<backend::E2llmBackend, BackendError> {
    backend::E2llmBackend::new(&context(models, true, options))
}

#[test]
fn a_saved_checkpoint_is_loaded_as_trained() {
    let models = models();
    let base = |sha256: &str| Some(BaseModel { source: "tiny".into(), sha256: sha256.into() });
    trained(&models, &BaseModels { encoder: base("another"), decoder: None });
    let mut backend = build(&models, &[]).unwrap();
    assert_eq!(backend.info().warnings.len(), 1);
    assert!(backend.info().warnings[0].contains("encoder"), "{:?}", backend.info().warnings);
    let parameters: usize = specs(&models, &config()).iter().map(TensorSpec::len).sum();
    assert_eq!(backend.info().trained_parameters, parameters as u64);
    let usage = answer(&mut backend, &request("Some text.", "?")).unwrap().usage;
    assert_eq!(usage.soft_tokens, 2);
    let error = build(&models, &[("adapter", "cls")]).err().unwrap();
    assert!(error.message.contains("adapter") && error.message.contains("its own settings"), "{error}");
    let leftovers = |e: &std::fs::DirEntry| e.path().extension().is_some_and(|x| x == "partial");
    assert!(!std::fs::read_dir(&models.checkpoint).unwrap().any(|e| leftovers(&e.unwrap())));
}

#[test]
fn fingerprints_tell_models_apart() {
    let models = models();
    trained(&models, &BaseModels::default());
    let of = |b: backend::E2llmBackend| b.info().fingerprint.clone();
    let seeded = |seed| {
        of(backend::E2llmBackend::new(&BuildContext { seed, ..context(&models, false, &[]) }).unwrap())
    };
    let all = [
        seeded(0),
        seeded(1),
        of(build(&models, &[]).unwrap()),
        of(untrained(&models, &[("adapter", "mean")])),
    ];
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    assert_eq!(all[0], seeded(0));
    assert_eq!(all[2], of(build(&models, &[("encode_batch", "3")]).unwrap()), "waves do not change answers");
}

#[test]
fn settings_without_trained_tensors_are_an_untrained_model() {
    let models = models();
    trained(&models, &BaseModels::default());
    std::fs::remove_file(models.checkpoint.join("e2llm.safetensors")).unwrap();
    let text = r#"{"adapter": "mean", "soft_tokens_per_chunk": 5, "flavour": 1}"#;
    std::fs::write(models.checkpoint.join("e2llm_config.json"), text).unwrap();
    let mut backend = build(&models, &[]).unwrap();
    let warnings = backend.info().warnings.join("\n");
    assert!(warnings.contains("UNTRAINED") && warnings.contains("`flavour`"), "{warnings}");
    assert_eq!(answer(&mut backend, &request("Some text.", "?")).unwrap().usage.soft_tokens, 5);
}

fn error_of(models: &Models) -> String {
    build(models, &[]).err().unwrap().message
}

#[test]
fn all_that_is_wrong_with_a_checkpoint_is_listed_at_once() {
    let models = models();
    let mut specs = specs(&models, &config());
    specs.retain(|s| s.name != "adapter.mlp.0.bias");
    let mut tensors = initial_tensors(&specs, 0).unwrap();
    let scale = tensors["output_scale"].clone();
    tensors.insert("output_scale".into(), scale.reshape((1, 1)).unwrap());
    tensors.insert("adapter.S".into(), scale.clone());
    save(&models.checkpoint, &config(), &tensors, &BaseModels::default(), None).unwrap();
    let mut base =
        candle_core::safetensors::load(models.encoder.join("model.safetensors"), scale.device()).unwrap();
    base.remove("embeddings.LayerNorm.bias").unwrap();
    candle_core::safetensors::save(&base, models.encoder.join("model.safetensors")).unwrap();
    let error = error_of(&models);
    for name in ["adapter.mlp.0.bias", "output_scale", "[1, 1]", "adapter.S", "embeddings.LayerNorm.bias"] {
        assert!(error.contains(name), "`{name}` is not in: {error}");
    }
}

#[test]
fn damaged_checkpoints_are_clear_errors() {
    let models = models();
    assert!(error_of(&models).contains("checkpoint"), "no folder");
    trained(&models, &BaseModels::default());
    let cut = |name: &str, path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        // The last byte of the settings is a line feed, which nobody misses.
        for n in [0, 7, 40, bytes.len() / 2, bytes.len() - 2] {
            std::fs::write(path, &bytes[..n]).unwrap();
            let error = error_of(&models);
            assert!(error.contains(name), "{n} bytes of {name}: {error}");
        }
        std::fs::write(path, &bytes).unwrap();
        assert!(build(&models, &[]).is_ok());
    };
    cut("e2llm.safetensors", &models.checkpoint.join("e2llm.safetensors"));
    cut("e2llm_config.json", &models.checkpoint.join("e2llm_config.json"));
    std::fs::remove_file(models.checkpoint.join("e2llm_config.json")).unwrap();
    assert!(error_of(&models).contains("e2llm_config.json"), "trained tensors without settings");
    let nothing = ModelFiles { checkpoint: Some(models.checkpoint.clone()), ..ModelFiles::default() };
    let context = BuildContext { model: nothing, ..context(&models, true, &[]) };
    let error = backend::E2llmBackend::new(&context).err().unwrap().message;
    assert!(error.contains("encoder"), "{error}");
}
