//! What a domain's broker does, decided from all that it knows. The functions that it goes by are those that the simulator runs ([`super`]).
//!
//! ```text
//! Desk {now, policy, demand, own machines, contracts, what runs where}
//!   borrower  look: n > 0 -> Borrow ~~ POST /internal/offers ~~► lender  offers: drafts of terms, which bind nobody
//!             choose: which of them by its policy, signed ~~ POST /internal/contracts ~~► consider: Sign, Counter, Wait or Refuse
//!   both      look: Recall, Bring home, Stop, End
//! ```
//! The lender signs last. It alone says to whom a machine of its own is promised, so that none is promised twice, whatever is lost on the way: a
//! borrower that does not hear the answer asks again, and the same proposal is answered with the same contract (`model`).

mod lender;
mod look;
#[cfg(test)]
mod model;
mod retreat;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use rebec_book::{
    contract::{Contract, Reclaim, Side, Standing, State, Terms},
    key::{Id, Key},
};

pub use self::{
    lender::{Verdict, consider, offers},
    look::{Act, Advert, advert, look},
    retreat::{RATE_UNKNOWN, leaves},
};
use super::{
    demand::{Demand, Holdings},
    plan::Plan,
    policy::Policy,
    world::{Loan, Work, World},
};

/// How long a proposal waits for the lender's signature.
pub const ANSWER_S: u64 = 60;
/// Machines in one wish.
pub const MACHINES_MAX: u32 = 64;

/// A machine of the own domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its host's key.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// Processors.
    pub vcpus: u32,
    /// Memory for VMs.
    pub memory_bytes: u64,
    /// Room for disks.
    pub disk_bytes: u64,
    /// Why it takes no VMs at all, if it does not.
    pub out: Option<String>,
    /// VMs of the own domain that run there.
    pub own_vms: u32,
    /// VMs of others.
    pub other_vms: u32,
}

/// A VM that runs on a machine under a contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its id.
    pub id: Id,
    /// Its name.
    pub name: String,
    /// Memory that has to be moved with it.
    pub memory_bytes: u64,
    /// Where it would go, to its owner: at most one host of each domain; or why nowhere.
    pub places: Result<Vec<Place>, String>,
}

/// A host that would take a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host: Key,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: Key,
    /// What speaks for it.
    pub reason: String,
}

/// A contract of the own domain.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Its id.
    pub id: Id,
    /// As it is known here.
    pub contract: Contract,
    /// What runs under it.
    pub guests: Vec<Guest>,
    /// For how long this broker knows that it was called back, by a clock that nobody sets.
    pub recalled_s: u64,
    /// Work that was lost under it, in seconds.
    pub wasted_s: u64,
}

/// All that a broker's decisions stand on.
#[derive(Debug, Clone)]
pub struct Desk<'a> {
    /// In seconds since 1970.
    pub now: u64,
    /// The own domain.
    pub me: Key,
    /// The domain's policy.
    pub policy: &'a Policy,
    /// What its work wants, if somebody has said so lately.
    pub told: Option<Demand>,
    /// Its machines.
    pub machines: Vec<Machine>,
    /// Its contracts that are not settled.
    pub held: Vec<Held>,
    /// Names of domains.
    pub names: BTreeMap<Key, String>,
    /// Bytes a second of the last move from one domain into another, where one was seen.
    pub rates: BTreeMap<(Key, Key), u64>,
}

/// What a borrower would have.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Wish {
    /// Whose wish it is.
    #[n(0)]
    pub borrower: Key,
    /// Machines.
    #[n(1)]
    pub machines: u32,
    /// Fewer are of no use.
    #[n(2)]
    pub least: u32,
    /// The reclamation that its work survives, the preferred first.
    #[n(3)]
    pub survives: Vec<Reclaim>,
    /// Memory of each, at least.
    #[n(4)]
    pub memory_bytes: u64,
    /// Processors of each, at least.
    #[n(5)]
    pub vcpus: u32,
    /// LANs of the VMs that are to come.
    #[n(6)]
    pub lans: Vec<Id>,
    /// The VMs that are to come, if they are known.
    #[n(7)]
    pub vms: Vec<Id>,
}

