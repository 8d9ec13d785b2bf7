//! Progress of a fetch on stderr.

use crate::notes::note;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal as _;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Bars, on a terminal.
    Bars,
    /// A line at the start of each step.
    Lines,
    /// Nothing.
    Quiet,
}

impl Progress {
    /// Bars on a terminal, lines elsewhere, nothing where quiet.
    pub(crate) fn new(quiet: bool) -> Self {
        match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Self::Quiet,
            (_, true) => Self::Bars,
            _ => Self::Lines,
        }
    }

    /// A line, unless quiet.
    pub(crate) fn say(self, line: &str) {
        if self != Self::Quiet {
            note(line);
        }
    }

    /// A meter for the bytes of `what`, where known so many.
    pub(crate) fn meter(self, what: &str, total: Option<u64>) -> Meter {
        if self != Self::Bars {
            let size = total.map(|n| format!(" ({})", HumanBytes(n))).unwrap_or_default();
            self.say(&format!("fetching {what}{size}"));
            return Meter(ProgressBar::hidden());
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        let template = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} ({eta})";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        Meter(bar)
    }
}

/// Counts bytes; its bar goes away with its last clone.
#[derive(Debug, Clone)]
pub(crate) struct Meter(ProgressBar);

impl Meter {
    /// A meter that shows nothing.
    pub(crate) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    pub(crate) fn set_total(&self, bytes: u64) {
        self.0.set_length(bytes);
    }

    pub(crate) fn set(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

impl hf_hub::api::Progress for Meter {
    fn init(&mut self, size: usize, _filename: &str) {
        self.0.set_length(size as u64);
        self.0.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}
