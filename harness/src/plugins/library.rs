//! Loading a library.

use super::{Candidate, identity};
use crate::failure::{Failure, Result};
use e2llm_plugin::Identity;
use e2llm_plugin::client::Plugin;
use e2llm_plugin_abi as abi;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::path::Path;

/// Loads a library and checks its descriptor against what its file says. The library stays loaded until the
/// process ends: unloading Rust code that has thread-locals is unsound.
///
/// # Errors
/// What is wrong with the library, naming it.
pub fn load(path: &Path) -> Result<(Plugin, Identity)> {
    let refused = |why: String| Failure::failed(format!("plugin {} {why}", path.display()));
    let identity = identity::read(path).map_err(refused)?;
    let Some(identity) = identity else {
        return Err(refused("is no plugin of e2llm-bench: it has no identity section".into()));
    };
    // SAFETY: runs the library's initialisers with the user's rights; the user named the folder it is in.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|e| refused(format!("cannot be loaded: {e}")))?;
    // SAFETY: the type is the ABI's; a library that lies about it is beyond any check.
    let entry = unsafe { library.get::<abi::E2EntryFn>(abi::ENTRY_SYMBOL) }
        .map(|symbol| *symbol)
        .map_err(|e| refused(format!("does not export e2llm_plugin_entry: {e}")))?;
    std::mem::forget(library);
    // SAFETY: as the ABI says, it takes nothing and returns a static.
    let descriptor = unsafe { entry() };
    // SAFETY: the static of a library that is never unloaded.
    let plugin = unsafe { Plugin::from_raw(descriptor) }
        .map_err(|e| refused(format!("is refused: {}", e.message)).help(e.help))?;
    let (found, said) = ((plugin.kind(), plugin.id()), (identity.kind, identity.id.as_str()));
    if found != said || plugin.version() != identity.version {
        return Err(refused(format!(
            "contradicts itself: its file says {} `{}` {}, its code {} `{}` {}",
            said.0.name(),
            said.1,
            identity.version,
            found.0.name(),
            found.1,
            plugin.version()
        )));
    }
    Ok((plugin, identity))
}

impl Candidate {
    /// Loads it.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(&self) -> Result<Plugin> {
        load(&self.path).map(|(plugin, _)| plugin)
    }
}
