//! A training that was interrupted is the same as one that was not.

use crate::support::{CancelAt, checkpoints, config, last, metrics, task, workshop};
use e2llm_backend::CancelFlag;
use e2llm_train::{End, RunOptions, TrainError, train};
use std::path::Path;

fn options(folder: &Path, resume: bool) -> RunOptions {
    RunOptions { folder: folder.to_owned(), resume, cancel: CancelFlag::default() }
}

#[test]
fn an_interrupted_training_goes_on_bit_for_bit() {
    let root = workshop(12);
    let config = config(root.path(), 11);
    let whole = root.path().join("whole");
    let outcome = train(&task(root.path(), &config), &config, &options(&whole, false), &mut ()).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Finished, 11));

    // Ended twice: within the first phase, and after the second began.
    let parts = root.path().join("parts");
    for step in [3, 7] {
        let options = options(&parts, true);
        let mut observer = CancelAt { step, cancel: options.cancel.clone() };
        let outcome = train(&task(root.path(), &config), &config, &options, &mut observer).unwrap();
        assert_eq!((outcome.end, outcome.steps), (End::Cancelled, step));
    }
    let outcome = train(&task(root.path(), &config), &config, &options(&parts, true), &mut ()).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Finished, 11));
    assert_eq!(metrics(&parts), metrics(&whole));
    for file in ["e2llm.safetensors", "state.safetensors", "state.json"] {
        let read = |folder: &Path| std::fs::read(last(folder).join(file)).unwrap();
        assert!(read(&parts) == read(&whole), "{file} differs");
    }
    let again = train(&task(root.path(), &config), &config, &options(&parts, true), &mut ()).unwrap();
    assert_eq!((again.end, again.steps), (End::Finished, 11), "nothing is left to do");
}

#[test]
fn checkpoints_are_kept_as_asked_and_can_be_used() {
    let root = workshop(12);
    let mut config = config(root.path(), 9);
    config.output.keep = 2;
    let folder = root.path().join("out");
    let outcome = train(&task(root.path(), &config), &config, &options(&folder, false), &mut ()).unwrap();
    let best = outcome.best.unwrap();
    let mut expected = vec![format!("step-{:08}", best.step), "step-00000008".into(), "step-00000009".into()];
    expected.sort();
    expected.dedup();
    assert_eq!(checkpoints(&folder), expected);
    #[cfg(unix)]
    for (link, step) in [("last", 9), ("best", best.step)] {
        assert!(std::fs::read_link(folder.join(link)).unwrap().ends_with(format!("step-{step:08}")));
    }
    // What was trained is the start of another training.
    let mut next = config.clone();
    next.model.start = Some(folder.join("checkpoints/step-00000009"));
    let model = task(root.path(), &next);
    assert_eq!(model.model().config().soft_tokens_per_chunk, 3);
    // Not that it is untrained; two chunks are read of texts of several.
    assert!(
        model.warnings().len() == 1 && model.warnings()[0].contains("contexts"),
        "{:?}",
        model.warnings()
    );
    let reference =
        std::fs::read_to_string(folder.join("checkpoints/step-00000009/encoder/source.toml")).unwrap();
    assert!(reference.contains("source = \"encoder\"") && reference.contains("sha256"), "{reference}");
    let listed = std::fs::read_to_string(folder.join("checkpoints/step-00000009/trained_on.txt")).unwrap();
    let documents = std::fs::read_to_string(config.data.folder.join("train/documents.txt")).unwrap();
    assert_eq!(listed.lines().count(), documents.lines().count());
    assert!(documents.lines().all(|d| listed.contains(&d[..16])));
    for file in ["metrics.jsonl", "loss.svg", "config.toml"] {
        assert!(folder.join(file).metadata().unwrap().len() > 0, "{file}");
    }
}

#[test]
fn other_settings_are_refused_and_listed() {
    let root = workshop(8);
    let first = config(root.path(), 3);
    let folder = root.path().join("out");
    train(&task(root.path(), &first), &first, &options(&folder, false), &mut ()).unwrap();
    let error = train(&task(root.path(), &first), &first, &options(&folder, false), &mut ()).unwrap_err();
    assert!(error.to_string().contains("resume"), "{error}");
    let mut other = first.clone();
    other.optimizer.lr = 1.0;
    other.model.soft_tokens_per_chunk = 2;
    let error = train(&task(root.path(), &other), &other, &options(&folder, true), &mut ()).unwrap_err();
    let TrainError::Changed { differences, .. } = &error else { panic!("{error}") };
    assert_eq!(differences.len(), 2, "{differences:?}");
    assert!(differences.iter().any(|d| d.contains("soft_tokens_per_chunk: was 3, now 2")), "{differences:?}");
    let mut free = first.clone();
    free.output.keep = 1;
    assert!(train(&task(root.path(), &free), &free, &options(&folder, true), &mut ()).is_ok());
}

#[test]
fn a_checkpoint_of_another_architecture_or_other_data_is_refused() {
    let root = workshop(8);
    let first = config(root.path(), 3);
    let folder = root.path().join("out");
    train(&task(root.path(), &first), &first, &options(&folder, false), &mut ()).unwrap();
    let state = last(&folder).join("state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replace("\"fingerprint\": \"", "\"fingerprint\": \"x")).unwrap();
    let error = train(&task(root.path(), &first), &first, &options(&folder, true), &mut ()).unwrap_err();
    assert!(matches!(error, TrainError::Changed { .. }), "{error}");
    std::fs::write(&state, text).unwrap();
    let tensors = last(&folder).join("state.safetensors");
    let mut all = candle_core::safetensors::load(&tensors, &candle_core::Device::Cpu).unwrap();
    let scale = all.remove("weight.output_scale").unwrap();
    all.insert("weight.adapter.S".into(), scale);
    candle_core::safetensors::save(&all, &tensors).unwrap();
    let error = train(&task(root.path(), &first), &first, &options(&folder, true), &mut ()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("weight.output_scale is missing") && error.contains("adapter.S"), "{error}");
}
