//! What a run is: settings from flags, environment and a TOML file, in that order of precedence.

mod file;
mod flags;
mod many;
mod settings;
mod toml_text;

pub use file::RunFile;
pub use flags::{ModelFlags, PluginDirs, RunArgs};
pub use many::Asked;
pub use settings::{BatchSize, DataChoice, RunSettings};
pub(crate) use toml_text::parse_toml;
