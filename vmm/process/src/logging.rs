//! What this process says about itself: one plain line each on standard error, without time or colour (whoever collects
//! standard error adds those). `REBEC_LOG` chooses how much; data never goes this way.

use std::io::Write;

use log::LevelFilter;

/// Starts logging. Belongs first in `main`, before anything can go wrong.
pub fn start() {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Warn).parse_env("REBEC_LOG");
    builder.format(|out, record| {
        // One line is one message, whatever a peer or a file name put into it.
        let text = record.args().to_string();
        let line: String = text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
        writeln!(out, "rebec-vmm: {}: {line}", record.level().as_str().to_lowercase())
    });
    builder.init();
}
