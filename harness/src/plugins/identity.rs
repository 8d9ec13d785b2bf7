//! A library's identity out of its file, without loading it.

use e2llm_plugin::Identity;
use e2llm_plugin_abi as abi;
use object::{Object, ObjectSection, ReadCache};
use std::fs::File;
use std::path::Path;

/// The identity section, `None` where the file is a sound library without one.
///
/// # Errors
/// What makes the file unusable as a plugin of this program.
pub(super) fn read(path: &Path) -> Result<Option<Identity>, String> {
    let file = File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    if file.metadata().is_ok_and(|m| m.len() == 0) {
        return Err("is empty".into());
    }
    let cache = ReadCache::new(file); // reads headers and one section, not megabytes of code
    let object = object::File::parse(&cache).map_err(|e| format!("is no shared library: {e}"))?;
    let section = object
        .sections()
        .find(|s| matches!(s.name(), Ok(name) if name == abi::IDENTITY_SECTION || name == "__e2llm_plugin"));
    let Some(section) = section else { return Ok(None) };
    let data = section.data().map_err(|e| format!("is truncated or damaged: {e}"))?;
    let text = std::str::from_utf8(data).map_err(|e| format!("has a damaged identity section: {e}"))?;
    let identity: Identity = serde_json::from_str(text.trim_end_matches('\0'))
        .map_err(|e| format!("has a damaged identity section: {e}"))?;
    if identity.abi_major != abi::E2_ABI_MAJOR {
        return Err(format!(
            "was built for plugin ABI {}.{}, this program has {}.{}: rebuild it with this program's SDK",
            identity.abi_major,
            identity.abi_minor,
            abi::E2_ABI_MAJOR,
            abi::E2_ABI_MINOR
        ));
    }
    Ok(Some(identity))
}
