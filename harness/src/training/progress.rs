//! Progress of a training on stderr: a bar on a terminal, now and then a line elsewhere.

use crate::notes::note;
use e2llm_train::{Observer, StepReport, ValidationReport};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// Steps that the shown speed and loss are means of, about.
const MEMORY: f64 = 20.0;

/// Shows how a training goes on.
pub struct TrainReporter {
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
    first: usize,
    total: usize,
    last_line: Option<Instant>,
    loss: Option<f64>,
    speed: Option<f64>,
}

impl TrainReporter {
    /// A reporter, which says nothing where `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self {
            bar: None,
            quiet,
            started: Instant::now(),
            first: 0,
            total: 0,
            last_line: None,
            loss: None,
            speed: None,
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if !self.quiet => note(text),
            None => {}
        }
    }

    /// Ends the bar, leaving it on the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

impl Observer for TrainReporter {
    fn start(&mut self, step: usize, total: usize) {
        (self.first, self.total, self.started) = (step, total, Instant::now());
        if step > 0 {
            self.say(&format!("going on after step {step} of {total}"));
        }
        if !self.quiet && std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total as u64).with_position(step as u64);
            let style =
                ProgressStyle::with_template("[{bar:30}] {pos}/{len} {elapsed_precise} (ETA {eta}) {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, r: &StepReport) {
        let made = r.step.saturating_sub(self.first).max(1) as f64;
        let part = 1.0 / MEMORY.min(made);
        let mean = |old: Option<f64>, new: f64| Some(old.map_or(new, |o| o + (new - o) * part));
        self.loss = mean(self.loss, r.loss);
        self.speed = mean(self.speed, r.tokens_per_second);
        let (loss, speed) = (self.loss.unwrap_or(0.0), self.speed.unwrap_or(0.0));
        let message = format!("loss {:.3} (mean {loss:.3}), {speed:.0} tokens/s, lr {:.1e}", r.loss, r.lr);
        if let Some(bar) = &self.bar {
            bar.set_message(message);
            bar.set_position(r.step as u64);
            return;
        }
        let due = self.last_line.is_none_or(|t| t.elapsed() > BETWEEN_LINES) || r.step == self.total;
        if !self.quiet && due {
            self.last_line = Some(Instant::now());
            let each = self.started.elapsed().as_secs_f64() / made;
            let left = each * self.total.saturating_sub(r.step) as f64;
            note(&format!("step {}/{}: {message}, {each:.2} s a step, ETA {left:.0} s", r.step, self.total));
        }
    }

    fn validation(&mut self, r: &ValidationReport) {
        let part = |name: &str, value: Option<f64>| value.map(|v| format!("{name} {v:.4}"));
        let parts = [
            part("reasoning", r.validation_reasoning),
            part("reconstruction", r.validation_reconstruction),
            r.best.then(|| "the best so far".to_owned()),
        ];
        let text: Vec<_> = parts.into_iter().flatten().collect();
        self.say(&format!(
            "step {}: validation {} (nats/token, {:.1} s)",
            r.step,
            text.join(", "),
            r.seconds
        ));
    }

    fn checkpoint(&mut self, folder: &Path) {
        if self.bar.is_some() {
            self.say(&format!("checkpoint {}", folder.display()));
        }
    }
}
