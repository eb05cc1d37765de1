//! What came of many jobs: cost against machines that are never withdrawn, and lateness.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Plan, Way,
    course::{Course, run},
    trace::Ticks,
};

/// Each zone's, and all zones' together where there are several: what `rebec simulate spot --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// By name; none for all zones together.
    pub zones: BTreeMap<String, ZoneOutcome>,
    /// A job that may go to any of them.
    pub all: Option<ZoneOutcome>,
}

/// One zone's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ZoneOutcome {
    /// Its place on the command line.
    #[serde(skip)]
    pub number: usize,
    /// The share of time with a cheap machine.
    pub spot_share: f64,
    /// Jobs of each way.
    pub jobs: usize,
    /// See [`Way::Ended`].
    pub ended: WayOutcome,
    /// See [`Way::Uniform`].
    pub uniform: WayOutcome,
    /// See [`Way::Moved`].
    pub moved: WayOutcome,
}

/// What came of one way, on average over its jobs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WayOutcome {
    /// Of what the work alone costs on machines that are never withdrawn.
    pub cost_percent: f64,
    /// Beyond the deadline; of what was given up, as far as it was seen.
    pub late_mean_h: f64,
    /// The latest.
    pub late_worst_h: f64,
    /// Jobs that were late.
    pub late_jobs: usize,
    /// Of them, those that had not ended after the whole trace.
    pub given_up: usize,
    /// Withdrawals a job.
    pub withdrawals: f64,
    /// Time on machines in which nothing was done.
    pub lost_mean_h: f64,
}

/// Runs jobs in each zone and in all.
///
/// # Errors
/// A sentence that names the zone whose trace is too short, or has other ticks than the first.
pub fn simulate(plan: &Plan, zones: &[(String, Ticks)]) -> Result<Outcome, String> {
    for (name, ticks) in zones {
        let seconds = ticks.len() as u64 * ticks.gap_s;
        if seconds < plan.deadline_s {
            return Err(format!("{name}: its trace is {} h long, shorter than the deadline; give an earlier --deadline", seconds / 3600));
        }
    }
    let each = zones.iter().enumerate().map(|(number, (name, ticks))| (name.clone(), zone(plan, &[ticks], number)));
    let alike = zones.first().filter(|(_, first)| zones.len() > 1 && zones.iter().all(|(_, other)| first.gap_s == other.gap_s));
    let all: Vec<&Ticks> = zones.iter().map(|(_, ticks)| ticks).collect();
    Ok(Outcome { zones: each.collect(), all: alike.map(|_| zone(plan, &all, zones.len())) })
}

fn zone(plan: &Plan, zones: &[&Ticks], number: usize) -> ZoneOutcome {
    let length = zones.iter().map(|zone| zone.len()).min().unwrap_or_default();
    let gap_s = zones.first().map_or(1, |zone| zone.gap_s);
    let last = length.saturating_sub((plan.deadline_s / gap_s) as usize);
    let firsts = (0..plan.jobs).map(|job| job * last / plan.jobs.max(1));
    let [ended, uniform, moved] = Way::ALL.map(|way| {
        let courses: Vec<Course> = firsts.clone().map(|first| run(plan, zones, way, first)).collect();
        WayOutcome::of(plan, &courses)
    });
    let there = (0..length).filter(|tick| zones.iter().any(|zone| zone.is_there(*tick))).count();
    ZoneOutcome { number, spot_share: there as f64 / length.max(1) as f64, jobs: plan.jobs, ended, uniform, moved }
}

impl WayOutcome {
    fn of(plan: &Plan, courses: &[Course]) -> Self {
        let mean = |sum: u64| sum as f64 / courses.len().max(1) as f64;
        let total = |value: fn(&Course) -> u64| courses.iter().map(value).sum::<u64>();
        let late: Vec<u64> = courses.iter().map(|course| course.took_s.saturating_sub(plan.deadline_s)).collect();
        let price = u64::from(plan.price);
        Self {
            cost_percent: mean(total(|course| course.spot_s) + price * total(|course| course.dear_s)) / (price * plan.work_s) as f64
                * 100.0,
            late_mean_h: mean(late.iter().sum()) / 3600.0,
            late_worst_h: late.iter().max().copied().unwrap_or_default() as f64 / 3600.0,
            late_jobs: late.iter().filter(|late| **late > 0).count(),
            given_up: courses.iter().filter(|course| course.given_up).count(),
            withdrawals: mean(total(|course| course.withdrawn)),
            lost_mean_h: mean(total(|course| course.lost_s)) / 3600.0,
        }
    }
}
