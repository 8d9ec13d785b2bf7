//! What must hold for any weights: blocks and caches, padding, adapters, scores.

use crate::support::{
    bert_config, bert_json, distance, folder, llama_config, llama_json, never, noise, random_tensors,
};
use candle_core::{DType, Device, Tensor};
use e2llm_lm::{
    BertEncoder, Finish, Generation, KvCache, Llama, LlamaConfig, LmError, LoraConfig, LoraSource,
    PREFILL_BLOCK, Params, Precision, Segment, Weights, generate, prefill, score_continuations,
    token_log_probs,
};
use serde_json::{Value, json};

pub(crate) const F64: Precision = Precision::Dense(DType::F64);

pub(crate) fn llama_of(json: &Value, precision: Precision) -> Llama {
    let config = llama_config(json);
    let folder = folder(json, &config.tensors());
    let weights = Weights::open(folder.path()).unwrap();
    Llama::load(&config, &weights, None, &Device::Cpu, precision).unwrap()
}

fn lora(targets: &[&str]) -> LoraConfig {
    LoraConfig { r: 3, lora_alpha: 6.0, target_modules: targets.iter().map(|t| (*t).to_owned()).collect() }
}

pub(crate) fn ids(n: usize, vocab: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7 + i * i) % vocab).collect()
}

#[test]
fn blocks_and_cache_give_what_one_pass_gives() {
    let variants = [
        json!({}),
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen3", "tie_word_embeddings": false}),
        json!({"attention_bias": true, "mlp_bias": true}),
    ];
    for variant in variants {
        let mut config = llama_json();
        config.as_object_mut().unwrap().extend(variant.as_object().unwrap().clone());
        let llama = llama_of(&config, F64);
        let ids = ids(2 * PREFILL_BLOCK + 37, 64);
        let whole = llama.forward_hidden(&llama.embed(&ids).unwrap(), None, None).unwrap();
        let last = whole.narrow(1, ids.len() - 1, 1).unwrap();
        // Segments that end within blocks, of ids and of embeddings.
        let soft = llama.embed(&ids[100..700]).unwrap().squeeze(0).unwrap();
        let prompt =
            [Segment::Ids(ids[..100].to_vec()), Segment::Embeds(soft), Segment::Ids(ids[700..].to_vec())];
        let mut cache = KvCache::new(ids.len());
        let blocks = prefill(&llama, &prompt, &mut cache, &never).unwrap();
        assert!(distance(&last, &blocks) < 1e-10, "{variant}");
        assert_eq!(cache.offset(), ids.len());
        // The last ten tokens one at a time.
        let start = ids.len() - 10;
        let mut cache = KvCache::new(ids.len());
        prefill(&llama, &[Segment::Ids(ids[..start].to_vec())], &mut cache, &never).unwrap();
        for at in start..ids.len() {
            let hidden =
                llama.forward_hidden(&llama.embed(&ids[at..=at]).unwrap(), None, Some(&mut cache)).unwrap();
            assert!(distance(&hidden, &whole.narrow(1, at, 1).unwrap()) < 1e-10, "{variant} at {at}");
        }
    }
}

#[test]
fn padded_rows_are_what_single_rows_are() {
    let llama = llama_of(&llama_json(), F64);
    let (a, b) = (ids(9, 64), ids(5, 60));
    let row = |ids: &[u32]| llama.embed(ids).unwrap();
    let padding = Tensor::ones((1, 4, 32), DType::F64, &Device::Cpu).unwrap();
    let batch = Tensor::cat(&[row(&a), Tensor::cat(&[row(&b), padding], 1).unwrap()], 0).unwrap();
    let out = llama.forward_hidden(&batch, Some(&[9, 5]), None).unwrap();
    for (i, ids) in [a, b].iter().enumerate() {
        let alone = llama.forward_hidden(&row(ids), None, None).unwrap();
        let padded = out.narrow(0, i, 1).unwrap().narrow(1, 0, ids.len()).unwrap();
        assert!(distance(&alone, &padded) < 1e-12);
    }
    let mut cache = KvCache::new(0);
    assert!(llama.forward_hidden(&batch, Some(&[9, 5]), Some(&mut cache)).is_err());

    let config = bert_config(&bert_json());
    let folder = folder(&bert_json(), &config.tensors());
    let weights = Weights::open(folder.path()).unwrap();
    let encoder = BertEncoder::load(&config, &weights, None, &Device::Cpu, F64).unwrap();
    let texts = [ids_of(13), ids_of(1), ids_of(40)];
    let (states, lengths) = encoder.forward(&texts).unwrap();
    assert_eq!((states.dims(), lengths.as_slice()), ([3, 40, 32].as_slice(), [13, 1, 40].as_slice()));
    for (i, text) in texts.iter().enumerate() {
        let (alone, _) = encoder.forward(std::slice::from_ref(text)).unwrap();
        let padded = states.narrow(0, i, 1).unwrap().narrow(1, 0, text.len()).unwrap();
        assert!(distance(&alone, &padded) < 1e-12);
    }
    for bad in [vec![], vec![vec![]], vec![ids_of(41)], vec![vec![50]]] {
        assert!(encoder.forward(&bad).is_err());
    }
}

