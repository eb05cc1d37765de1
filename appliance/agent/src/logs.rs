//! What the agent says: to standard error as ever, and its last lines in memory for a support bundle.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use log::{Log, Metadata, Record};

use crate::chance::now_s;

/// Lines that are remembered.
const LINES_MAX: usize = 2000;
/// Of a line, what is remembered.
const LINE_BYTES_MAX: usize = 1 << 10;

/// The last lines. The log facade is one for the whole process, and so is this.
static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

struct Both(env_logger::Logger);

impl Log for Both {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.0.matches(record) {
            self.0.log(record);
            keep(&format!("{} {} {}", now_s(), record.level(), record.args()));
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Begins to log.
pub fn begin() {
    let filter = env_logger::Env::default().default_filter_or("info,iroh=warn,noq=warn,tracing=warn");
    let logger = env_logger::Builder::from_env(filter).format_target(false).build();
    let level = logger.filter();
    // Where somebody logs already, as in a test, that one goes on.
    if log::set_boxed_logger(Box::new(Both(logger))).is_ok() {
        log::set_max_level(level);
    }
}

/// Remembers a line.
pub fn keep(line: &str) {
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    if lines.len() >= LINES_MAX {
        lines.pop_front();
    }
    lines.push_back(line[..line.floor_char_boundary(LINE_BYTES_MAX)].to_owned());
}

/// What is remembered.
pub fn tail() -> String {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}
