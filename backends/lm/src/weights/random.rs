//! Weights out of nothing, for measuring speed.

use candle_core::{Device, Result, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// Deviation of the elements of a matrix.
const DEVIATION: f32 = 0.02;

/// `len` numbers between `-bound` and `bound`, from a stream of their own for each name.
pub fn uniform(seed: u64, name: &str, len: usize, bound: f64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::from_seed(key(seed, name));
    let steps = f64::from(1u32 << 24);
    (0..len).map(|_| ((f64::from(rng.next_u32() >> 8) / steps * 2.0 - 1.0) * bound) as f32).collect()
}

fn key(seed: u64, name: &str) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize().into()
}

/// A tensor in float32. What kind it is, its name and its dimensions say.
pub(super) fn tensor(name: &str, shape: &[usize], seed: u64, device: &Device) -> Result<Tensor> {
    if shape.len() < 2 {
        let is_factor = name.to_ascii_lowercase().ends_with("norm.weight");
        return Tensor::full(if is_factor { 1f32 } else { 0.0 }, shape, device);
    }
    if device.is_cpu() {
        // A uniform distribution of that deviation; candle's generator of the CPU cannot be seeded.
        let bound = f64::from(DEVIATION) * 3f64.sqrt();
        return Tensor::from_vec(uniform(seed, name, shape.iter().product(), bound), shape, device);
    }
    let [a, b, c, d, e, f, g, h, ..] = key(seed, name);
    device.set_seed(u64::from_le_bytes([a, b, c, d, e, f, g, h]))?;
    Tensor::randn(0f32, DEVIATION, shape, device)
}
