//! Leases: who may run a VM that its keeper starts elsewhere when its host is lost (docs/formats/lease.md). Pure: what a keeper decides and what a
//! holder makes of the answer; time is an argument, in whatever clock the caller has, as long as it counts the time a machine sleeps.
//!
//! ```text
//! holder                                   keeper
//! Ask{epoch, stance}      ------------->   promise(): the charge is durable, the promise noted
//! runs until asked + lease  <-----------   lease, or Refusal
//!                                          nobody asks: lease + margin after the last promise, or after the keeper's own start,
//!                                          may_restart() -> grant(): a later epoch, durable before the order to start is sent
//! ```
//! A promise is about the VM and not about one host: both sides of a move may have one, and between those two their ledgers decide
//! (docs/formats/handover.md). What a restart leaves behind is told apart by its epoch, which is below that of the grant.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use rebec_book::key::{Id, Key};

/// Epochs that one move may take: one for its target, and one more for its source if the target lets go.
const MOVE_EPOCHS: u64 = 2;

/// How long a promise lasts, and how much longer the keeper waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Terms {
    /// A holder may run for so long from when it asked.
    pub lease: Duration,
    /// Above what two clocks may disagree in that time, and what a holder needs to stand still.
    pub margin: Duration,
}

impl Terms {
    /// Those of every pool.
    pub const STANDARD: Self = Self { lease: Duration::from_secs(15), margin: Duration::from_secs(3) };

    /// When the right to run of a holder ends that was promised a lease after it had asked.
    pub fn ends(&self, asked: Duration) -> Duration {
        asked.saturating_add(self.lease)
    }

    /// Between two questions of a holder.
    pub fn period(&self) -> Duration {
        self.lease / 3
    }
}

/// What a keeper knows of a VM for good.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Charge {
    /// The epoch at which it was started last, by its first host or for the keeper. Copies of earlier ones are superseded.
    pub floor: u64,
    /// The host that started it at that epoch.
    pub starter: Key,
    /// No copy has or gets a later epoch without a promise.
    pub reached: u64,
    /// The host that runs it, or ran it last, as far as asking tells.
    pub holder: Key,
    /// Whether it is to run: one that was stopped is not started elsewhere.
    pub runs: bool,
    /// The host that was lost when it was last started elsewhere.
    pub lost: Option<Key>,
}

/// A holder's question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// The epoch of the asker's copy; of one that arrives, the epoch it will have.
    pub epoch: u64,
    /// What the asker does with it.
    pub stance: Stance,
}

/// What a host does with its copy of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stance {
    /// It runs there, or would.
    Runs,
    /// It was stopped there, or ended.
    Stopped,
    /// It is on its way there.
    Arrives,
}

/// Why nothing is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The VM was started elsewhere: the asker's copy must go.
    Superseded {
        /// At this epoch.
        epoch: u64,
        /// On this host.
        host: Key,
    },
    /// No promise was ever made that leads to such an epoch. Nothing is promised, and nothing removed.
    Unheard,
}

/// Judges a question. The charge that is returned must be durable before the answer is sent.
pub fn promise(charge: Option<&Charge>, asker: Key, ask: Ask) -> Result<Charge, Refusal> {
    let Some(charge) = charge else { return first(asker, ask) };
    if ask.epoch < charge.floor || ask.epoch == charge.floor && asker != charge.starter {
        return Err(Refusal::Superseded { epoch: charge.floor, host: charge.starter });
    }
    if ask.epoch > charge.reached {
        return Err(Refusal::Unheard);
    }
    let mut charge = charge.clone();
    charge.reached = charge.reached.max(ask.epoch.saturating_add(MOVE_EPOCHS));
    if ask.stance != Stance::Arrives {
        charge.holder = asker;
        charge.runs = ask.stance == Stance::Runs;
    }
    Ok(charge)
}

/// Every VM begins at epoch 1: a later one that is unknown was forgotten.
fn first(asker: Key, ask: Ask) -> Result<Charge, Refusal> {
    if ask.epoch != 1 || ask.stance == Stance::Arrives {
        return Err(Refusal::Unheard);
    }
    let runs = ask.stance == Stance::Runs;
    Ok(Charge { floor: 1, starter: asker, reached: 1 + MOVE_EPOCHS, holder: asker, runs, lost: None })
}

/// Whether a VM may be started elsewhere now.
pub fn may_restart(charge: &Charge, promises: &Promises, vm: Id, now: Duration, terms: Terms) -> bool {
    charge.runs && now >= promises.ends(vm).saturating_add(terms.margin)
}

