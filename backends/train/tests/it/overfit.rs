//! Small models learn a few examples by heart.

use crate::support::{config, sources, task, workshop};
use candle_core::Device;
use e2llm_lm::{LoraConfig, PeftAdapter};
use e2llm_train::config::{Method, Phase};
use e2llm_train::{RunOptions, SftTask, Trainable, train};

fn everywhere() -> LoraConfig {
    let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    LoraConfig { r: 16, lora_alpha: 32.0, target_modules: names.map(Into::into).into() }
}

#[test]
fn e2llm_learns_to_restate_and_to_answer() {
    let root = workshop(6);
    let mut config = config(root.path(), 1);
    config.optimizer.lr = 1e-2;
    config.phase =
        vec![Phase { steps: 150, reasoning_batch: 6, reconstruction_batch: 6, ..Phase::default() }];
    config.model.encoder_lora.target_modules = ["query", "key", "value", "dense"].map(Into::into).into();
    config.model.decoder_lora = everywhere();
    config.compute.micro_positions = 0;
    config.validation.every = 0;
    let folder = root.path().join("out");
    let options = RunOptions { folder: folder.clone(), ..RunOptions::default() };
    train(&task(root.path(), &config), &config, &options, &mut ()).unwrap();
    let metrics = crate::support::metrics(&folder);
    let steps: Vec<_> = metrics.iter().filter(|l| l.get("loss").is_some()).collect();
    for (name, bar) in [("reasoning", 0.35), ("reconstruction", 0.6)] {
        let at = |i: usize| steps[i][name].as_f64().unwrap();
        assert!(at(steps.len() - 1) < bar * at(0), "{name}: from {} to {}", at(0), at(steps.len() - 1));
    }
}

#[test]
fn a_plain_decoder_goes_through_the_same_loop() {
    let root = workshop(6);
    for method in [Method::SftTruncate, Method::SftNoContext] {
        let mut config = config(root.path(), 1);
        config.model.method = method;
        config.optimizer.lr = 1e-2;
        config.data.max_context_tokens = 20;
        config.model.decoder_lora = everywhere();
        config.phase = vec![Phase { steps: 60, reasoning_batch: 6, ..Phase::default() }];
        config.validation.every = 0;
        let model = SftTask::open(&sources(root.path()), &config, &Device::Cpu).unwrap();
        let folder = root.path().join(format!("{method:?}"));
        let options = RunOptions { folder: folder.clone(), ..RunOptions::default() };
        let last = train(&model, &config, &options, &mut ()).unwrap().last;
        let metrics = crate::support::metrics(&folder);
        let losses: Vec<f64> = metrics.iter().filter_map(|l| l["reasoning"].as_f64()).collect();
        assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{method:?}: {losses:?}");

        let adapter = PeftAdapter::read(&last).unwrap();
        assert_eq!(adapter.config, config.model.decoder_lora);
        assert_eq!(adapter.tensors.len(), model.vars().len());
        config.model.start = Some(last);
        let again = SftTask::open(&sources(root.path()), &config, &Device::Cpu).unwrap();
        for (name, var) in model.vars() {
            let values = |v: &candle_core::Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(var), values(&again.vars()[name]), "{name}");
        }
    }
}
