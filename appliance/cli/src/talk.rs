//! What is said to the person at the terminal, on standard error. Who closed it does not want to hear, and that is no failure.

use std::io::{self, Write as _};

use crate::text::printable;

/// Says one line.
pub fn say(line: &str) {
    raw(&(printable(line) + "\n"));
}

/// Says text that is fit for a terminal already.
pub fn raw(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}
