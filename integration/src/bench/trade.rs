//! What sharing does to the jobs of two real clusters, and how fast that is simulated: the example of `appliance/simulate`, built for release and run here.
//!
//! The traces are their archive's and not in this repository; without them only speed is measured, with jobs that are made up.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use super::{Figure, Target};
use crate::{command::Program, paths};

/// A first build on two busy cores.
const DEADLINE: Duration = Duration::from_secs(900);
/// What VioCluster's simulation gave for KTH, with two per cent points on one side and four on the other.
const KTH_PERCENT: (f64, f64) = (-32.0, -26.0);
const CTC_PERCENT: f64 = 1.0;
const SECONDS: f64 = 2.0;

/// Measures with the traces of KTH and CTC, if they are given.
pub fn measure(traces: &[PathBuf]) -> Result<Vec<Figure>> {
    let said = Program::new("cargo")
        .args(["run", "--quiet", "--release", "--package", "rebec-simulate", "--example", "figures", "--target-dir"])
        .arg(paths::lab().join("bench-engine"))
        .arg("--")
        .args(traces)
        .folder(paths::workspace())
        .deadline(DEADLINE)
        .output()
        .context("run the simulator's example")?;
    figures(&said).with_context(|| format!("the simulator's example printed `{}`", said.trim()))
}

fn figures(said: &str) -> Option<Vec<Figure>> {
    let pair = |line: &str| line.split_once(' ').and_then(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
    let numbers: BTreeMap<String, f64> = said.lines().map(pair).collect::<Option<_>>()?;
    let speed = "with sharing and without, in one process, the release profile";
    let mut figures = vec![
        figure(&numbers, "made-s", "100,000 made jobs simulated", "s", Target::AtMost(SECONDS), speed)?,
        figure(&numbers, "overrun-s", "the same, four times what one cluster can do", "s", Target::AtMost(SECONDS), speed)?,
    ];
    if !numbers.contains_key("traces-s") {
        return Some(figures);
    }
    let (least, most) = KTH_PERCENT;
    let kill = "mean completion time shared against alone; hourly brokers, machines killed on reclaim";
    let moves = "the same, VMs moved on reclaim; beside what killing gives in the same run";
    let by_kill = |domain: &str| numbers.get(&format!("{domain}-kill-percent")).copied();
    figures.extend([
        figure(&numbers, "kth-kill-percent", "KTH (100), killed", "%", Target::Between(least, most), kill)?,
        figure(&numbers, "ctc-kill-percent", "CTC (512), killed", "%", Target::AtMost(CTC_PERCENT), kill)?,
        figure(&numbers, "kth-migrate-percent", "KTH (100), moved", "%", Target::AtMost(by_kill("kth")?), moves)?,
        figure(&numbers, "ctc-migrate-percent", "CTC (512), moved", "%", Target::AtMost(by_kill("ctc")?), moves)?,
        figure(&numbers, "kth-kill-wasted-h", "KTH, work lost, killed", "node-h", Target::None, "work of jobs that were ended")?,
        figure(&numbers, "kth-migrate-wasted-h", "KTH, work lost, moved", "node-h", Target::AtMost(0.0), "likewise")?,
        figure(&numbers, "ctc-migrate-wasted-h", "CTC, work lost, moved", "node-h", Target::AtMost(0.0), "likewise")?,
        figure(&numbers, "differs-from-itself", "same seed, other result", "", Target::AtMost(0.0), "1 if two runs of one setup differ")?,
        figure(&numbers, "traces-s", "both traces simulated", "s", Target::AtMost(SECONDS), speed)?,
    ]);
    Some(figures)
}

fn figure(numbers: &BTreeMap<String, f64>, key: &str, name: &str, unit: &'static str, target: Target, how: &str) -> Option<Figure> {
    let measured = *numbers.get(key)?;
    Some(Figure { name: name.to_owned(), unit, measured, target, peers: vec![], how: how.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_example_says_is_judged() {
        let alone = figures("made-s 0.3\noverrun-s 2.5\n").unwrap();
        assert_eq!(alone.iter().map(Figure::is_met).collect::<Vec<_>>(), [true, false]);
        let names = ["kill-percent", "kill-wasted-h", "migrate-percent", "migrate-wasted-h"];
        let lines = |domain: &str, values: [f64; 4]| {
            names.iter().zip(values).map(|(name, value)| format!("{domain}-{name} {value}\n")).collect::<String>()
        };
        let rest = "made-s 1\noverrun-s 1\ndiffers-from-itself 0\ntraces-s 1\n";
        let judged = |kth, ctc| {
            let all = figures(&(lines("kth", kth) + &lines("ctc", ctc) + rest)).unwrap();
            all.into_iter().filter(|figure| !figure.is_met()).map(|figure| figure.name).collect::<Vec<_>>()
        };
        assert!(judged([-29.0, 9.0, -30.0, 0.0], [0.5, 9.0, 0.4, 0.0]).is_empty());
        assert_eq!(
            judged([-33.0, 9.0, -30.0, 1.0], [1.5, 9.0, 0.4, 0.0]),
            ["KTH (100), killed", "CTC (512), killed", "KTH (100), moved", "KTH, work lost, moved"]
        );
        assert!(figures("made-s fast\n").is_none());
    }
}
