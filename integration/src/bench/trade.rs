//! What sharing does to the jobs of two real clusters, and how fast that is simulated: the example of `appliance/simulate`, built for release and run here.
//!
//! Traces are their owners' and not in this repository; without them only speed is measured, with jobs that are made up. What it is worth to move a VM
//! from a machine that is withdrawn is measured beside the best rule for jobs that begin again, in the same run.

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
const PLAN_MS: f64 = 100.0;

/// Measures with the traces of KTH and CTC, and of zones with machines that come and go, if they are given.
pub fn measure(traces: &[PathBuf], zones: &[PathBuf]) -> Result<Vec<Figure>> {
    let spot = (!zones.is_empty()).then(|| PathBuf::from("--spot"));
    let said = Program::new("cargo")
        .args(["run", "--quiet", "--release", "--package", "rebec-simulate", "--example", "figures", "--target-dir"])
        .arg(paths::lab().join("bench-engine"))
        .arg("--")
        .args(traces.iter().chain(&spot).chain(zones))
        .folder(paths::workspace())
        .deadline(DEADLINE)
        .output()
        .context("run the simulator's example")?;
    let planned = Program::new("cargo")
        .args(["run", "--quiet", "--release", "--package", "rebec-pool", "--example", "plan", "--target-dir"])
        .arg(paths::lab().join("bench-engine"))
        .folder(paths::workspace())
        .deadline(DEADLINE)
        .output()
        .context("run the example of plans")?;
    let said = said + &planned;
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
    if numbers.contains_key("plan-both-ms") {
        figures.extend(planned(&numbers)?);
    }
    if numbers.contains_key("spot-moved-late") {
        figures.extend(withdrawn(&numbers)?);
    }
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

/// A place for each VM of a pool, by one plan.
fn planned(numbers: &BTreeMap<String, f64>) -> Option<Vec<Figure>> {
    let how = "1,000 hosts, 10,000 VMs, 50 domains, 200 contracts: the world laid from its book, and a place elsewhere for every VM; best of five";
    Some(vec![
        figure(numbers, "plan-both-ms", "a plan for 10,000 VMs", "ms", Target::AtMost(PLAN_MS), how)?,
        figure(numbers, "plan-lay-ms", "the same: the world laid", "ms", Target::None, how)?,
        figure(numbers, "plan-unanswered", "the same: neither a place nor a reason", "", Target::AtMost(0.0), how)?,
        figure(numbers, "plan-differs", "the same: other plans of one seed", "", Target::AtMost(0.0), how)?,
    ])
}

/// Costs are in per cent of the work on machines that are never withdrawn.
fn withdrawn(numbers: &BTreeMap<String, f64>) -> Option<Vec<Figure>> {
    let uniform = numbers.get("spot-uniform-percent").copied()?;
    let how = "24 h of work in 30 h, mean of the zones; dear machines cost three times as much, a restart 12 minutes, a move 5 s";
    let mut figures = vec![
        figure(numbers, "spot-ended-percent", "withdrawn, begun again: cost", "%", Target::None, how)?,
        figure(numbers, "spot-ended-late-h", "the same: late", "h", Target::None, how)?,
        figure(numbers, "spot-uniform-percent", "withdrawn, Uniform Progress: cost", "%", Target::None, how)?,
        figure(numbers, "spot-moved-percent", "withdrawn, moved: cost", "%", Target::AtMost(uniform), how)?,
        figure(numbers, "spot-moved-late", "the same: late jobs", "", Target::AtMost(0.0), how)?,
    ];
    if let Some(uniform) = numbers.get("spot-all-uniform-percent") {
        let any = "the same, in whichever zone has a machine";
        figures.push(figure(numbers, "spot-all-moved-percent", "any zone, moved: cost", "%", Target::AtMost(*uniform), any)?);
    }
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
        let plans = "plan-both-ms 101\nplan-lay-ms 20\nplan-unanswered 0\nplan-differs 1\n";
        let late = figures(&format!("made-s 1\noverrun-s 1\n{plans}")).unwrap();
        assert_eq!(late.iter().filter(|figure| !figure.is_met()).count(), 2);
        assert!(figures("made-s fast\n").is_none());
        let spot = "made-s 1\noverrun-s 1\nspot-ended-percent 40\nspot-ended-late-h 9\nspot-uniform-percent 60\nspot-moved-late 1\n";
        let all = figures(&format!("{spot}spot-moved-percent 61\n")).unwrap();
        assert_eq!(all.iter().filter(|figure| !figure.is_met()).count(), 2);
    }
}
