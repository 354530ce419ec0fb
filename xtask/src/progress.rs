//! What happens now, for the person who waits: a bar on a terminal, a line per step elsewhere.

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// One step that takes a while.
pub struct Step {
    bar: ProgressBar,
    label: String,
    started: Instant,
}

impl Step {
    /// Begins a step; `length` is how much there is to do, if that is known.
    pub fn begin(label: &str, length: Option<u64>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target =
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(length, target);
        let template = match length {
            Some(_) => "{spinner} {prefix} {bar:30} {pos}/{len} {wide_msg}",
            None => "{spinner} {prefix} {wide_msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, label: label.to_owned(), started: Instant::now() }
    }

    /// One more of the things to do is done; `what` is shown until the next.
    pub fn advance(&self, what: &str) {
        self.bar.inc(1);
        self.bar.set_message(what.to_owned());
    }

    /// Ends the step and leaves one line that says how it went.
    pub fn end(self, good: bool) {
        self.bar.finish_and_clear();
        let verdict = if good { "ok" } else { "FAILED" };
        anstream::eprintln!(
            "{:>7.1}s  {verdict:6}  {}",
            self.started.elapsed().as_secs_f32(),
            self.label
        );
    }
}

/// Does something as one step.
///
/// # Errors
/// What `work` fails with, and what was being done.
pub fn step<T>(label: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let step = Step::begin(label, None);
    let result = work();
    step.end(result.is_ok());
    result.with_context(|| format!("{label} failed"))
}
