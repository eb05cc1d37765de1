//! The lender's side: what it would lend to who asks, and its answer to a proposal that the borrower has signed.

use rebec_book::{
    contract::{Contract, Side, State, Terms},
    key::Nonce,
};

use super::{ANSWER_S, Desk, MACHINES_MAX, Machine, Wish, clocks};
use crate::trade::{
    lend::{self, Ask},
    policy::{Accept, Modes},
};

/// The answer to a proposal.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It is signed, and why.
    Sign(String),
    /// It was signed before.
    Known,
    /// It is allowed, and an operator's to accept.
    Wait(String),
    /// These terms would be signed instead.
    Counter(Box<Terms>, String),
    /// It is not signed.
    Refuse(String),
}

/// What would be lent, as terms that bind nobody: nothing is kept of them.
///
/// # Errors
/// Why nothing.
pub fn offers(desk: &Desk<'_>, wish: &Wish, mut nonce: impl FnMut() -> Nonce) -> Result<(Vec<Terms>, String), String> {
    if wish.machines == 0 || wish.machines > MACHINES_MAX || wish.least > wish.machines || wish.borrower == desk.me {
        return Err(format!("a wish has 1 to {MACHINES_MAX} machines, and another domain for borrower"));
    }
    let lending = &desk.policy.lending;
    let Some(reclaim) = lending.reclaim.value.agree(&Modes(wish.survives.clone())) else {
        return Err(format!("machines come back by {} ({})", lending.reclaim.value, lending.reclaim));
    };
    let fits = |machine: &&Machine| fault(desk, machine, wish.memory_bytes, wish.vcpus).is_none();
    let free: Vec<&Machine> = desk.machines.iter().filter(fits).collect();
    let ask = Ask { borrower: desk.called(&wish.borrower), machines: wish.machines, least: wish.least, reclaim };
    let loans = desk.loans();
    let plan = lend::plan(&desk.world(&loans), &[ask]);
    let Some(lend) = plan.steps.first() else {
        return Err(plan.refusals.first().map_or_else(String::new, |refusal| refusal.reason.clone()));
    };
    let machines = free.len().min(lend.what.machines as usize);
    if machines < wish.least.max(1) as usize {
        let why: Vec<String> =
            desk.machines.iter().filter_map(|machine| fault(desk, machine, wish.memory_bytes, wish.vcpus)).take(4).collect();
        return Err(format!("{machines} machines fit: {}", why.join("; ")));
    }
    let draft = |machine: &&Machine| Terms {
        nonce: nonce(),
        lender: desk.me,
        borrower: wish.borrower,
        host: machine.key,
        vcpus: machine.vcpus,
        memory_bytes: machine.memory_bytes,
        disk_bytes: machine.disk_bytes,
        price_milli: lending.price.value.0.into(),
        from: desk.now,
        until: lend.what.until,
        notice_s: lending.notice.value.0,
        reclaim,
        lans: wish.lans.clone(),
        vms: wish.vms.clone(),
        answer_by: desk.now.saturating_add(ANSWER_S),
    };
    Ok((free.iter().take(machines).map(draft).collect(), lend.reason.clone()))
}

/// Whether a proposal is signed.
pub fn consider(desk: &Desk<'_>, contract: &Contract) -> Verdict {
    let terms = contract.terms();
    let refuse = |why: String| Verdict::Refuse(why);
    if terms.lender != desk.me {
        return refuse("this domain is not its lender".into());
    }
    if !contract.is_proved() || !contract.is_signed_by(Side::Borrower) {
        return refuse("its borrower has not signed it".into());
    }
    if desk.held.iter().any(|held| held.id == contract.id() && held.contract.is_signed_by(Side::Lender)) {
        return Verdict::Known;
    }
    if contract.standing(desk.now).state != State::Offered {
        return refuse(clocks(desk.now, terms).unwrap_or_else(|| "it has lapsed".into()));
    }
    if let Some(why) = clocks(desk.now, terms) {
        return refuse(why);
    }
    let Some(machine) = desk.machines.iter().find(|machine| machine.key == terms.host) else {
        return refuse("the machine is none of this domain's".into());
    };
    if let Some(why) = fault(desk, machine, terms.memory_bytes, terms.vcpus) {
        return refuse(why);
    }
    let lending = &desk.policy.lending;
    let ask = Ask { borrower: desk.called(&terms.borrower), machines: 1, least: 1, reclaim: terms.reclaim };
    let loans = desk.loans();
    let plan = lend::plan(&desk.world(&loans), &[ask]);
    let Some(lend) = plan.steps.first() else {
        return refuse(plan.refusals.first().map_or_else(String::new, |refusal| refusal.reason.clone()));
    };
    let (price, notice) = (u64::from(lending.price.value.0), lending.notice.value.0);
    let counter = |change: Terms, why: String| Verdict::Counter(Terms { nonce: terms.nonce, ..change }.into(), why);
    // An end that comes a little later than the rule says is that of a draft which is a little old.
    let too_long = lend.what.until.is_some_and(|most| terms.until.is_none_or(|until| until > most));
    if too_long {
        let rule = if lending.longest.value.0.is_some() { lending.longest.to_string() } else { lending.when.to_string() };
        return counter(Terms { until: lend.what.until, ..terms.clone() }, format!("it would end too late ({rule})"));
    }
    if terms.price_milli < price {
        return counter(
            Terms { price_milli: price, ..terms.clone() },
            format!("{} for an hour is too little ({})", terms.price_milli, lending.price),
        );
    }
    if terms.notice_s > notice {
        return counter(
            Terms { notice_s: notice, ..terms.clone() },
            format!("a notice of {} s is too long ({})", terms.notice_s, lending.notice),
        );
    }
    match lending.accept.value {
        Accept::Policy => Verdict::Sign(lend.reason.clone()),
        Accept::Operator => Verdict::Wait(format!("an operator accepts it ({})", lending.accept)),
    }
}

/// Why a machine is not lent, if it is not.
fn fault(desk: &Desk<'_>, machine: &Machine, memory_bytes: u64, vcpus: u32) -> Option<String> {
    let named = |why: String| Some(format!("{} {why}", machine.name));
    if let Err(why) = desk.idle(machine) {
        return named(why);
    }
    if machine.memory_bytes < memory_bytes || machine.vcpus < vcpus {
        return named(format!("has {} MiB and {} processors", machine.memory_bytes >> 20, machine.vcpus));
    }
    None
}