fn ids_of(n: usize) -> Vec<u32> {
    ids(n, 50)
}

/// A small decoder with random adapters.
fn adapted(precision: Precision, trainable: bool) -> (Llama, Params, LoraConfig) {
    let config = llama_config(&llama_json());
    let lora = lora(&["q_proj", "v_proj", "down_proj"]);
    let specs = config.lora_tensors(&lora, "decoder.");
    let mut params = Params::new(random_tensors(&specs), &Device::Cpu, precision.activations(), trainable);
    params.check(&specs).unwrap();
    let folder = folder(&llama_json(), &config.tensors());
    let weights = Weights::open(folder.path()).unwrap();
    let source = LoraSource { config: &lora, params: &mut params, prefix: "decoder." };
    let llama = Llama::load(&config, &weights, Some(source), &Device::Cpu, precision).unwrap();
    (llama, params, lora)
}

#[test]
fn merged_adapters_change_nothing_but_the_weights() {
    let (mut llama, params, _) = adapted(F64, false);
    assert!(params.vars().is_empty());
    params.finish().unwrap();
    let x = llama.embed(&ids(12, 64)).unwrap();
    let before = llama.forward_hidden(&x, None, None).unwrap();
    let plain = llama_of(&llama_json(), F64).forward_hidden(&x, None, None).unwrap();
    assert!(distance(&before, &plain) > 0.1, "the adapters do something");
    let merged = llama.merged_tensors().unwrap();
    llama.merge_lora().unwrap();
    assert!(distance(&before, &llama.forward_hidden(&x, None, None).unwrap()) < 1e-10);
    // The merged tensors are a complete plain model.
    let folder = folder(&llama_json(), &[]);
    crate::support::save(&folder.path().join("model.safetensors"), &merged);
    let weights = Weights::open(folder.path()).unwrap();
    let plain = Llama::load(llama.config(), &weights, None, &Device::Cpu, F64).unwrap();
    assert!(distance(&before, &plain.forward_hidden(&x, None, None).unwrap()) < 1e-10);
}

#[test]
fn gradients_reach_every_adapter_and_checkpointing_keeps_them() {
    let (mut llama, params, _) = adapted(F64, true);
    let x = llama.embed(&ids(12, 64)).unwrap();
    let weights = Tensor::from_vec(noise(9, 12 * 32), (1, 12, 32), &Device::Cpu).unwrap();
    let weights = weights.to_dtype(DType::F64).unwrap();
    let loss = |llama: &Llama| {
        let hidden = llama.forward_hidden(&x, Some(&[12]), None).unwrap();
        (hidden * &weights).unwrap().sum_all().unwrap()
    };
    let grads = e2llm_kernels::backward(&loss(&llama)).unwrap();
    llama.set_checkpointing(true);
    let again = e2llm_kernels::backward(&loss(&llama)).unwrap();
    assert_eq!(params.vars().len(), 2 * 2 * 3);
    for (name, var) in params.vars() {
        let g = grads.get(var).unwrap_or_else(|| panic!("no gradient for {name}"));
        assert!(distance(g, &g.zeros_like().unwrap()) > 1e-6, "{name}");
        assert!(distance(g, again.get(var).unwrap()) < 1e-12, "{name}");
    }
    // One derivative by finite differences.
    let (name, var) = params.vars().iter().next().unwrap();
    let old = var.as_tensor().copy().unwrap();
    let mut step = vec![0.0; old.elem_count()];
    step[1] = 1e-6;
    let step = Tensor::from_vec(step, old.shape(), &Device::Cpu).unwrap();
    let at = |t: Tensor| {
        var.set(&t).unwrap();
        loss(&llama).to_scalar::<f64>().unwrap()
    };
    let slope = (at((&old + &step).unwrap()) - at((&old - &step).unwrap())) / 2e-6;
    let got: f64 = grads.get(var).unwrap().flatten_all().unwrap().get(1).unwrap().to_scalar().unwrap();
    assert!((slope - got).abs() < 1e-6 * slope.abs().max(1.0), "{name}: {slope} {got}");
}

