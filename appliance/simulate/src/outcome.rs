//! What came of it, for each domain.

use std::collections::BTreeMap;

use serde::Serialize;

/// All domains, by name: what `rebec simulate --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Each domain's.
    pub domains: BTreeMap<String, DomainOutcome>,
}

/// One domain's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DomainOutcome {
    /// Jobs that were simulated; each of them has ended.
    pub jobs: u64,
    /// Jobs that were not: wider than the cluster, or they never ran.
    pub left_out: u64,
    /// From submission to end, on average, with sharing.
    pub mean_completion_h: f64,
    /// The same without, in the same run.
    pub mean_completion_alone_h: f64,
    /// Machines of others, as long as it had them.
    pub borrowed_node_h: f64,
    /// Own machines, as long as others had them.
    pub lent_node_h: f64,
    /// Work of its jobs that was lost when machines were called back.
    pub wasted_node_h: f64,
    /// The rest, which is told to people.
    #[serde(skip)]
    pub told: Told,
}

/// What programs have not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Its place on the command line.
    pub number: usize,
    /// Jobs that are wider than the cluster.
    pub wider: usize,
    /// Lines of the trace with no run to simulate.
    pub never_ran: usize,
    /// Jobs that were ended and began anew, counted as often as that.
    pub killed: u64,
    /// VMs that moved.
    pub moved: u64,
    /// Jobs that stood still at home for a while, likewise.
    pub stood: u64,
}

/// A domain's sums while it is simulated.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account {
    pub jobs: u64,
    pub completion_s: u128,
    pub borrowed_s: u64,
    pub lent_s: u64,
    pub wasted_s: u64,
    pub killed: u64,
    pub moved: u64,
    pub stood: u64,
}

impl DomainOutcome {
    pub(crate) fn of(number: usize, shared: &Account, alone: &Account, wider: usize, never_ran: usize) -> Self {
        let mean = |account: &Account| if account.jobs == 0 { 0.0 } else { account.completion_s as f64 / account.jobs as f64 / 3600.0 };
        let hours = |seconds: u64| seconds as f64 / 3600.0;
        Self {
            jobs: shared.jobs,
            left_out: (wider + never_ran) as u64,
            mean_completion_h: mean(shared),
            mean_completion_alone_h: mean(alone),
            borrowed_node_h: hours(shared.borrowed_s),
            lent_node_h: hours(shared.lent_s),
            wasted_node_h: hours(shared.wasted_s),
            told: Told { number, wider, never_ran, killed: shared.killed, moved: shared.moved, stood: shared.stood },
        }
    }

    /// By how much sharing changed the mean completion time, in per cent.
    pub fn change_percent(&self) -> f64 {
        if self.mean_completion_alone_h > 0.0 { (self.mean_completion_h / self.mean_completion_alone_h - 1.0) * 100.0 } else { 0.0 }
    }
}
