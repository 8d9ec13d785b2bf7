//! Progress on stderr: a bar per task on a terminal, now and then a line elsewhere.

use crate::notes::note;
use e2llm_plugin::Scores;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Shows how a task goes on.
pub struct Reporter {
    task: String,
    total: u64,
    done: u64,
    started: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
    primary: String,
    /// Sums of the values that make the primary metric.
    sums: BTreeMap<String, f64>,
    scored: u64,
}

impl Reporter {
    /// Starts a task of `total` samples, ranked by `primary`, whose value is made of the means of `parts`.
    pub fn new(task: &str, total: u64, primary: &str, parts: Vec<String>, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template(
                "{prefix:>14} [{bar:30}] {pos}/{len} {elapsed_precise} (ETA {eta}) {msg}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_prefix(task.to_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        let now = Instant::now();
        let sums = parts.into_iter().map(|p| (p, 0.0)).collect();
        Self {
            task: task.into(),
            total,
            done: 0,
            started: now,
            last_line: now,
            bar,
            quiet,
            primary: primary.into(),
            sums,
            scored: 0,
        }
    }

    /// Samples that were there already.
    pub fn resumed(&mut self, n: u64) {
        self.done += n;
        if let Some(bar) = &self.bar {
            bar.inc(n);
            bar.reset_eta();
        } else if n > 0 && !self.quiet {
            note(&format!("{}: {n} of {} samples were done before", self.task, self.total));
        }
    }

    /// One more sample; a value it does not have counts as 0.
    pub fn sample(&mut self, scores: &Scores) {
        self.done += 1;
        self.scored += 1;
        for (id, sum) in &mut self.sums {
            *sum += scores.get(id).copied().unwrap_or(0.0);
        }
        let product: f64 = self.sums.values().map(|sum| sum / self.scored as f64).product();
        let value = product.powf(1.0 / self.sums.len().max(1) as f64);
        let score = format!("{} {:.1}", self.primary, 100.0 * value);
        if let Some(bar) = &self.bar {
            bar.set_message(score);
            bar.inc(1);
        } else if !self.quiet && (self.last_line.elapsed() > BETWEEN_LINES || self.done == self.total) {
            self.last_line = Instant::now();
            let seconds = self.started.elapsed().as_secs_f64();
            note(&format!("{}: {}/{} in {seconds:.0} s, {score}", self.task, self.done, self.total));
        }
    }

    /// Something a user should see now.
    pub fn warn(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("{}: {message}", self.task)),
            None => note(&format!("{}: {message}", self.task)),
        }
    }

    /// Ends the task's bar, leaving it on the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
