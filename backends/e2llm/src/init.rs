//! Start values of everything that is trained: random, but the same for the same seed on every machine.

use candle_core::{Device, Result, Tensor, bail};
use e2llm_lm::{TensorSpec, uniform};
use std::collections::BTreeMap;

/// Name of the learned factor of all soft tokens.
pub(crate) const OUTPUT_SCALE: &str = "output_scale";

/// Start values as the reference's: LoRA `A` Kaiming-uniform with a = sqrt(5) and `B` zero, so that a fresh model's
/// base parts are unchanged; matrices and seeds of `vpma` Xavier-uniform; all other linears as torch starts
/// them; norms and `output_scale` one.
///
/// A tensor's values depend on the seed, its name and its shape only. They are float32 on the CPU.
///
/// # Errors
/// A name that no part of the model has.
pub fn initial_tensors(specs: &[TensorSpec], seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let shapes: BTreeMap<&str, &[usize]> =
        specs.iter().map(|s| (s.name.as_str(), s.shape.as_slice())).collect();
    let mut tensors = BTreeMap::new();
    for (&name, &shape) in &shapes {
        let len = shape.iter().product();
        let values = match start_of(name, shape, &shapes) {
            Some(Start::Constant(value)) => vec![value; len],
            Some(Start::Uniform(bound)) => uniform(seed, name, len, bound),
            None => bail!("no start values are known for `{name}`"),
        };
        tensors.insert(name.to_owned(), Tensor::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(tensors)
}

enum Start {
    Constant(f32),
    /// Between minus and plus this.
    Uniform(f64),
}

fn start_of(name: &str, shape: &[usize], shapes: &BTreeMap<&str, &[usize]>) -> Option<Start> {
    let xavier = |fan_in: usize, fan_out: usize| Start::Uniform((6.0 / (fan_in + fan_out) as f64).sqrt());
    // Kaiming-uniform with a = sqrt(5), and torch's biases.
    let torch = |fan_in: usize| Start::Uniform(1.0 / (fan_in as f64).sqrt());
    if name == OUTPUT_SCALE {
        return Some(Start::Constant(1.0));
    }
    if name.ends_with(".lora_B.weight") {
        return Some(Start::Constant(0.0));
    }
    if name.ends_with(".lora_A.weight") {
        return Some(torch(*shape.get(1)?));
    }
    let part = name.strip_prefix("adapter.")?;
    if part == "S" {
        // torch's fans of a tensor [1, k, D]: the last dimension counts as a receptive field.
        let (k, d) = (*shape.get(1)?, *shape.get(2)?);
        return Some(xavier(k * d, d));
    }
    let (layer, kind) = part.rsplit_once('.')?;
    if layer.starts_with("ln") {
        return Some(Start::Constant(if kind == "weight" { 1.0 } else { 0.0 }));
    }
    let weight = shapes.get(format!("adapter.{layer}.weight").as_str())?;
    let (fan_out, fan_in) = (*weight.first()?, *weight.get(1)?);
    Some(if kind == "weight" && layer.starts_with("fc_") { xavier(fan_in, fan_out) } else { torch(fan_in) })
}

/// `count` token ids in `3..vocabulary`, or from 0 where that is empty: an input that is nobody's text.
pub(crate) fn probe_ids(seed: u64, count: usize, vocabulary: usize) -> Vec<u32> {
    let low = if vocabulary > 3 { 3 } else { 0 };
    let span = (vocabulary.max(1) - low) as f32;
    let values = uniform(seed, "probe", count, 1.0);
    values.iter().map(|v| low as u32 + (((v + 1.0) / 2.0 * span) as u32).min(span as u32 - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, shape: &[usize]| TensorSpec::new(name, shape.to_vec());
        vec![
            spec("encoder.encoder.layer.0.attention.self.query.lora_A.weight", &[4, 16]),
            spec("encoder.encoder.layer.0.attention.self.query.lora_B.weight", &[16, 4]),
            spec("adapter.S", &[1, 2, 100]),
            spec("adapter.fc_k.weight", &[100, 50]),
            spec("adapter.fc_k.bias", &[100]),
            spec("adapter.ln0.weight", &[100]),
            spec("adapter.ln0.bias", &[100]),
            spec("output_scale", &[1]),
        ]
    }

    #[test]
    fn the_same_seed_gives_the_same_values_and_bounds_are_torchs() {
        let tensors = initial_tensors(&specs(), 7).unwrap();
        let again = initial_tensors(&specs()[2..], 7).unwrap();
        let other = initial_tensors(&specs(), 8).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (name, bound) in [
            ("encoder.encoder.layer.0.attention.self.query.lora_A.weight", 0.25),
            ("adapter.S", (6.0f32 / 300.0).sqrt()),
            ("adapter.fc_k.weight", 0.2),
            ("adapter.fc_k.bias", 1.0 / 50f32.sqrt()),
        ] {
            let v = values(&tensors[name]);
            let largest = v.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
            let mean = v.iter().sum::<f32>() / v.len() as f32;
            assert!(mean.abs() < 0.25 * bound, "{name}: mean {mean}");
            assert_ne!(v, values(&other[name]), "{name}");
        }
        assert_eq!(values(&tensors["adapter.S"]), values(&again["adapter.S"]));
        assert!(values(&tensors["adapter.ln0.weight"]).iter().all(|v| *v == 1.0));
        for zero in ["adapter.ln0.bias", "encoder.encoder.layer.0.attention.self.query.lora_B.weight"] {
            assert!(values(&tensors[zero]).iter().all(|v| *v == 0.0), "{zero}");
        }
        assert!(initial_tensors(&[TensorSpec::new("gate.weight", vec![2, 2])], 0).is_err());
    }

    #[test]
    fn probe_ids_are_in_the_vocabulary() {
        assert!(probe_ids(1, 500, 10).iter().all(|id| (3..10).contains(id)));
        assert!(probe_ids(1, 500, 2).iter().all(|id| *id < 2));
    }
}
