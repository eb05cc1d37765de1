//! How soon the index over a donor's memory stands: the example of `vmm/process`, built for release and run here.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Figure, Peer, Target};
use crate::{command::Program, paths};

/// A first build on two busy cores.
const DEADLINE: Duration = Duration::from_secs(900);
/// Of the memory: the index holds as many contents as two of these have, and a small machine has room for one.
const MEMORY_MIB: &str = "2048";
/// Index beside one hash pass over the same memory on all processors.
const RATIO_MAX: f64 = 1.2;

/// One figure.
pub fn measure() -> Result<Vec<Figure>> {
    let said = Program::new("cargo")
        .args(["run", "--quiet", "--release", "--package", "rebec-vmm", "--example", "donor_index", "--target-dir"])
        .arg(paths::lab().join("bench-engine"))
        .args(["--", MEMORY_MIB])
        .folder(paths::workspace())
        .deadline(DEADLINE)
        .output()
        .context("run the example of a donor's index")?;
    let figure = figure(said.trim()).with_context(|| format!("the example of a donor's index printed `{}`", said.trim()))?;
    Ok(vec![figure])
}

/// `N MiB N threads pass S s index S s ratio R`.
fn figure(line: &str) -> Option<Figure> {
    let cells: Vec<&str> = line.split_whitespace().collect();
    let [mebibytes, "MiB", threads, "threads", "pass", pass, "s", "index", index, "s", "ratio", ratio] = cells[..] else { return None };
    let pass: f64 = pass.parse().ok()?;
    Some(Figure {
        name: format!("index over a donor of {mebibytes} MiB, beside one hash pass"),
        unit: "x",
        measured: ratio.parse().ok()?,
        target: Target::AtMost(RATIO_MAX),
        peers: vec![Peer { name: "one pass, all processors".into(), value: 1.0 }],
        how: format!(
            "`donor_index` of vmm/process, best of 3: all pages populated and different, {threads} threads; the pass took {pass} s, the index, over a socket and up to its filter, {index} s"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_example_is_a_figure() {
        let found = figure("2048 MiB 2 threads pass 1.000 s index 1.100 s ratio 1.100").unwrap();
        assert!(found.is_met() && found.name.contains("2048 MiB"), "{found:?}");
        assert!(!figure("2048 MiB 2 threads pass 1.000 s index 1.300 s ratio 1.300").unwrap().is_met());
        assert!(figure("2048 MiB").is_none());
    }
}
