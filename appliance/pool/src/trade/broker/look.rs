//! What a broker does by itself, at each look: machines are called back, VMs come home, what is over is ended, what is lacking is asked for.

use rebec_book::{
    contract::{Reclaim, Side, State, What},
    key::{Id, Key},
};

use super::{Desk, Held, MACHINES_MAX, Wish, retreat};
use crate::trade::{
    borrow::{self, Deal},
    demand,
    lend::{self, Offer},
    plan::Plan,
    policy::Modes,
    recall,
};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A machine is wanted back.
    Recall {
        /// The contract.
        contract: Id,
    },
    /// A contract is over, and this is what it came to.
    End {
        /// The contract.
        contract: Id,
        /// Work that was lost, in seconds.
        wasted_s: u64,
    },
    /// A borrowed machine's VM moves.
    Bring {
        /// The contract.
        contract: Id,
        /// The VM.
        vm: Id,
        /// The host that it goes to.
        to: Key,
    },
    /// What still runs on a machine whose contract is over is ended.
    Stop {
        /// The contract.
        contract: Id,
        /// The VM.
        vm: Id,
        /// What is lost with it, in seconds.
        wasted_s: u64,
    },
    /// Machines are asked for.
    Borrow {
        /// Whom.
        lender: Key,
        /// What.
        wish: Wish,
    },
}

/// What another domain's broker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    /// The domain.
    pub lender: Key,
    /// Machines.
    pub machines: u32,
    /// How they come back.
    pub reclaim: Vec<Reclaim>,
}

/// How many machines others may ask for now, and why.
pub fn advert(desk: &Desk<'_>) -> (u32, String) {
    let loans = desk.loans();
    match lend::offer(desk.called(&desk.me), &desk.world(&loans)) {
        Ok(offer) => (offer.machines, demand::told(&desk.demand(), &desk.world(&loans).holdings)),
        Err(why) => (0, why),
    }
}

/// What is to be done now.
pub fn look(desk: &Desk<'_>, adverts: &[Advert]) -> Plan<Act> {
    let mut plan = Plan::nothing();
    for held in &desk.held {
        match desk.side(held) {
            Some(Side::Lender) => settle(desk, held, &mut plan),
            Some(Side::Borrower) => bring_home(desk, held, &mut plan),
            None => {}
        }
    }
    let loans = desk.loans();
    let world = desk.world(&loans);
    for recall in recall::plan(&world).steps {
        if let Some(held) = desk.held.get(recall.what.machine as usize) {
            plan.step(Act::Recall { contract: held.id }, recall.reason);
        }
    }
    let modes: Vec<Modes> = adverts.iter().map(|advert| Modes(advert.reclaim.clone())).collect();
    let offers: Vec<Offer<'_>> = adverts
        .iter()
        .zip(&modes)
        .map(|(advert, reclaim)| Offer { lender: desk.called(&advert.lender), machines: advert.machines, reclaim })
        .collect();
    let wanted = borrow::plan(desk.called(&desk.me), &world, &offers);
    plan.refusals.extend(wanted.refusals);
    for step in wanted.steps {
        match step.what {
            Deal::GiveBack(count) => {
                // What nobody has told is no reason to give back what was asked for by hand.
                let idle = desk.holding(Side::Borrower).filter(|held| held.guests.is_empty() && desk.told.is_some());
                for held in idle.take(count as usize) {
                    plan.step(Act::End { contract: held.id, wasted_s: 0 }, step.reason.clone());
                }
            }
            Deal::Ask { lender, ask } => {
                let Some(advert) = adverts.iter().find(|advert| desk.called(&advert.lender) == lender) else { continue };
                let survives = desk.policy.borrowing.survives.value.0.clone();
                let (machines, least) = (ask.machines.min(MACHINES_MAX), ask.least.min(MACHINES_MAX));
                let (memory_bytes, vcpus, lans, vms) = (1, 1, vec![], vec![]);
                let wish = Wish { borrower: desk.me, machines, least, survives, memory_bytes, vcpus, lans, vms };
                plan.step(Act::Borrow { lender: advert.lender, wish }, step.reason);
            }
        }
    }
    plan
}

/// What a lender does about a contract that is over: what still runs there is ended, not before the notice has passed by a clock that nobody sets.
fn settle(desk: &Desk<'_>, held: &Held, plan: &mut Plan<Act>) {
    let (contract, standing) = (&held.contract, desk.standing(held));
    if standing.state != State::Ended || contract.word(Side::Lender, What::Ended).is_some_and(|_| held.guests.is_empty()) {
        return;
    }
    let terms = contract.terms();
    let lease_over = terms.until.is_some_and(|until| desk.now >= until);
    let has_notice = lease_over || contract.word(Side::Borrower, What::Ended).is_some() || held.recalled_s >= terms.notice_s;
    if !has_notice {
        let left = terms.notice_s - held.recalled_s;
        plan.refuse(held.id.short(), format!("{left} s of its notice are left by this host's own clock"));
        return;
    }
    for guest in &held.guests {
        let wasted_s = desk.now.saturating_sub(terms.from);
        let reason = format!("{}: VM {} is still there, and is ended ({})", standing.why, guest.name, terms.reclaim);
        plan.step(Act::Stop { contract: held.id, vm: guest.id, wasted_s }, reason);
    }
    if held.guests.is_empty() {
        plan.step(Act::End { contract: held.id, wasted_s: held.wasted_s }, standing.why);
    }
}

/// What a borrower does about a machine that is called back, or whose lease ends within its notice: its VMs go, and it is given back.
fn bring_home(desk: &Desk<'_>, held: &Held, plan: &mut Plan<Act>) {
    let (contract, state) = (&held.contract, desk.standing(held).state);
    let Some(why) = retreat::leaves(contract, desk.now) else { return };
    if contract.word(Side::Borrower, What::Ended).is_some_and(|_| held.guests.is_empty()) {
        return;
    }
    if held.guests.is_empty() && state != State::Active {
        plan.step(Act::End { contract: held.id, wasted_s: held.wasted_s }, why);
        return;
    }
    // Whose machine comes back when its work has ended moves nothing before that.
    for guest in held.guests.iter().filter(|_| !retreat::waits(contract, desk.now)) {
        match retreat::choose(desk, held, guest) {
            Ok((place, reason)) => {
                plan.step(Act::Bring { contract: held.id, vm: guest.id, to: place.host }, format!("{why}; VM {}: {reason}", guest.name));
            }
            Err(no) => plan.refuse(&guest.name, format!("{why}; there is no place for VM {}: {no}", guest.name)),
        }
    }
}
