//! How far long work is, on standard error: a bar on a terminal, a line a second at most where there is none.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rebec_api::job::JobProgress;

use crate::{
    talk,
    text::{printable, report, size},
};

/// Between two lines where they cannot replace each other.
const PLAIN_PERIOD: Duration = Duration::from_secs(1);
/// How often the bar's wheel turns.
const TURN: Duration = Duration::from_millis(120);

/// Shows progress until it is dropped.
#[derive(Debug)]
pub struct Meter {
    bar: Option<ProgressBar>,
    said: Option<(Instant, String)>,
}

impl Meter {
    /// A meter that has shown nothing yet.
    pub fn new() -> Self {
        let bar = io::stderr().is_terminal().then(ProgressBar::hidden);
        Self { bar, said: None }
    }

    /// Shows how far `what` is.
    pub fn show(&mut self, what: &str, progress: &JobProgress) {
        match &self.bar {
            Some(bar) => {
                bar.set_style(style(progress));
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes.min(progress.total_bytes));
                bar.set_prefix(printable(what));
                bar.set_message(message(progress));
                if bar.is_hidden() {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(TURN);
                }
            }
            None => {
                let line = report::progress(progress);
                if due(&mut self.said, &line, Instant::now()) {
                    talk::say(&format!("{what}: {line}"));
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a line is to be said now: it is new, and the last one is old enough.
fn due(said: &mut Option<(Instant, String)>, line: &str, now: Instant) -> bool {
    let due = !line.is_empty() && said.as_ref().is_none_or(|(at, last)| last != line && now.duration_since(*at) >= PLAIN_PERIOD);
    if due {
        *said = Some((now, line.to_owned()));
    }
    due
}

fn style(progress: &JobProgress) -> ProgressStyle {
    let bar = "{spinner} {prefix} [{bar:20}] {percent:>3}%  {wide_msg}";
    let template = if progress.total_bytes == 0 { "{spinner} {prefix}: {wide_msg}" } else { bar };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ").tick_chars("|/-\\ ")
}

/// What stands beside the bar; a narrow terminal cuts its end off.
fn message(progress: &JobProgress) -> String {
    let phase = printable(&progress.phase);
    match (progress.done_bytes, progress.total_bytes) {
        (0, 0) => phase,
        (done, 0) => format!("{}, {phase}", size(done)),
        (done, total) => format!("{} of {}, {phase}", size(done), size(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_come_once_a_second_and_not_twice() {
        let (mut said, start) = (None, Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let lines = [
            (0, "", false),
            (0, "a", true),
            (10, "b", false),
            (1000, "a", false),
            (1001, "b", true),
            (1500, "c", false),
            (2001, "c", true),
        ];
        for (ms, line, expected) in lines {
            assert_eq!(due(&mut said, line, at(ms)), expected, "{line} at {ms}");
        }
    }
}
