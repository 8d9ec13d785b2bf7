//! The conformance kit: runs any plugin, through the C boundary, over what every host will do to it.
//!
//! In a plugin's own tests:
//!
//! ```ignore
//! #[test]
//! fn conforms() {
//!     e2llm_plugin::testing::assert_conforms(my_task::e2llm_plugin_entry);
//! }
//! ```
//! `e2llm-bench plugin verify FILE` runs the same checks on a library.

mod metric;
mod task;

use crate::client::Plugin;
use crate::{Kind, Result};
use e2llm_plugin_abi::E2Plugin;
use std::fmt;

/// Outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// What went wrong, if anything.
    pub failure: Option<String>,
}

/// Outcomes of all checks of a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order they ran.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether nothing failed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.failure.is_none())
    }

    /// Runs a check and keeps its outcome.
    fn check(&mut self, name: &'static str, f: impl FnOnce() -> std::result::Result<(), String>) {
        self.checks.push(Check { name, failure: f().err() });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in &self.checks {
            match &c.failure {
                None => writeln!(f, "ok      {}", c.name)?,
                Some(why) => writeln!(f, "FAILED  {}: {why}", c.name)?,
            }
        }
        Ok(())
    }
}

/// Runs all checks that fit the plugin's kind.
pub fn verify(plugin: &Plugin) -> Report {
    match plugin.kind() {
        Kind::Task => task::verify(plugin),
        Kind::Metric => metric::verify(plugin),
    }
}

/// Runs all checks on a plugin of the same program.
///
/// # Panics
/// With the report, where a check fails.
#[expect(clippy::panic, reason = "an assertion for tests")]
pub fn assert_conforms(entry: extern "C" fn() -> *const E2Plugin) {
    // SAFETY: the static of a plugin of this program.
    let plugin: Result<Plugin> = unsafe { Plugin::from_raw(entry()) };
    match plugin {
        Ok(plugin) => {
            let report = verify(&plugin);
            assert!(report.passed(), "plugin `{}` does not conform:\n{report}", plugin.id());
        }
        Err(e) => panic!("the descriptor is refused: {e}"),
    }
}

/// Fails with `message` unless `condition` holds.
fn ensure(condition: bool, message: impl FnOnce() -> String) -> std::result::Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

/// Calls that no plugin understands must be answered with an error, and the plugin must go on working.
fn check_unknown_method(plugin: &Plugin) -> std::result::Result<(), String> {
    let instance = plugin.create(None, &crate::TaskOptions::default()).map_err(|e| e.to_string())?;
    let odd = instance.call::<_, serde_json::Value>("no-such-method", &());
    let code = odd.err().map(|e| e.code);
    ensure(code == Some(crate::ErrorCode::NotImplemented), || format!("answered {code:?}"))?;
    let method = if plugin.kind() == Kind::Task { "extract" } else { "score" };
    let odd = instance.call::<_, serde_json::Value>(method, &[1, 2]);
    let code = odd.err().map(|e| e.code);
    ensure(code == Some(crate::ErrorCode::BadRequest), || format!("`{method}` of a list: {code:?}"))?;
    instance.call::<_, serde_json::Value>("info", &()).map(drop).map_err(|e| e.to_string())
}

/// Responses that models do give.
fn odd_responses() -> Vec<String> {
    vec![
        String::new(),
        " \n\t ".into(),
        "\u{fffd}\u{fffd}\0\u{1}".into(),
        "ａｎｓｗｅｒ \u{202e}תשובה 🙂 e\u{301}".into(),
        "(".into(),
        "A".into(),
        "word. ".repeat(40_000),
        "x".repeat(200_000),
    ]
}
