//! Decoders that were trained: `longlora`, and `yarn` and others on a trained folder.

use super::{answer, assert_same, build, difference, folder, noise, prompt, request, scores};
use crate::{full, longlora, truncate, yarn};
use candle_core::{DType, Device, Tensor};
use e2llm_backend::{Backend, BackendError, BackendSpec, BuildContext, ErrorKind, ModelFiles, Options};
use e2llm_lm::{DecoderFiles, LoraConfig, PeftAdapter, Stretch, TunedDecoder};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes a trained decoder whose LoRA changes nothing, and whose embeddings are multiplied by `factor`.
fn tuned(base: &Path, method: &str, scaling: &str, factor: f64) -> tempfile::TempDir {
    let files = DecoderFiles::open(base).unwrap();
    let config = LoraConfig { r: 2, lora_alpha: 4.0, target_modules: vec!["q_proj".into()] };
    let modules = if method == "longlora" { files.config.embeddings_and_norms() } else { Vec::new() };
    let mut tensors = BTreeMap::new();
    for spec in PeftAdapter::specs(&files.config, &config, &modules) {
        let tensor = if spec.name.contains("lora") {
            Tensor::zeros(spec.shape, DType::F32, &Device::Cpu).unwrap()
        } else {
            let own = files.weights.load(&spec.name, DType::F32, &Device::Cpu).unwrap();
            if spec.name.contains("embed") { (own * factor).unwrap() } else { own }
        };
        tensors.insert(spec.name, tensor);
    }
    let adapter = PeftAdapter { config, modules_to_save: modules, tensors };
    let rope = Some(Stretch { scaling: scaling.into(), factor: 3.0, ..Stretch::default() });
    let folder = tempfile::tempdir().unwrap();
    TunedDecoder { method: method.into(), rope, adapter }.write(folder.path(), "base").unwrap();
    folder
}

fn on(
    spec: BackendSpec,
    base: &Path,
    tuned: &Path,
    options: &[(&str, &str)],
) -> Result<Box<dyn Backend>, BackendError> {
    let given: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let model = ModelFiles {
        name: "tuned".into(),
        checkpoint: Some(tuned.to_owned()),
        decoder: Some(base.to_owned()),
        window: Some(96),
        ..ModelFiles::default()
    };
    let options = Options::checked(spec.options, &given)?;
    (spec.build)(&BuildContext { model, options, ..BuildContext::default() })
}

#[test]
fn longlora_reads_in_full_with_what_was_trained() {
    let folder = folder(96);
    let base = folder.path();
    let long = request(prompt(&noise(200), true));
    let same = tuned(base, "longlora", "linear", 1.0);
    let mut backend = on(longlora::spec(), base, same.path(), &[]).unwrap();
    let info = backend.info();
    assert_eq!(info.window, Some(3 * 96));
    // 2 layers of q (32 to 32) of rank 2, 259 embeddings, 5 norms of 32.
    assert_eq!(info.trained_parameters, 2 * 2 * 2 * 32 + 259 * 32 + 5 * 32);
    let mut linear = build(yarn::spec(), base, &[("scaling", "linear"), ("factor", "3")]).unwrap();
    assert_same(&mut *backend, &mut *linear, &long);
    let usage = answer(&mut *backend, &long).unwrap().usage;
    assert_eq!((usage.context_seen, usage.context_dropped), (200, 0));
    let error = answer(&mut *backend, &request(prompt(&noise(400), true))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContextTooLong);

    let other = tuned(base, "longlora", "linear", 1.5);
    let mut other = on(longlora::spec(), base, other.path(), &[]).unwrap();
    assert!(difference(&scores(&mut *backend, &long), &scores(&mut *other, &long)) > 1e-4);
    assert_ne!(backend.info().fingerprint, other.info().fingerprint);
}

#[test]
fn longlora_takes_no_other_model() {
    let folder = folder(96);
    let error = build(longlora::spec(), folder.path(), &[]).err().unwrap();
    assert!(error.message.contains("configs/longlora.toml"), "{error}");
    let other = tuned(folder.path(), "sft-truncate", "yarn", 1.0);
    let error = on(longlora::spec(), folder.path(), other.path(), &[]).err().unwrap();
    assert!(error.message.contains("sft-truncate"), "{error}");
}

#[test]
fn yarn_takes_the_scaling_of_a_trained_decoder() {
    let folder = folder(96);
    let base = folder.path();
    let long = request(prompt(&noise(200), true));
    let trained = tuned(base, "sft-truncate", "yarn", 1.0);
    let mut fine_tuned = on(yarn::spec(), base, trained.path(), &[]).unwrap();
    let mut free = build(yarn::spec(), base, &[("factor", "3")]).unwrap();
    assert_eq!(fine_tuned.info().window, Some(3 * 96));
    assert_same(&mut *fine_tuned, &mut *free, &long);
    let error = on(yarn::spec(), base, trained.path(), &[("factor", "2")]).err().unwrap();
    assert!(error.message.contains("factor"), "{error}");

    // It is a model for every method, and no adapter of another one.
    let mut whole = on(full::spec(), base, trained.path(), &[]).unwrap();
    assert_same(&mut *whole, &mut *free, &long);
    assert_eq!(on(truncate::spec(), base, trained.path(), &[]).unwrap().info().window, Some(3 * 96));
    let lora = [("lora", trained.path().to_str().unwrap())];
    for built in [on(full::spec(), base, trained.path(), &lora), build(full::spec(), base, &lora)] {
        assert!(built.err().unwrap().message.contains("lora"));
    }
    let error = build(full::spec(), base, &[("lora", "/no/such/folder")]).err().unwrap();
    assert_eq!(error.kind, ErrorKind::BadRequest);
    assert_eq!(error.message, "backend option `lora`: no folder /no/such/folder");
}
