//! A plugin's identity, kept in a section of its file so that a listing need not run its code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The target triple this crate is built for.
pub const TARGET: &str = env!("E2LLM_TARGET");

/// Task or metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A benchmark.
    Task,
    /// A metric family.
    Metric,
}

impl Kind {
    /// The kind's number in the ABI.
    pub const fn number(self) -> u32 {
        match self {
            Self::Task => e2llm_plugin_abi::E2_KIND_TASK,
            Self::Metric => e2llm_plugin_abi::E2_KIND_METRIC,
        }
    }

    /// `task` or `metric`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Metric => "metric",
        }
    }
}

/// The JSON in the identity section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Identity {
    /// Name within its kind.
    pub id: String,
    /// Task or metric.
    pub kind: Kind,
    /// The plugin's version.
    pub version: String,
    /// Major ABI version.
    pub abi_major: u16,
    /// Minor ABI version.
    pub abi_minor: u16,
    /// Target triple.
    pub target: String,
    /// One line for listings.
    pub description: String,
    /// Metric ids it provides, separated by spaces; empty for a task.
    #[serde(default)]
    pub provides: String,
}

/// Parts of the JSON, in order; only texts without quotes and backslashes may go in.
const fn parts<'a>(
    id: &'a str,
    kind: &'a str,
    version: &'a str,
    about: &'a str,
    provides: &'a str,
) -> [&'a str; 13] {
    [
        "{\"id\":\"",
        id,
        "\",\"kind\":\"",
        kind,
        "\",\"version\":\"",
        version,
        "\",\"abi_major\":1,\"abi_minor\":0,\"target\":\"",
        TARGET,
        "\",\"description\":\"",
        about,
        "\",\"provides\":\"",
        provides,
        "\"}",
    ]
}

// the numbers in `parts` are the ABI's
const _: () = assert!(e2llm_plugin_abi::E2_ABI_MAJOR == 1 && e2llm_plugin_abi::E2_ABI_MINOR == 0);

/// Length of [`identity_bytes`].
pub const fn identity_len(id: &str, kind: Kind, version: &str, about: &str, provides: &str) -> usize {
    let parts = parts(id, kind.name(), version, about, provides);
    let (mut n, mut i) = (0, 0);
    while i < parts.len() {
        n += parts[i].len();
        i += 1;
    }
    n
}

/// The identity's JSON as a constant, for the section.
///
/// # Panics
/// At compile time, where a text holds a quote, a backslash or a control character.
pub const fn identity_bytes<const N: usize>(
    id: &str,
    kind: Kind,
    version: &str,
    about: &str,
    provides: &str,
) -> [u8; N] {
    let values = [id, version, about, provides];
    let mut i = 0;
    while i < values.len() {
        let bytes = values[i].as_bytes();
        let mut j = 0;
        while j < bytes.len() {
            assert!(
                bytes[j] != b'"' && bytes[j] != b'\\' && bytes[j] >= b' ',
                "a plugin's id, version and description hold no quotes, backslashes or control characters"
            );
            j += 1;
        }
        i += 1;
    }
    let parts = parts(id, kind.name(), version, about, provides);
    let mut out = [0; N];
    let (mut at, mut i) = (0, 0);
    while i < parts.len() {
        let bytes = parts[i].as_bytes();
        let mut j = 0;
        while j < bytes.len() {
            out[at] = bytes[j];
            at += 1;
            j += 1;
        }
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_section_is_json() {
        const ARGS: (&str, Kind, &str, &str, &str) = ("a-b", Kind::Metric, "1.2.3", "About it", "x y+z");
        const N: usize = identity_len(ARGS.0, ARGS.1, ARGS.2, ARGS.3, ARGS.4);
        const BYTES: [u8; N] = identity_bytes(ARGS.0, ARGS.1, ARGS.2, ARGS.3, ARGS.4);
        let identity: Identity = serde_json::from_slice(&BYTES).unwrap();
        assert_eq!(identity.id, "a-b");
        assert_eq!(identity.kind, Kind::Metric);
        assert_eq!(identity.target, TARGET);
        assert_eq!(identity.provides, "x y+z");
    }
}
