//! Base weights held once for several models.

use crate::support::{distance, folder, llama_config, llama_json};
use candle_core::Device;
use e2llm_lm::{Llama, Precision, StoreCounts, TensorStore, Weights};

#[test]
fn models_of_one_file_share_its_tensors_and_others_do_not() {
    let json = llama_json();
    let config = llama_config(&json);
    let (ours, other) = (folder(&json, &config.tensors()), folder(&json, &config.tensors()));
    let store = TensorStore::default();
    let load = |folder: &std::path::Path, precision| {
        let weights = Weights::open(folder).unwrap();
        Llama::load(&config, &weights, None, &Device::Cpu, precision).unwrap()
    };
    let n = config.tensors().len() as u64;
    let first = store.share(|| load(ours.path(), Precision::F32));
    let second = store.share(|| load(ours.path(), Precision::F32));
    assert_eq!(store.counts(), StoreCounts { read: n, shared: n });
    let ids = [1, 5, 9, 2];
    let hidden = |llama: &Llama| llama.forward_hidden(&llama.embed(&ids).unwrap(), None, None).unwrap();
    assert_eq!(distance(&hidden(&first), &hidden(&second)), 0.0);

    // another precision, another file, nobody's store
    store.share(|| load(ours.path(), Precision::BF16));
    store.share(|| load(other.path(), Precision::F32));
    load(ours.path(), Precision::F32);
    assert_eq!(store.counts(), StoreCounts { read: 3 * n, shared: n });

    store.keep_only(&[other.path()]);
    store.share(|| load(other.path(), Precision::F32));
    store.share(|| load(ours.path(), Precision::F32));
    assert_eq!(store.counts(), StoreCounts { read: 4 * n, shared: 2 * n });
    assert_eq!(distance(&hidden(&first), &hidden(&second)), 0.0, "models outlive what the store lets go");
}
