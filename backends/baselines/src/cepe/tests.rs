use super::{CepeConfig, CepeModel, METHOD, spec};
use crate::tests::{
    answer, assert_queue_is_each_alone, assert_same, difference, noise, prompt, request, scores, tiny,
};
use crate::{no_context, truncate};
use candle_core::{DType, Device, Tensor, Var};
use e2llm::checkpoint::{BaseModels, save_named};
use e2llm_backend::{Backend, BackendError, BackendSpec, BuildContext, ModelFiles, Options, Prompt};
use e2llm_lm::{
    BertConfig, DecoderFiles, EncoderFiles, LlamaConfig, LoraConfig, Precision, TensorSpec, uniform,
};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

const WINDOW: usize = 200;

fn models() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::encoder(&folder.path().join("encoder"), 64);
    tiny::decoder(&folder.path().join("decoder"), WINDOW);
    folder
}

fn config() -> CepeConfig {
    let targets = ["query", "key", "value", "dense"].map(str::to_owned).to_vec();
    CepeConfig {
        encoder_lora: LoraConfig { r: 2, lora_alpha: 4.0, target_modules: targets },
        decoder_context: 40,
        chunk_chars: 30,
        chunk_overlap: 0.0,
    }
}

fn specs(root: &Path) -> Vec<TensorSpec> {
    let encoder = BertConfig::from_file(&root.join("encoder/config.json")).unwrap();
    let decoder = LlamaConfig::from_file(&root.join("decoder/config.json")).unwrap();
    config().tensors(&encoder, &decoder)
}

/// Values that change the decoder, as training would.
fn values(specs: &[TensorSpec]) -> BTreeMap<String, Tensor> {
    let value = |s: &TensorSpec| {
        let v = uniform(5, &s.name, s.len(), 0.5);
        (s.name.clone(), Tensor::from_vec(v, s.shape.clone(), &Device::Cpu).unwrap())
    };
    specs.iter().map(value).collect()
}

fn write(root: &Path, tensors: &BTreeMap<String, Tensor>) {
    let text = Ok(serde_json::to_string(&config()).unwrap());
    save_named(&root.join("trained"), METHOD, text, tensors, &BaseModels::default(), None).unwrap();
}

fn build(spec: BackendSpec, root: &Path, options: &[(&str, &str)]) -> Result<Box<dyn Backend>, BackendError> {
    let given: BTreeMap<_, _> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let checkpoint = root.join("trained");
    let model = ModelFiles {
        name: "tiny".into(),
        checkpoint: checkpoint.exists().then_some(checkpoint),
        encoder: Some(root.join("encoder")),
        decoder: Some(root.join("decoder")),
        window: None,
    };
    let context =
        BuildContext { model, options: Options::checked(spec.options, &given)?, ..BuildContext::default() };
    (spec.build)(&context)
}

#[test]
fn at_its_start_it_is_the_decoder_alone() {
    let root = models();
    let mut cepe = build(spec(), root.path(), &[("decoder_context", "0")]).unwrap();
    assert!(cepe.info().warnings.iter().any(|w| w.contains("UNTRAINED")));
    assert_eq!(cepe.info().trained_parameters, 0);
    let mut alone = build(no_context::spec(), root.path(), &[]).unwrap();
    let long = request(prompt(&noise(700), true));
    assert_same(&mut *cepe, &mut *alone, &long);
    let usage = answer(&mut *cepe, &long).unwrap().usage;
    assert_eq!((usage.context_tokens, usage.context_seen, usage.context_compressed), (700, 0, 700));
    assert!(usage.soft_tokens >= 700, "every token has a state: {usage:?}");

    // What the decoder reads of the context is read as by `truncate`: here all of it, and then its last chunk.
    let mut alone = build(truncate::spec(), root.path(), &[]).unwrap();
    let mut cepe = build(spec(), root.path(), &[("decoder_context", "512")]).unwrap();
    let short = request(prompt(&noise(60), true));
    assert_same(&mut *cepe, &mut *alone, &short);
    let usage = answer(&mut *cepe, &short).unwrap().usage;
    assert_eq!((usage.context_seen, usage.context_compressed, usage.soft_tokens), (60, 0, 0));
    let long = request(prompt(&noise(600), true));
    let usage = answer(&mut *cepe, &long).unwrap().usage;
    assert_eq!((usage.context_seen, usage.context_compressed), (88, 512), "chunks are of 512 characters");
    let tail = request(prompt(&noise(600)[512..], true));
    let alone = scores(&mut *alone, &tail);
    assert!(difference(&scores(&mut *cepe, &long), &alone) < 1e-5);
}