/// A decoder whose embeddings (tied or not) and norms are trained in full, with an adapter.
fn trained_in_full(tied: bool) -> (Llama, Params) {
    let mut json = llama_json();
    json["tie_word_embeddings"] = json!(tied);
    let config = llama_config(&json);
    let lora = lora(&["q_proj", "v_proj"]);
    let mut specs = config.lora_tensors(&lora, "decoder.");
    specs.extend(config.module_tensors(&config.embeddings_and_norms(), "decoder."));
    let mut params = Params::new(random_tensors(&specs), &Device::Cpu, DType::F64, true);
    let folder = folder(&json, &config.tensors());
    let weights = Weights::open(folder.path()).unwrap();
    let source = LoraSource { config: &lora, params: &mut params, prefix: "decoder." };
    let llama = Llama::load(&config, &weights, Some(source), &Device::Cpu, F64).unwrap();
    (llama, params)
}

#[test]
fn trained_embeddings_and_norms_have_the_gradients_of_finite_differences() {
    let (lengths, targets) = ([11, 8], Tensor::new(&[3u32, 40, 3, 7, 12], &Device::Cpu).unwrap());
    // Ids that come several times, as inputs and as targets.
    let mut ids = [ids(11, 64), ids(11, 64)].concat();
    (ids[2], ids[5], ids[13]) = (40, 3, 40);
    for (tied, shifted) in [(true, false), (true, true), (false, true)] {
        let (mut llama, params) = trained_in_full(tied);
        if shifted {
            llama = llama.with_shifted_groups();
        }
        let loss = |llama: &Llama| {
            let x = llama.embed(&ids).unwrap().reshape((2, 11, ())).unwrap();
            let hidden = llama.forward_hidden(&x, Some(&lengths), None).unwrap();
            let rows = e2llm_kernels::gather_rows(&hidden.flatten(0, 1).unwrap(), &[4, 9, 10, 14, 17]);
            llama.cross_entropy(&rows.unwrap(), &targets).unwrap()
        };
        let grads = e2llm_kernels::backward(&loss(&llama)).unwrap();
        llama.set_checkpointing(true);
        let again = e2llm_kernels::backward(&loss(&llama)).unwrap();
        let names: Vec<_> = params.vars().keys().map(String::as_str).collect();
        assert!(names.contains(&"decoder.model.norm.weight") && !names.iter().any(|n| n.contains("lm_head")));
        for (name, var) in params.vars() {
            let g = grads.get(var).unwrap_or_else(|| panic!("no gradient for {name}"));
            assert!(distance(g, again.get(var).unwrap()) < 1e-10, "{name}");
            let old = var.as_tensor().copy().unwrap();
            let g = g.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            // Of the embeddings, elements of rows that are read, predicted, both and neither.
            let width = old.dims()[old.dims().len() - 1];
            let rows = if name.contains("embed") { vec![40, 3, 7, 63, ids[0] as usize] } else { vec![0] };
            for at in rows.into_iter().map(|row| row * width + 1) {
                let mut step = vec![0.0; old.elem_count()];
                step[at] = 1e-6;
                let step = Tensor::from_vec(step, old.shape(), &Device::Cpu).unwrap();
                let value = |t: Tensor| {
                    var.set(&t).unwrap();
                    loss(&llama).to_scalar::<f64>().unwrap()
                };
                let up = value((&old + &step).unwrap());
                let slope = (up - value((&old - &step).unwrap())) / 2e-6;
                var.set(&old).unwrap();
                let gap = (slope - g[at]).abs();
                assert!(gap < 1e-6 * slope.abs().max(1.0), "{name} [{at}]: {slope} {}", g[at]);
            }
        }
    }
}

