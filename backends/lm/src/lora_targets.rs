//! Which linears of an architecture get LoRA: `configs/lora.toml`.

use crate::{LmError, Result};
use std::collections::BTreeMap;

type Table = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The targets of an architecture (`model_type` of `config.json`) in a set of `configs/lora.toml`, e.g. `paper`.
///
/// # Errors
/// An architecture or set that the file does not have; the message names those it has.
pub fn lora_targets(model_type: &str, set: &str) -> Result<Vec<String>> {
    let table: Table = toml::from_str(include_str!("../../../configs/lora.toml"))
        .map_err(|e| LmError::Input(format!("configs/lora.toml: {e}")))?;
    let names = |keys: Vec<&String>| keys.into_iter().cloned().collect::<Vec<_>>().join(", ");
    let sets = table.get(model_type).ok_or_else(|| {
        LmError::Unsupported(format!(
            "no LoRA targets for architecture `{model_type}`: configs/lora.toml has {}",
            names(table.keys().collect())
        ))
    })?;
    sets.get(set).cloned().ok_or_else(|| {
        LmError::Input(format!(
            "no LoRA targets `{set}` for `{model_type}`: configs/lora.toml has {}",
            names(sets.keys().collect())
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_and_unknown_ones_named() {
        assert_eq!(lora_targets("bert", "paper").unwrap(), ["query", "key", "value"]);
        assert_eq!(lora_targets("llama", "all").unwrap().len(), 7);
        assert!(lora_targets("llama", "some").unwrap_err().to_string().contains("all, paper"));
        assert!(lora_targets("gpt", "all").unwrap_err().to_string().contains("bert, llama"));
    }
}
