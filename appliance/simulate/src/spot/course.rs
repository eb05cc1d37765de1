//! One job, from the tick at which it begins to its end.

use super::{
    Plan, Way,
    rules::{Place, Standing, next},
    trace::Ticks,
};

/// How it went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Course {
    /// From its beginning to its end; what has not ended when all of the trace has been seen is given up then.
    pub took_s: u64,
    /// It was given up.
    pub given_up: bool,
    /// On cheap machines.
    pub spot_s: u64,
    /// On machines that are never withdrawn.
    pub dear_s: u64,
    /// Machines that were withdrawn under it.
    pub withdrawn: u64,
    /// Time on machines in which nothing was done: beginnings and changeovers.
    pub lost_s: u64,
}

/// Runs a job in some zones, whose ticks are alike.
pub fn run(plan: &Plan, zones: &[&Ticks], way: Way, first: usize) -> Course {
    let Some((gap_s, ticks)) = zones.first().map(|zone| (zone.gap_s, zone.len())) else { return Course::default() };
    let mut course = Course::default();
    let mut standing = Standing { place: Place::Nowhere, for_good: false, elapsed_s: 0, done_s: 0 };
    let (mut has_begun, mut changeover_s) = (false, 0);
    for tick in first..first + ticks.max((plan.deadline_s / gap_s) as usize * 2) {
        let before = standing.place;
        if let Place::Spot(zone) = before
            && !zones[zone].is_there(tick)
        {
            course.withdrawn += 1;
            standing.place = Place::Nowhere;
        }
        (standing.place, standing.for_good) = next(plan, way, &standing, longest(zones, tick), gap_s);
        if standing.place != before && standing.place != Place::Nowhere {
            changeover_s = if has_begun && way == Way::Moved { plan.moved_s() } else { plan.restart_s };
            has_begun = true;
        }
        let runs = standing.place != Place::Nowhere;
        let used_s = if runs { gap_s.min(changeover_s + plan.work_s - standing.done_s) } else { gap_s };
        match standing.place {
            Place::Nowhere => {}
            Place::Spot(_) => course.spot_s += used_s,
            Place::Dear => course.dear_s += used_s,
        }
        if runs {
            let lost_s = used_s.min(changeover_s);
            changeover_s -= lost_s;
            course.lost_s += lost_s;
            standing.done_s += used_s - lost_s;
        }
        standing.elapsed_s += used_s;
        course.took_s = standing.elapsed_s;
        if standing.done_s >= plan.work_s {
            return course;
        }
    }
    course.given_up = true;
    course
}

/// The zone that has had a machine for longest, if any has one: all that is known of what comes. Of equals the first.
fn longest(zones: &[&Ticks], tick: usize) -> Option<usize> {
    let there = zones.iter().enumerate().filter(|(_, zone)| zone.is_there(tick));
    there.rev().max_by_key(|(_, zone)| zone.since(tick)).map(|(index, _)| index)
}