#[test]
fn shifted_groups_read_another_way_and_through_no_memory() {
    let llama = llama_of(&llama_json(), F64);
    let grouped = llama.with_shifted_groups();
    let x = llama.embed(&ids(12, 64)).unwrap();
    let full = llama.forward_hidden(&x, None, None).unwrap();
    assert!(distance(&full, &grouped.forward_hidden(&x, None, None).unwrap()) > 1e-3);
    let mut memory = KvCache::new(12);
    let error = grouped.forward_hidden(&x, None, Some(&mut memory)).unwrap_err().to_string();
    assert!(error.contains("training"), "{error}");
}

#[test]
fn longlora_trains_as_many_parameters_of_llama_2_7b_as_in_the_paper() {
    let config = llama_config(&json!({
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096,
    }));
    let count = |specs: Vec<e2llm_lm::TensorSpec>| specs.iter().map(|s| s.len() as u64).sum::<u64>();
    let mut lora = lora(&["q_proj", "k_proj", "v_proj", "o_proj"]);
    lora.r = 8;
    let modules = config.embeddings_and_norms();
    assert_eq!(modules, ["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"]);
    assert_eq!(count(config.lora_tensors(&lora, "")), 32 * 4 * 2 * 8 * 4096);
    assert_eq!(count(config.module_tensors(&modules, "")), 32_000 * 4096 + 65 * 4096);
    let all = count(e2llm_lm::PeftAdapter::specs(&config, &lora, &modules));
    assert_eq!(all, 139_726_848); // 140 M
    assert_eq!(config.parameters(), 6_738_415_616);
}

