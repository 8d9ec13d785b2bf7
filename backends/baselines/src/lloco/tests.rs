use super::{LlocoConfig, LlocoModel, METHOD, spec};
use crate::tests::{answer, assert_queue_is_each_alone, difference, noise, prompt, request, scores, tiny};
use candle_core::{DType, Device, Tensor, Var};
use e2llm::checkpoint::{BaseModels, save_named};
use e2llm_backend::{Backend, BuildContext, ErrorKind, ModelFiles, Options, Prompt};
use e2llm_lm::{DecoderFiles, Llama, LlamaConfig, LoraConfig, Precision, uniform};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

const WINDOW: usize = 300;

fn models() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::decoder(&folder.path().join("decoder"), WINDOW);
    folder
}

fn config() -> LlocoConfig {
    let lora =
        || LoraConfig { r: 2, lora_alpha: 4.0, target_modules: vec!["q_proj".into(), "v_proj".into()] };
    LlocoConfig {
        segment_tokens: 40,
        summary_tokens: 5,
        bptt_segments: 2,
        compressor_lora: lora(),
        decoder_lora: lora(),
    }
}

/// Values that change the decoder, as training would.
fn values(root: &Path) -> BTreeMap<String, Tensor> {
    let decoder = LlamaConfig::from_file(&root.join("decoder/config.json")).unwrap();
    let value = |s: &e2llm_lm::TensorSpec| {
        let v = uniform(5, &s.name, s.len(), 0.3);
        (s.name.clone(), Tensor::from_vec(v, s.shape.clone(), &Device::Cpu).unwrap())
    };
    config().tensors(&decoder).iter().map(value).collect()
}

fn write(root: &Path) {
    let text = Ok(serde_json::to_string(&config()).unwrap());
    save_named(&root.join("trained"), METHOD, text, &values(root), &BaseModels::default(), None).unwrap();
}

fn build(root: &Path, options: &[(&str, &str)]) -> Box<dyn Backend> {
    let given: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let checkpoint = root.join("trained");
    let model = ModelFiles {
        name: "tiny".into(),
        checkpoint: checkpoint.exists().then_some(checkpoint),
        decoder: Some(root.join("decoder")),
        ..ModelFiles::default()
    };
    let options = Options::checked(spec().options, &given).unwrap();
    (spec().build)(&BuildContext { model, options, ..BuildContext::default() }).unwrap()
}

#[test]
fn every_part_of_a_document_is_in_its_summary() {
    let root = models();
    write(root.path());
    let mut lloco = build(root.path(), &[]);
    let count: u64 = values(root.path()).values().map(|t| t.elem_count() as u64).sum();
    assert_eq!((lloco.info().trained_parameters, &lloco.info().warnings[..]), (count, &[][..]));
    let context = noise(390);
    let first = request(prompt(&context, true));
    let usage = answer(&mut *lloco, &first).unwrap().usage;
    assert_eq!((usage.context_tokens, usage.context_compressed, usage.soft_tokens), (390, 390, 50));
    assert_eq!((usage.context_seen, usage.context_dropped), (0, 0));
    let kept = scores(&mut *lloco, &first);
    for at in [2, 200, 385] {
        let mut changed = context.clone();
        changed.replace_range(at..at + 3, "QXZ");
        let moved = difference(&scores(&mut *lloco, &request(prompt(&changed, true))), &kept);
        assert!(moved > 1e-4, "what stands at {at} changes nothing: {moved}");
    }
    let alone = request(Prompt { instruction: "What?".into(), chat: true, ..Prompt::default() });
    assert!(difference(&scores(&mut *lloco, &alone), &kept) > 1e-3);
    assert!(answer(&mut *lloco, &request(Prompt::default())).is_err());
    let long = request(prompt(&noise(4000), true));
    assert_eq!(answer(&mut *lloco, &long).unwrap_err().kind, ErrorKind::ContextTooLong);
}

