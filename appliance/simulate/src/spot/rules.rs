//! Where a job runs in the next tick. Pure: told how far it is and where there are machines.

use super::{Plan, Way};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It waits. A VM stands still at home.
    Nowhere,
    /// On a cheap machine of a zone.
    Spot(usize),
    /// On a machine that is never withdrawn.
    Dear,
}

/// How far a job is.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Where it was until now. A machine that was withdrawn is none.
    pub place: Place,
    /// It stays on a machine that is never withdrawn.
    pub for_good: bool,
    /// Since its beginning.
    pub elapsed_s: u64,
    /// Of its work.
    pub done_s: u64,
}

/// Where it runs next, and whether for good. `spot` is the zone that it would go to, if any has a machine; `tick_s` is when this is asked again.
pub fn next(plan: &Plan, way: Way, standing: &Standing, spot: Option<usize>, tick_s: u64) -> (Place, bool) {
    let cheap = spot.map_or(Place::Nowhere, Place::Spot);
    let changeover_s = match way {
        Way::Ended => return (if let Place::Spot(_) = standing.place { standing.place } else { cheap }, false),
        Way::Uniform => plan.restart_s,
        Way::Moved => plan.moved_s(),
    };
    let left_s = plan.work_s - standing.done_s;
    let rest_s = plan.deadline_s.saturating_sub(standing.elapsed_s);
    match standing.place {
        _ if standing.for_good => (Place::Dear, true),
        // Chances are taken: a cheap machine is left when it is withdrawn.
        Place::Spot(_) => (standing.place, false),
        // Later would be too late; nothing is asked before the next tick.
        Place::Nowhere if rest_s < left_s + 2 * changeover_s + tick_s => (Place::Dear, true),
        // It does not go to and fro: it has caught up when that is worth two changeovers.
        Place::Dear if is_behind(plan, standing.done_s, standing.elapsed_s + 2 * changeover_s) => (Place::Dear, false),
        _ if spot.is_none() && is_behind(plan, standing.done_s, standing.elapsed_s) => (Place::Dear, false),
        _ => (cheap, false),
    }
}

/// Whether less is done than by an even pace from beginning to deadline.
fn is_behind(plan: &Plan, done_s: u64, elapsed_s: u64) -> bool {
    u128::from(done_s) * u128::from(plan.deadline_s) < u128::from(elapsed_s) * u128::from(plan.work_s)
}
