//! What moving a VM when its machine is withdrawn is worth: `rebec simulate spot`. Traces say when a cheap machine was to be had in a zone (spot machines of a
//! cloud, machines that another domain lends as long as it can spare them); a job with so much work has to be done by a deadline, and a machine that is
//! never withdrawn costs several times as much.
//!
//! ```text
//! zone.json ── trace ──► ticks ──► course: one job from one tick on ──► outcome: many jobs, a zone, each way ──► table, JSON
//!                                    └── rules: where it runs in the next tick
//! ```
//! A job of each way begins at each of some ticks, spread over the trace. The same traces give the same result: nothing is drawn.

mod course;
mod outcome;
mod rules;
mod trace;

#[cfg(test)]
mod tests;

pub use self::{
    outcome::{Outcome, WayOutcome, ZoneOutcome, simulate},
    trace::{Ticks, TicksError, read},
};

/// A job, and what machines cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Its work, on any machine.
    pub work_s: u64,
    /// When it has to be done, from its beginning.
    pub deadline_s: u64,
    /// A machine that is never withdrawn costs so many times a cheap one.
    pub price: u32,
    /// Lost when a job begins or begins again from its last checkpoint: boot, reading it, the work since then.
    pub restart_s: u64,
    /// Lost when a VM moves.
    pub move_s: u64,
    /// From the word that a machine is withdrawn until it is. A VM that takes longer to move is ended.
    pub notice_s: u64,
    /// Jobs in each zone.
    pub jobs: usize,
}

impl Default for Plan {
    /// A changeover of 12 minutes and a price of three are those of "Can't Be Late" (NSDI 2024), a notice of two minutes is usual in clouds, and a move is
    /// that of [`crate::Costs`].
    fn default() -> Self {
        let move_s = crate::Costs::default().move_first_s;
        Self { work_s: 24 * 3600, deadline_s: 30 * 3600, price: 3, restart_s: 720, move_s, notice_s: 120, jobs: 200 }
    }
}

impl Plan {
    /// What a job loses each time that its VM goes to another machine after a withdrawal.
    fn moved_s(&self) -> u64 {
        if self.move_s <= self.notice_s { self.move_s } else { self.restart_s }
    }
}

/// What is done about a withdrawal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The job begins again, on cheap machines alone, as soon as there is one.
    Ended,
    /// The job begins again, by the rule Uniform Progress ("Can't Be Late"): it goes to a dear machine when it falls behind an even pace, back when it has
    /// caught up, and for good when nothing else meets the deadline.
    Uniform,
    /// The same rule, and the VM moves in place of being ended.
    Moved,
}

impl Way {
    const ALL: [Self; 3] = [Self::Ended, Self::Uniform, Self::Moved];
}
