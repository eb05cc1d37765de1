//! Pages a second of one core through the move's page functions: the example of `vmm/migrate`, built for release and run here.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Figure, Peer, Target};
use crate::{command::Program, paths};

/// A first build on two busy cores.
const DEADLINE: Duration = Duration::from_secs(900);
/// Pages of 4 KiB that 1 Gbit/s carries in a second.
const GIGABIT_PAGES: f64 = 1e9 / 8.0 / 4096.0;

/// One figure for each kind of content.
pub fn measure() -> Result<Vec<Figure>> {
    let said = Program::new("cargo")
        .args(["run", "--quiet", "--release", "--package", "rebec-migrate", "--example", "throughput", "--target-dir"])
        .arg(paths::lab().join("bench-engine"))
        .folder(paths::workspace())
        .deadline(DEADLINE)
        .output()
        .context("run the move engine's example")?;
    let figures: Option<Vec<Figure>> = said.lines().skip(1).map(figure).collect();
    figures.filter(|figures| !figures.is_empty()).with_context(|| format!("the move engine's example printed `{}`", said.trim()))
}

/// `content judge pack unpack source ratio`, all but the first in pages a second.
fn figure(line: &str) -> Option<Figure> {
    let cells: Vec<&str> = line.split_whitespace().collect();
    let [content, judge, pack, unpack, source, ..] = cells[..] else { return None };
    Some(Figure {
        name: format!("source engine, one core, {content}"),
        unit: "pages/s",
        measured: source.parse().ok()?,
        target: Target::None,
        peers: vec![Peer { name: "bare 1 Gbit/s".into(), value: GIGABIT_PAGES.round() }],
        how: format!(
            "`throughput` of vmm/migrate: zero test and BLAKE3 {judge}, packing with zstd {pack}, unpacking and verifying at the target {unpack} pages/s"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_example_is_a_figure() {
        let found = figure("text 900 800 700 424 14.8").unwrap();
        assert!(found.name.ends_with("text") && found.how.contains("verifying at the target 700"), "{found:?}");
        assert!((found.measured - 424.0).abs() < 0.1);
        assert!(figure("text 900").is_none() && figure("a b c d e f").is_none());
    }
}
