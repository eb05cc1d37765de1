//! What the image build and the lab tell a person while they work: one line a step on stderr, with the seconds since the start.
//!
//! Results go to stdout and are printed by whoever has them; this is talk only.

use std::{sync::OnceLock, time::Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// Seconds since the first line.
pub fn elapsed_seconds() -> f64 {
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Prints one line of talk. `area` is the part at work, as in `provision` or `machine a`.
pub fn say(area: &str, text: impl std::fmt::Display) {
    eprintln!("[{:6.1}] {area}: {text}", elapsed_seconds());
}