#[test]
fn summaries_are_kept_by_document_and_compressor() {
    let root = models();
    write(root.path());
    let store = root.path().join("store");
    let at = store.to_str().unwrap();
    let files = || {
        let all = std::fs::read_dir(&store).unwrap();
        let mut all: Vec<_> = all.map(|f| f.unwrap().path()).collect();
        all.sort();
        all
    };
    let (a, b) = (request(prompt(&noise(100), true)), request(prompt(&noise(90), true)));
    let mut first = build(root.path(), &[("store", at)]);
    let expected = scores(&mut *first, &a);
    let known = files();
    scores(&mut *first, &b);
    scores(&mut *first, &a);
    assert_eq!((known.len(), files().len()), (1, 2));
    // Another process takes them from there: other vectors in the file, other answers.
    let mut again = build(root.path(), &[("store", at)]);
    assert_eq!(scores(&mut *again, &a).log_likelihoods, expected.log_likelihoods);
    let file = candle_core::safetensors::load(&known[0], &Device::Cpu).unwrap();
    assert_eq!(file["summaries"].dims(), [15, 32]);
    let other = BTreeMap::from([("summaries".to_owned(), (&file["summaries"] * 2.0).unwrap())]);
    e2llm_lm::write_safetensors(&store, known[0].file_stem().unwrap().to_str().unwrap(), &other, None)
        .unwrap();
    let mut third = build(root.path(), &[("store", at)]);
    assert!(difference(&scores(&mut *third, &a), &expected) > 1e-4);
    // An untrained compressor finds nothing there.
    std::fs::remove_dir_all(root.path().join("trained")).unwrap();
    let mut untrained = build(root.path(), &[("store", at)]);
    assert!(untrained.info().warnings.iter().any(|w| w.contains("UNTRAINED")));
    scores(&mut *untrained, &a);
    assert_eq!(files().len(), 3);
}

fn model(root: &Path, precision: Precision) -> (LlocoModel, BTreeMap<String, Var>) {
    let files = DecoderFiles::open(&root.join("decoder")).unwrap();
    let base = Llama::load(&files.config, &files.weights, None, &Device::Cpu, precision).unwrap();
    LlocoModel::load(config(), &base, values(root), (&Device::Cpu, precision), (true, true)).unwrap()
}

fn document(n: u32, from: u32) -> Vec<u32> {
    (0..n).map(|i| 3 + (i * 37 + from) % 250).collect()
}

#[test]
fn a_batch_is_its_documents_and_segments_follow_each_other() {
    let root = models();
    let (model, _) = model(root.path(), Precision::F32);
    let documents = [document(130, 1), document(40, 7), document(11, 9)];
    let together = model.compressor.summaries(&documents, || Ok(())).unwrap();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let close = |a: &Tensor, b: &Tensor| values(a).iter().zip(values(b)).all(|(a, b)| (a - b).abs() < 1e-4);
    for (document, summaries) in documents.iter().zip(&together) {
        let alone = model.compressor.summaries(std::slice::from_ref(document), || Ok(())).unwrap();
        assert_eq!(alone[0].dims(), [document.len().div_ceil(40) * 5, 32]);
        assert!(close(&alone[0], summaries));
    }
    // A segment's vectors depend on those before it and not on what follows.
    let start = model.compressor.summaries(&[documents[0][..80].to_vec()], || Ok(())).unwrap();
    assert!(close(&start[0], &together[0].narrow(0, 0, 10).unwrap()));
    let second = model.compressor.summaries(&[documents[0][40..80].to_vec()], || Ok(())).unwrap();
    assert!(!close(&second[0], &together[0].narrow(0, 5, 5).unwrap()));
    assert!(model.compressor.summaries(&[vec![]], || Ok(())).is_err());
}

#[test]
fn vectors_before_need_not_be_read_again() {
    let root = models();
    let base = base(root.path());
    let f64 = Precision::Dense(DType::F64);
    // Within a block of positions, and beyond one; last segments that are whole, and that are not.
    for (segment_tokens, lengths) in [(40, [31, 40, 80, 205]), (700, [600, 700, 701, 2100])] {
        let config = LlocoConfig { segment_tokens, ..config() };
        let place = (&Device::Cpu, f64);
        let loaded = LlocoModel::load(config, &base, values(root.path()), place, (false, false));
        let compressor = loaded.unwrap().0.compressor;
        for n in lengths {
            let document = document(n, 5);
            let expected =
                compressor.summaries(std::slice::from_ref(&document), || Ok(())).unwrap().remove(0);
            let got = compressor.compress(&document, || Ok(())).unwrap();
            let error = (got - &expected).unwrap().abs().unwrap().max_all().unwrap();
            assert_eq!(expected.dims(), [(n as usize).div_ceil(segment_tokens) * 5, 32]);
            assert!(error.to_scalar::<f64>().unwrap() < 1e-9, "{n} tokens by {segment_tokens}: {error}");
        }
        assert!(compressor.compress(&[], || Ok(())).is_err());
        let mut asked = 0;
        let stop = || {
            asked += 1;
            if asked == 2 { candle_core::bail!("stopped") } else { Ok(()) }
        };
        assert!(compressor.compress(&document(2100, 5), stop).is_err());
    }
}

