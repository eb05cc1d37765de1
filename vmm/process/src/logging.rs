//! What this process says about itself: one plain line each on standard error, without time or colour (whoever collects
//! standard error adds those). `REBEC_LOG` chooses how much; data never goes this way.
//!
//! A guest, a peer or an image can make the same line be said again and again, onto the disk of the host: each place in the program has so many lines a
//! minute, whoever is the cause. What was asked for beyond the ordinary (`debug`, `trace`) is not counted.

use std::{
    collections::HashMap,
    io::Write,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use env_logger::Logger;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Lines of one place within [`PERIOD`].
const LINES_MAX: u32 = 20;
const PERIOD: Duration = Duration::from_secs(60);
/// A line is cut here: names and reasons of others may be in it.
const LINE_CHARS_MAX: usize = 2000;

/// Starts logging. Belongs first in `main`, before anything can go wrong.
pub fn start() {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Warn).parse_env("REBEC_LOG");
    builder.format(|out, record| {
        // One line is one message, whatever a peer or a file name put into it.
        let text = record.args().to_string();
        let line = text.chars().take(LINE_CHARS_MAX).map(|character| if character.is_control() { ' ' } else { character });
        writeln!(out, "rebec-vmm: {}: {}", record.level().as_str().to_lowercase(), line.collect::<String>())
    });
    let inner = builder.build();
    let filter = inner.filter();
    // Nothing was set before: this is the first thing that a process does.
    if log::set_boxed_logger(Box::new(Limited { inner, places: Mutex::default() })).is_ok() {
        log::set_max_level(filter);
    }
}

/// A logger that says no place's line too often.
struct Limited {
    inner: Logger,
    /// By file and line of the program: as many as there are. Held for a look, never while a line is written.
    places: Mutex<HashMap<(&'static str, u32), Place>>,
}

impl Log for Limited {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.inner.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.inner.matches(record) {
            return;
        }
        let place = record.file_static().zip(record.line()).filter(|_| record.level() <= Level::Info);
        let left_out = match place {
            None => Some(0),
            Some(place) => {
                let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
                places.entry(place).or_default().admit(Instant::now())
            }
        };
        let Some(left_out) = left_out else { return };
        if left_out > 0 {
            let args = format_args!("{left_out} lines like the next one were left out");
            self.inner.log(&Record::builder().metadata(record.metadata().clone()).args(args).build());
        }
        self.inner.log(record);
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

/// What one place of the program has said lately.
#[derive(Default)]
struct Place {
    since: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Place {
    /// Whether it may say another line, and how many it could not since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            (self.since, self.said) = (Some(now), 0);
        }
        if self.said == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_caused_again_and_again_is_said_some_times_and_then_counted() {
        let (mut place, start) = (Place::default(), Instant::now());
        let said = (0..1_000_000).filter(|_| place.admit(start).is_some()).count();
        assert_eq!(said, LINES_MAX as usize);
        assert_eq!(place.admit(start + PERIOD - Duration::from_millis(1)), None);
        assert_eq!(place.admit(start + PERIOD), Some(1_000_001 - u64::from(LINES_MAX)));
        assert_eq!(place.admit(start + PERIOD), Some(0));
    }
}