#[test]
fn a_trained_one_reads_what_the_decoder_does_not() {
    let root = models();
    write(root.path(), &values(&specs(root.path())));
    let mut cepe = build(spec(), root.path(), &[]).unwrap();
    let info = cepe.info().clone();
    let count: usize = specs(root.path()).iter().map(TensorSpec::len).sum();
    assert_eq!((info.trained_parameters, info.warnings.len()), (count as u64, 0), "{:?}", info.warnings);
    let context = noise(900);
    let first = request(prompt(&context, true));
    let mut changed = context.clone();
    changed.replace_range(3..9, "QUARTZ");
    let second = request(prompt(&changed, true));
    let usage = answer(&mut *cepe, &first).unwrap().usage;
    assert!((1..=40).contains(&usage.context_seen) && usage.context_seen + usage.context_compressed == 900);
    let (a, b) = (scores(&mut *cepe, &first), scores(&mut *cepe, &second));
    assert!(difference(&a, &b) > 1e-3, "the first chunk changes nothing: {a:?} {b:?}");
    // One after the other or again, chunks in waves of any size: the same.
    assert_eq!(scores(&mut *cepe, &first).log_likelihoods, a.log_likelihoods);
    let mut other = build(spec(), root.path(), &[("encode_batch", "1")]).unwrap();
    assert!(difference(&scores(&mut *other, &first), &a) < 1e-4);
    assert_ne!(other.info().fingerprint, info.fingerprint);
    let empty = request(Prompt { instruction: String::new(), context: String::new(), ..Prompt::default() });
    assert!(answer(&mut *cepe, &empty).is_err());

    // Settings are the checkpoint's; what does not fit them is named.
    let mut tensors = values(&specs(root.path()));
    let name = "decoder.model.layers.0.cross_attn.o_proj.weight";
    tensors.insert(name.into(), Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap());
    write(root.path(), &tensors);
    let error = build(spec(), root.path(), &[]).err().unwrap().to_string();
    assert!(error.contains(name), "{error}");
}

#[test]
fn reading_in_one_pass_is_reading_token_by_token() {
    let root = models();
    let (model, _) = model(root.path(), Precision::F32, false);
    let chunks: Vec<Vec<u32>> = vec![(3..20).collect(), (40..60).collect()];
    let source = model.source(&[chunks]).unwrap().unwrap();
    let ids: Vec<u32> = (70..90).collect();
    let llama = model.decoder();
    let whole = llama.forward_block(&llama.embed(&ids).unwrap(), None, Some(&source)).unwrap();
    let keys = std::sync::Arc::new(llama.cross_keys(&source.states).unwrap());
    let mut memory = e2llm_lm::CrossMemory::new(e2llm_lm::KvCache::new(0), keys);
    for (i, id) in ids.iter().enumerate() {
        let one = llama.forward_hidden(&llama.embed(&[*id]).unwrap(), None, Some(&mut memory)).unwrap();
        let expected = whole.narrow(1, i, 1).unwrap();
        let error = (one - expected).unwrap().abs().unwrap().max_all().unwrap();
        assert!(error.to_scalar::<f32>().unwrap() < 1e-4, "position {i}");
    }
}

fn model(root: &Path, precision: Precision, trainable: bool) -> (CepeModel, BTreeMap<String, Var>) {
    let encoder = EncoderFiles::open(&root.join("encoder")).unwrap();
    let decoder = DecoderFiles::open(&root.join("decoder")).unwrap();
    let tensors = values(&specs(root));
    CepeModel::load(config(), (&encoder, &decoder), tensors, (&Device::Cpu, precision), trainable).unwrap()
}