#[test]
fn gradients_are_finite_differences_within_a_group_and_cut_between_groups() {
    let root = models();
    let (mut model, vars) = model(root.path(), Precision::Dense(DType::F64));
    let weights: Vec<f64> = uniform(1, "w", 25 * 32, 1.0).into_iter().map(f64::from).collect();
    let weights = Tensor::from_vec(weights, (25, 32), &Device::Cpu).unwrap();
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let value = |model: &LlocoModel, lengths: &[u32]| {
        let documents: Vec<_> = lengths.iter().map(|n| document(*n, *n)).collect();
        let all = model.compressor.summaries(&documents, || Ok(())).unwrap();
        let all = Tensor::cat(&all, 0).unwrap();
        let n = all.dim(0).unwrap();
        (all * weights.narrow(0, 0, n).unwrap()).unwrap().sum_all().unwrap()
    };
    let gradients =
        |model: &LlocoModel, lengths: &[u32]| e2llm_kernels::backward(&value(model, lengths)).unwrap();
    let mut checked = 0;
    // Two segments and one: all of it within a group.
    let store = gradients(&model, &[75, 30]);
    model.set_checkpointing(true);
    let again = gradients(&model, &[75, 30]);
    model.set_checkpointing(false);
    for (name, var) in vars.iter().filter(|(n, _)| n.starts_with("compressor.")) {
        let gradient = flat(store.get(var).unwrap_or_else(|| panic!("{name} has no gradient")));
        let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
        let kept = flat(again.get(var).unwrap());
        assert!(gradient.iter().zip(&kept).all(|(a, b)| (a - b).abs() <= 1e-9 * largest.max(1.0)), "{name}");
        let values = flat(var);
        for at in [0, values.len() / 2, values.len() - 1] {
            let moved = |by: f64| {
                let mut other = values.clone();
                other[at] += by;
                var.set(&Tensor::from_vec(other, var.shape(), &Device::Cpu).unwrap()).unwrap();
                value(&model, &[75, 30]).to_scalar::<f64>().unwrap()
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            moved(0.0);
            let error = (gradient[at] - expected).abs();
            assert!(error <= 1e-5 * largest.max(1.0), "{name}[{at}]: {} for {expected}", gradient[at]);
            checked += 1;
        }
    }
    assert!(checked > 25);
    // Three segments: the third one's gradient does not run through the first two, whose vectors it reads.
    let scale = &vars["compressor.output_scale"];
    let cut = flat(gradients(&model, &[110]).get(scale).unwrap());
    let whole = LlocoModel::load(
        LlocoConfig { bptt_segments: 9, ..config() },
        &base(root.path()),
        values(root.path()),
        (&Device::Cpu, Precision::Dense(DType::F64)),
        (true, true),
    );
    let (whole, all) = whole.unwrap();
    assert_eq!(flat(&value(&whole, &[110])), flat(&value(&model, &[110])));
    let uncut = flat(gradients(&whole, &[110]).get(&all["compressor.output_scale"]).unwrap());
    assert!((cut[0] - uncut[0]).abs() > 1e-6, "{cut:?} {uncut:?}");
}

fn base(root: &Path) -> Llama {
    let files = DecoderFiles::open(&root.join("decoder")).unwrap();
    let f64 = Precision::Dense(DType::F64);
    Llama::load(&files.config, &files.weights, None, &Device::Cpu, f64).unwrap()
}

/// The papers' Llama-2-7B: LLoCO's LoRA of rank 8, AutoCompressors' of rank 16 and 50 summary embeddings.
#[test]
fn parameters_are_the_papers_at_its_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "hidden_act": "silu",
    });
    tiny::write_json(folder.path(), "config.json", &json);
    let llama = LlamaConfig::from_file(&folder.path().join("config.json")).unwrap();
    let config = LlocoConfig::default();
    let count = |specs: Vec<e2llm_lm::TensorSpec>| specs.iter().map(|s| s.len() as u64).sum::<u64>();
    assert_eq!((config.segment_tokens, config.summary_tokens), (1536, 50));
    assert_eq!(count(llama.lora_tensors(&config.decoder_lora, "")), 8_388_608);
    let compressor = count(config.compressor_tensors(&llama));
    assert_eq!(compressor, 16_777_216 + 50 * 4096 + 1); // 1: our scale
    assert_eq!(count(config.tensors(&llama)), compressor + 8_388_608);
    // 128k tokens, as the paper reads them.
    assert_eq!(config.summaries(131_072), 4300);
}

#[test]
fn a_queue_is_each_of_its_questions_alone() {
    let root = models();
    write(root.path());
    assert_queue_is_each_alone(|| build(root.path(), &[]), &noise(100));
}