#[test]
fn adapters_that_do_not_fit_are_named() {
    let config = llama_config(&llama_json());
    let folder = folder(&llama_json(), &config.tensors());
    let weights = Weights::open(folder.path()).unwrap();
    let load = |lora: &LoraConfig, params: &mut Params, precision| {
        let source = LoraSource { config: lora, params, prefix: "decoder." };
        Llama::load(&config, &weights, Some(source), &Device::Cpu, precision).unwrap_err().to_string()
    };
    let none = || Params::new(Default::default(), &Device::Cpu, DType::F32, true);
    assert!(load(&lora(&["query"]), &mut none(), Precision::F32).contains("query"));
    let missing = load(&lora(&["q_proj"]), &mut none(), Precision::F32);
    assert!(missing.contains("decoder.model.layers.0.self_attn.q_proj.lora_A.weight"), "{missing}");
    assert!(load(&lora(&["q_proj"]), &mut none(), Precision::Quantised).contains("quantised"));
    // All problems at once, and what nobody asked for.
    let specs = config.lora_tensors(&lora(&["q_proj"]), "decoder.");
    let mut tensors = random_tensors(&specs[1..]);
    tensors.insert("stray".to_owned(), Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    let mut params = Params::new(tensors, &Device::Cpu, DType::F32, false);
    let problems = params.check(&specs).unwrap_err();
    assert_eq!((problems.missing.len(), problems.unexpected), (1, vec!["stray".to_owned()]));
    assert!(params.get("stray", &[2]).is_err());
    assert!(params.finish().unwrap_err().to_string().contains("stray"));
}

#[test]
fn dense_weights_can_be_held_in_8_bits() {
    let mut config = llama_json();
    config["intermediate_size"] = json!(64);
    let (dense, quantised) = (llama_of(&config, Precision::F32), llama_of(&config, Precision::Quantised));
    let hidden =
        |llama: &Llama| llama.forward_hidden(&llama.embed(&ids(12, 64)).unwrap(), None, None).unwrap();
    let gap = distance(&hidden(&dense), &hidden(&quantised));
    assert!(gap > 0.0 && gap < 0.3, "{gap}");
}

#[test]
fn scores_are_those_of_whole_texts() {
    let llama = llama_of(&llama_json(), F64);
    let prompt = ids(20, 64);
    let continuations = [vec![5], ids(6, 33), ids(3, 11)];
    let scores =
        score_continuations(&llama, &[Segment::Ids(prompt.clone())], &continuations, &never).unwrap();
    for (continuation, score) in continuations.iter().zip(scores) {
        let all = [prompt.clone(), continuation.clone()].concat();
        let whole: f64 = token_log_probs(&llama, &all, &never).unwrap()[prompt.len() - 1..].iter().sum();
        assert!((whole - score).abs() < 1e-9, "{whole} {score}");
    }
    assert!(score_continuations(&llama, &[Segment::Ids(prompt.clone())], &[vec![]], &never).is_err());
    assert!(score_continuations(&llama, &[], &[vec![1]], &never).is_err());
    assert!(score_continuations(&llama, &[Segment::Ids(prompt)], &[vec![64]], &never).is_err());
    assert!(token_log_probs(&llama, &[1], &never).is_err());
}

fn answer(llama: &Llama, eos: &[u32], settings: &Generation) -> e2llm_lm::Generated {
    generate(llama, None, eos, &[Segment::Ids(ids(20, 64))], settings, &never).unwrap()
}

#[test]
fn answers_end_where_they_should_and_repeat_with_their_seed() {
    let llama = llama_of(&llama_json(), Precision::F32);
    let greedy = Generation { max_new_tokens: 12, ..Generation::default() };
    let plain = answer(&llama, &[], &greedy);
    assert_eq!((plain.ids.len(), plain.finish, plain.prompt_tokens), (12, Finish::Length, 20));
    let end = plain.ids[5];
    let first = plain.ids.iter().position(|id| *id == end).unwrap();
    let ended = answer(&llama, &[end], &greedy);
    assert_eq!((ended.ids.as_slice(), ended.finish), (&plain.ids[..first], Finish::Eos));

    let sampled = |seed, top_p| {
        let settings =
            Generation { temperature: 1.5, top_p, seed, max_new_tokens: 30, ..Generation::default() };
        answer(&llama, &[], &settings).ids
    };
    assert_eq!(sampled(1, 0.9), sampled(1, 0.9));
    assert_ne!(sampled(1, 0.9), sampled(2, 0.9));
    // So little probability is kept that only the likeliest token is left.
    assert_eq!(sampled(3, 1e-9)[..12], plain.ids[..]);

    let none = Generation { max_new_tokens: 0, ..Generation::default() };
    assert!(answer(&llama, &[], &none).ids.is_empty());
}

#[test]
fn unusable_settings_and_cancelling_are_errors() {
    let llama = llama_of(&llama_json(), Precision::F32);
    let run = |settings: Generation, prompt: &[Segment], cancelled: &dyn Fn() -> bool| {
        generate(&llama, None, &[], prompt, &settings, cancelled).unwrap_err()
    };
    let prompt = [Segment::Ids(ids(5, 64))];
    let default = Generation::default;
    assert!(matches!(run(Generation { temperature: -1.0, ..default() }, &prompt, &never), LmError::Input(_)));
    assert!(matches!(run(Generation { top_p: 0.0, ..default() }, &prompt, &never), LmError::Input(_)));
    assert!(matches!(
        run(Generation { stop: vec!["x".into()], ..default() }, &prompt, &never),
        LmError::Input(_)
    ));
    assert!(matches!(run(default(), &[], &never), LmError::Input(_)));
    assert!(matches!(run(default(), &prompt, &|| true), LmError::Cancelled));
    let asked = std::cell::Cell::new(0);
    let later = || asked.replace(asked.get() + 1) == 4;
    assert!(matches!(run(default(), &prompt, &later), LmError::Cancelled));
    assert!(run(default(), &[Segment::Ids(vec![64])], &never).to_string().contains("vocabulary"));
}

#[test]
fn configurations_round_trip_and_refuse_what_they_must() {
    let mut json = llama_json();
    json["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16});
    let config = llama_config(&json);
    assert_eq!(llama_config(&config.to_hf_json()), config);
    assert_eq!(
        (config.head_dim, config.parameters()),
        (16, 64 * 32 + 2 * (2 * 32 + 3 * 48 * 32 + 2 * 64 * 32 + 2 * 32 * 32) + 32)
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    for (key, value, message) in [
        ("model_type", json!("gpt2"), "gpt2"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("num_key_value_heads", json!(3), "divide"),
        ("head_dim", json!(7), "odd"),
        ("num_hidden_layers", json!(1u64 << 40), "num_hidden_layers"),
        ("vocab_size", json!(0), "vocab_size"),
        ("rope_theta", json!(-5.0), "rope_theta"),
    ] {
        let mut json = llama_json();
        json[key] = value;
        std::fs::write(&path, json.to_string()).unwrap();
        let error = LlamaConfig::from_file(&path).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("config.json"), "{error}");
    }
}