/// The VM is to start on a host, from its image, at the grant's `floor`. Only after [`may_restart`]; durable before the host is told.
pub fn grant(charge: &Charge, to: Key) -> Charge {
    let floor = charge.reached.saturating_add(1);
    Charge { floor, starter: to, reached: floor.saturating_add(MOVE_EPOCHS), holder: to, runs: true, lost: Some(charge.holder) }
}

/// When the promises of a keeper end, by its own clock. They are not durable: a keeper that starts waits as if it had promised everything at that
/// moment, since its clock says nothing about the time before.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Promises {
    started: Duration,
    ends: BTreeMap<Id, Duration>,
}

impl Promises {
    /// Those of a keeper that starts now.
    pub fn new(now: Duration, terms: Terms) -> Self {
        Self { started: terms.ends(now), ends: BTreeMap::new() }
    }

    /// A promise is about to be made, or an order to start sent.
    pub fn note(&mut self, vm: Id, now: Duration, terms: Terms) {
        self.ends.insert(vm, terms.ends(now));
    }

    /// The VM is no more.
    pub fn forget(&mut self, vm: Id) {
        self.ends.remove(&vm);
    }

    fn ends(&self, vm: Id) -> Duration {
        self.ends.get(&vm).map_or(self.started, |ends| self.started.max(*ends))
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use rebec_book::key::Name;

    const TERMS: Terms = Terms::STANDARD;
    const VM: Id = Name([7; 16]);
    const A: Key = Name([1; 32]);
    const B: Key = Name([2; 32]);

    fn ask(epoch: u64, stance: Stance) -> Ask {
        Ask { epoch, stance }
    }

    fn runs(epoch: u64) -> Ask {
        ask(epoch, Stance::Runs)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn both_sides_of_a_move_are_promised_and_what_a_restart_leaves_behind_is_not() {
        let charge = promise(None, A, runs(1)).unwrap();
        let charge = promise(Some(&charge), B, ask(2, Stance::Arrives)).unwrap();
        assert_eq!((charge.holder, charge.reached), (A, 4));
        let charge = promise(Some(&charge), A, runs(1)).unwrap();
        // The target let go, and the source goes on two later.
        let charge = promise(Some(&charge), A, runs(3)).unwrap();
        let granted = grant(&charge, B);
        assert_eq!((granted.floor, granted.lost), (6, Some(A)));
        for (host, epoch) in [(A, 1), (B, 2), (A, 3), (A, 5), (A, 6)] {
            let refused = promise(Some(&granted), host, runs(epoch)).unwrap_err();
            assert_eq!(refused, Refusal::Superseded { epoch: 6, host: B }, "{host:?} at {epoch}");
        }
        let charge = promise(Some(&granted), B, runs(6)).unwrap();
        // It may move on, to where it was lost too.
        promise(Some(&charge), A, ask(7, Stance::Arrives)).unwrap();
    }

    #[test]
    fn what_no_promise_leads_to_is_refused_and_removes_nothing() {
        for asked in [runs(2), ask(1, Stance::Arrives), runs(0), runs(u64::MAX)] {
            assert_eq!(promise(None, A, asked), Err(Refusal::Unheard), "{asked:?}");
        }
        let charge = promise(None, A, runs(1)).unwrap();
        assert_eq!(promise(Some(&charge), A, runs(4)), Err(Refusal::Unheard));
        assert_eq!(promise(Some(&charge), A, runs(u64::MAX)), Err(Refusal::Unheard));
        // Two hosts do not start it at one epoch.
        assert!(matches!(promise(Some(&charge), B, runs(1)), Err(Refusal::Superseded { .. })));
    }

    #[test]
    fn it_is_started_elsewhere_a_margin_after_the_last_promise_and_not_if_it_was_stopped() {
        let mut promises = Promises::new(seconds(100), TERMS);
        let charge = promise(None, A, runs(1)).unwrap();
        let may = |promises: &Promises, at| may_restart(&charge, promises, VM, seconds(at), TERMS);
        // A keeper that has just started knows of no promise and waits as if it had made one.
        assert_eq!([100, 117, 118].map(|at| may(&promises, at)), [false, false, true]);
        promises.note(VM, seconds(110), TERMS);
        assert_eq!([118, 127, 128].map(|at| may(&promises, at)), [false, false, true]);
        let stopped = promise(Some(&charge), A, ask(1, Stance::Stopped)).unwrap();
        assert!(!may_restart(&stopped, &promises, VM, seconds(999), TERMS));
        promises.forget(VM);
        assert!(may(&promises, 118));
    }
}