#[test]
fn gradients_are_finite_differences() {
    let root = models();
    let (mut model, vars) = model(root.path(), Precision::Dense(DType::F64), true);
    // A padded batch, of which one reads three chunks, one a single one and one none.
    let batch = vec![vec![vec![5, 6, 7], vec![8, 9], vec![30; 6]], vec![vec![11; 4]], vec![]];
    let ids: Vec<u32> = (3..24).collect();
    let lengths = [7, 5, 6];
    let weights: Vec<f64> = uniform(1, "w", 3 * 7 * 32, 1.0).into_iter().map(f64::from).collect();
    let weights = Tensor::from_vec(weights, (3, 7, 32), &Device::Cpu).unwrap();
    let value = |model: &CepeModel| {
        let source = model.source(&batch).unwrap().unwrap();
        assert_eq!(source.lengths, [11, 4, 0]);
        let x = model.decoder().embed(&ids).unwrap().reshape((3, 7, 32)).unwrap();
        let hidden = model.decoder().forward_block(&x, Some(&lengths), Some(&source)).unwrap();
        let rows: Vec<u32> = vec![0, 3, 6, 7, 11, 14, 19];
        let pick = |t: &Tensor| e2llm_kernels::gather_rows(&t.flatten(0, 1).unwrap(), &rows).unwrap();
        (pick(&hidden) * pick(&weights)).unwrap().sum_all().unwrap()
    };
    let store = e2llm_kernels::backward(&value(&model)).unwrap();
    model.set_checkpointing(true);
    let again = e2llm_kernels::backward(&value(&model)).unwrap();
    model.set_checkpointing(false);
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let mut checked = 0;
    for (name, var) in &vars {
        let gradient = flat(store.get(var).unwrap_or_else(|| panic!("{name} has no gradient")));
        let kept = flat(again.get(var).unwrap_or_else(|| panic!("{name} has none with checkpointing")));
        let largest = gradient.iter().fold(0f64, |m, g| m.max(g.abs()));
        assert!(gradient.iter().zip(&kept).all(|(a, b)| (a - b).abs() <= 1e-9 * largest.max(1.0)), "{name}");
        let values = flat(var);
        for at in [0, values.len() / 2, values.len() - 1] {
            let moved = |by: f64| {
                let mut other = values.clone();
                other[at] += by;
                var.set(&Tensor::from_vec(other, var.shape(), &Device::Cpu).unwrap()).unwrap();
                value(&model).to_scalar::<f64>().unwrap()
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            moved(0.0);
            let error = (gradient[at] - expected).abs();
            assert!(error <= 1e-5 * largest.max(1.0), "{name}[{at}]: {} for {expected}", gradient[at]);
            checked += 1;
        }
    }
    assert!(checked > 60 && vars.keys().filter(|n| n.contains("cross_attn")).count() == 10);
}

/// The paper's Llama-2-7B: 435 million of encoder, 32 layers of cross-attention from its 1024 to 4096.
#[test]
fn parameters_are_the_papers_at_its_shapes() {
    let shape = |layers: u32, hidden: u32, heads: u32, inner: u32, tied: bool| {
        let folder = tempfile::tempdir().unwrap();
        let json = serde_json::json!({
            "model_type": "llama", "vocab_size": 32000, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "intermediate_size": inner, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "hidden_act": "silu",
        });
        tiny::write_json(folder.path(), "config.json", &json);
        LlamaConfig::from_file(&folder.path().join("config.json")).unwrap()
    };
    let decoder = shape(32, 4096, 32, 11008, false);
    let cross: u64 = decoder.cross_attention_tensors(1024, "").iter().map(|s| s.len() as u64).sum();
    assert_eq!(cross, 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 4096));
    assert_eq!(cross, 1_342_308_352);
    // Their encoder has Llama's blocks, read both ways, and shares its embeddings with its output.
    let encoder = shape(24, 1024, 16, 4096, true).parameters();
    assert_eq!((encoder, encoder / 1_000_000), (435_471_360, 435));
}

#[test]
fn a_queue_is_each_of_its_questions_alone() {
    let root = models();
    write(root.path(), &values(&specs(root.path())));
    assert_queue_is_each_alone(|| build(spec(), root.path(), &[]).unwrap(), &noise(300));
}