impl Desk<'_> {
    /// A domain's name; its digits where it has none.
    pub fn called(&self, domain: &Key) -> &str {
        self.names.get(domain).map_or("?", String::as_str)
    }

    fn side(&self, held: &Held) -> Option<Side> {
        held.contract.terms().side(&self.me)
    }

    fn standing(&self, held: &Held) -> Standing {
        held.contract.standing(self.now)
    }

    /// What is lent, or borrowed, and was not called back.
    fn holding(&self, side: Side) -> impl Iterator<Item = &Held> {
        let holds = |held: &&Held| matches!(self.standing(held).state, State::Signed | State::Active);
        self.held.iter().filter(move |held| self.side(held) == Some(side)).filter(holds)
    }

    /// The contract that binds a machine of the own domain.
    fn binding(&self, host: &Key) -> Option<&Held> {
        let binds = |held: &&Held| held.contract.terms().host == *host && self.standing(held).state.binds();
        self.held.iter().filter(|held| self.side(held) == Some(Side::Lender)).find(binds)
    }

    /// Whether a machine of the own domain stands idle, or why it could not be lent.
    fn idle(&self, machine: &Machine) -> Result<(), String> {
        if let Some(why) = &machine.out {
            return Err(why.clone());
        }
        if let Some(held) = self.binding(&machine.key) {
            return Err(format!("is promised to {} by contract {}", self.called(&held.contract.terms().borrower), held.id.short()));
        }
        match (machine.own_vms, machine.other_vms) {
            (0, 0) => Ok(()),
            (0, others) => Err(format!("runs {others} VMs of others")),
            (own, _) => Err(format!("runs {own} VMs of its own domain")),
        }
    }

    /// What the domain's work wants: what was told of it, or as many machines as its VMs run on.
    pub fn demand(&self) -> Demand {
        self.told.unwrap_or_else(|| {
            let own = self.machines.iter().filter(|machine| machine.own_vms > 0).count();
            let abroad = self.holding(Side::Borrower).filter(|held| !held.guests.is_empty()).count();
            Demand { queued: 0, running: number(own + abroad), widest: 0 }
        })
    }

    /// What the functions of trade are asked with.
    fn world<'a>(&'a self, loans: &'a [Loan<'a>]) -> World<'a> {
        let owned = self.machines.iter().filter(|machine| machine.out.is_none()).count();
        let idle = self.machines.iter().filter(|machine| self.idle(machine).is_ok()).count();
        let borrowed = self.holding(Side::Borrower).count();
        let borrowed_idle = self.holding(Side::Borrower).filter(|held| held.guests.is_empty()).count();
        World {
            now: self.now,
            policy: self.policy,
            holdings: Holdings { owned: number(owned), lent: number(loans.len()), borrowed: number(borrowed) },
            demand: self.demand(),
            idle: number(idle),
            borrowed_idle: number(borrowed_idle),
            lent: loans,
        }
    }

    /// What is lent, each with its place in the list of contracts as its number.
    fn loans(&self) -> Vec<Loan<'_>> {
        let lent = self.holding(Side::Lender).map(|held| {
            let terms = held.contract.terms();
            let machine = self.held.iter().position(|other| other.id == held.id).map_or(0, number);
            let done_s = self.now.saturating_sub(terms.from);
            let left_s = terms.until.map_or(u64::MAX, |until| until.saturating_sub(self.now));
            let work = if held.guests.is_empty() { Work::Idle } else { Work::Busy { job: machine.into(), done_s, left_s } };
            Loan { machine, borrower: self.called(&terms.borrower), until: terms.until, reclaim: terms.reclaim, work }
        });
        lent.collect()
    }

    /// Which of a lender's drafts are worth to be signed. `has` is what the pool knows of a host: its domain, its processors and its memory.
    pub fn choose(&self, lender: Key, wish: &Wish, drafts: &[Terms], has: impl Fn(&Key) -> Option<(Key, u32, u64)>) -> Plan<Terms> {
        let mut plan = Plan::nothing();
        let borrowing = &self.policy.borrowing;
        let name = self.called(&lender);
        if !borrowing.from.value.include(name) {
            plan.refuse(name, format!("is not borrowed from ({})", borrowing.from));
            return plan;
        }
        for terms in drafts.iter().take(wish.machines as usize) {
            let host = terms.host.short();
            let bad = self.fault(lender, wish, terms, &has);
            if let Some(why) = bad {
                plan.refuse(format!("{name}, host {host}"), why);
            } else if plan.steps.iter().any(|step: &super::plan::Because<Terms>| step.what.host == terms.host) {
                plan.refuse(format!("{name}, host {host}"), "is offered twice".into());
            } else {
                let reason =
                    format!("{} for an hour ({}), back by {} ({})", terms.price_milli, borrowing.price, terms.reclaim, borrowing.survives);
                plan.step(terms.clone(), reason);
            }
        }
        if plan.steps.len() < wish.least as usize && !plan.steps.is_empty() {
            let why = format!("{} are too few to borrow ({})", plan.steps.len(), borrowing.least);
            plan.steps.clear();
            plan.refuse(name, why);
        }
        plan
    }

    fn fault(&self, lender: Key, wish: &Wish, terms: &Terms, has: &impl Fn(&Key) -> Option<(Key, u32, u64)>) -> Option<String> {
        let borrowing = &self.policy.borrowing;
        let (domain, cpus, memory) = match has(&terms.host) {
            Some(known) => known,
            None => return Some("offers a machine that the pool does not know".into()),
        };
        if terms.lender != lender || terms.borrower != self.me || domain != lender {
            return Some("offers a machine that is not its own".into());
        }
        if terms.memory_bytes > memory || terms.vcpus > cpus {
            let (memory, offered) = (memory >> 20, terms.memory_bytes >> 20);
            return Some(format!("offers {offered} MiB and {} processors of a machine that has {memory} MiB and {cpus}", terms.vcpus));
        }
        if terms.memory_bytes < wish.memory_bytes || terms.vcpus < wish.vcpus {
            return Some("offers less than was asked for".into());
        }
        if terms.price_milli > borrowing.price.value.0.into() {
            return Some(format!("wants {} for an hour ({})", terms.price_milli, borrowing.price));
        }
        if !borrowing.survives.value.0.contains(&terms.reclaim) {
            return Some(format!("takes machines back by {} ({})", terms.reclaim, borrowing.survives));
        }
        if !terms.vms.is_empty() && terms.vms != wish.vms || !terms.lans.is_empty() && terms.lans != wish.lans {
            return Some("names other VMs or LANs than were asked about".into());
        }
        clocks(self.now, terms)
    }
}

/// What is wrong with the times of terms that are signed now: one of two clocks may be.
fn clocks(now: u64, terms: &Terms) -> Option<String> {
    use rebec_book::contract::standing::CLOCK_SLACK_S;
    let wrong = |what: String| Some(format!("{what} by this host's clock; is one of the two clocks wrong?"));
    if terms.until.is_some_and(|until| until <= now) {
        return wrong(format!("it would have ended {} s ago", now - terms.until.unwrap_or(now)));
    }
    if terms.from.saturating_add(CLOCK_SLACK_S) < now {
        return wrong(format!("it would have begun {} s ago", now - terms.from));
    }
    if terms.from > now.saturating_add(CLOCK_SLACK_S) {
        return wrong(format!("it would begin in {} s", terms.from - now));
    }
    if terms.answer_by <= now {
        return wrong(format!("it has lapsed {} s ago", now - terms.answer_by));
    }
    if terms.answer_by > now.saturating_add(ANSWER_S + CLOCK_SLACK_S) {
        return wrong(format!("it lapses only in {} s", terms.answer_by - now));
    }
    None
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
