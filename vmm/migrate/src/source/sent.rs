//! What the target is known to have of each unit: the digest last sent, in lazily made pieces, bounded. A unit that is
//! not in the table counts as changed, which costs bytes and never correctness.

use crate::{
    page::{Digest, Verdict},
    unit::RUN_UNITS,
};

/// Most runs in the tables of one move: 2^18 runs are 32 GiB of units in 128 MiB.
pub const RUNS_MAX: usize = 1 << 18;
const UNKNOWN: Digest = Digest([0; 16]);
const ZERO: Digest = Digest([0xff; 16]);

type Run = Box<[Digest; RUN_UNITS as usize]>;

/// The table of one space.
pub struct LastSent {
    runs: Vec<Option<Run>>,
}

impl LastSent {
    /// An empty table over `units` units.
    pub fn new(units: u64) -> Self {
        Self { runs: std::iter::repeat_with(|| None).take(units.div_ceil(RUN_UNITS) as usize).collect() }
    }

    /// Whether this is the version last sent.
    pub fn is(&self, unit: u64, verdict: Verdict) -> bool {
        let run = self.runs.get((unit / RUN_UNITS) as usize).and_then(Option::as_ref);
        run.is_some_and(|run| run[(unit % RUN_UNITS) as usize] == name(verdict))
    }

    /// Remembers the version sent now; `room` is how many more runs may be made, over all spaces.
    pub fn set(&mut self, unit: u64, verdict: Verdict, room: &mut usize) {
        let slot = &mut self.runs[(unit / RUN_UNITS) as usize];
        if slot.is_none() && *room > 0 {
            *room -= 1;
            *slot = Some(Box::new([UNKNOWN; RUN_UNITS as usize]));
        }
        if let Some(run) = slot {
            run[(unit % RUN_UNITS) as usize] = name(verdict);
        }
    }

    /// Forgets a unit: the target turned out not to have it.
    pub fn forget(&mut self, unit: u64) {
        if let Some(Some(run)) = self.runs.get_mut((unit / RUN_UNITS) as usize) {
            run[(unit % RUN_UNITS) as usize] = UNKNOWN;
        }
    }
}

fn name(verdict: Verdict) -> Digest {
    match verdict {
        Verdict::Zero => ZERO,
        Verdict::Content(digest) => digest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_what_was_sent_and_is_bounded() {
        let (mut table, mut room) = (LastSent::new(100), 1);
        let version = Verdict::Content(Digest([3; 16]));
        assert!(!table.is(5, version));
        table.set(5, version, &mut room);
        table.set(6, Verdict::Zero, &mut room);
        table.set(40, version, &mut room);
        assert!(table.is(5, version) && table.is(6, Verdict::Zero) && !table.is(7, Verdict::Zero));
        assert!(!table.is(40, version), "no room for a second run");
        table.forget(5);
        assert!(!table.is(5, version));
    }
}
