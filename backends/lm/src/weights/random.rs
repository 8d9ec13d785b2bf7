//! Weights out of nothing, for measuring speed.

use crate::config::read_json;
use crate::{LmError, Result as LmResult};
use candle_core::{Device, Result, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Deviation of the elements of a matrix.
const DEVIATION: f32 = 0.02;

/// `random_weights.json`: stands in a model's folder for weights that are made when it is loaded, as `config.json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomWeights {
    /// What they are made of.
    pub seed: u64,
}

impl RandomWeights {
    /// The file's name.
    pub const FILE: &str = "random_weights.json";

    /// What a folder's file says, and the file; `None` without one.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(folder: &Path) -> LmResult<Option<(PathBuf, Self)>> {
        let path = folder.join(Self::FILE);
        if path.is_file() { read_json(&path).map(|read| Some((path, read))) } else { Ok(None) }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(self, folder: &Path) -> LmResult<()> {
        let path = folder.join(Self::FILE);
        let text = serde_json::to_string(&self).map_err(|e| LmError::file(&path, e))?;
        std::fs::write(&path, text + "\n").map_err(|e| LmError::io(&path, e))
    }
}

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
