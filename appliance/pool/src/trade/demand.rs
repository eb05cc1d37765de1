//! How many machines a domain lacks: n = d - [(P - L) + V], after VioCluster.
//!
//! d is what its queue and its running work want, P the machines it owns, L those it has lent, V those it has borrowed. What has been called back counts
//! as back already, so that nothing is called back twice.

/// What a domain's work wants, in machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// By work that waits.
    pub queued: u32,
    /// By work that runs.
    pub running: u32,
    /// By the widest work that waits: it needs so many in one place, own or borrowed.
    pub widest: u32,
}

/// What machines a domain has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holdings {
    /// P: those it owns.
    pub owned: u32,
    /// L: those of them that others have.
    pub lent: u32,
    /// V: those of others that it has.
    pub borrowed: u32,
}

impl Holdings {
    /// Those that its work may use.
    pub fn at_work(&self) -> i64 {
        i64::from(self.owned) - i64::from(self.lent) + i64::from(self.borrowed)
    }
}

/// n: machines that are lacking, or, below 0, left over.
pub fn needed(demand: &Demand, holdings: &Holdings) -> i64 {
    i64::from(demand.queued) + i64::from(demand.running) - holdings.at_work()
}

/// The formula with its numbers, for reasons.
pub fn told(demand: &Demand, holdings: &Holdings) -> String {
    let Holdings { owned, lent, borrowed } = holdings;
    format!("n = {} queued + {} running - (({owned} - {lent}) + {borrowed}) = {}", demand.queued, demand.running, needed(demand, holdings))
}
