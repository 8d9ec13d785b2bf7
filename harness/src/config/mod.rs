//! What a run is: settings from flags, environment and a TOML file, in that order of precedence.

mod file;
mod flags;
mod settings;

pub use file::RunFile;
pub use flags::{ModelFlags, PluginDirs, RunArgs};
pub use settings::{BatchSize, DataChoice, RunSettings};
