//! What a domain wants back of what it has lent: what its own work lacks, and what may be lent no longer.

use super::{
    demand,
    plan::Plan,
    policy::Reclaim,
    world::{Loan, Work, World},
};

/// One machine is to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recall<'a> {
    /// Its number at the lender's.
    pub machine: u32,
    /// Who has it.
    pub borrower: &'a str,
    /// How.
    pub by: Reclaim,
}

/// Leases that have ended and hours that are over first; then as many as are lacking, idle ones before those that work, and of those the ones whose
/// work loses least.
pub fn plan<'a>(world: &World<'a>) -> Plan<Recall<'a>> {
    let mut plan = Plan::nothing();
    let lending = &world.policy.lending;
    let closed = !lending.when.value.is_open(world.now);
    let (over, mut left): (Vec<&Loan<'_>>, Vec<&Loan<'_>>) =
        world.lent.iter().partition(|loan| closed || loan.until.is_some_and(|until| until <= world.now));
    let call = |plan: &mut Plan<Recall<'a>>, loan: &Loan<'a>, reason: String| {
        plan.step(Recall { machine: loan.machine, borrower: loan.borrower, by: loan.reclaim }, reason);
    };
    for loan in over {
        let reason = if closed {
            format!("the hours of lending are over ({})", lending.when)
        } else {
            format!("its lease has ended ({})", lending.longest)
        };
        call(&mut plan, loan, reason);
    }

    let lacking = lacking(world).saturating_sub(plan.steps.len());
    left.sort_by_key(|loan| cost(loan));
    for loan in left.into_iter().take(lacking) {
        let why = match loan.work {
            Work::Idle => "nothing runs on it".to_owned(),
            Work::Busy { job, done_s, .. } if loan.reclaim == Reclaim::Kill => format!("job {job} loses least, {done_s} s of work"),
            Work::Busy { .. } if loan.reclaim == Reclaim::Migrate => "what runs on it moves away".to_owned(),
            Work::Busy { job, left_s: u64::MAX, .. } => format!("no end was agreed for job {job}"),
            Work::Busy { job, left_s, .. } => format!("job {job} ends in {left_s} s at the latest"),
        };
        let reason = format!("{}; {why} (agreed from {})", demand::told(&world.demand, &world.holdings), lending.reclaim);
        call(&mut plan, loan, reason);
    }
    plan
}

/// What n says, and at least what the widest work lacks where it has to be: that much, if all is idle, would not be seen in n.
fn lacking(world: &World<'_>) -> usize {
    let here = i64::from(world.holdings.owned) - i64::from(world.holdings.lent);
    let wide = i64::from(world.demand.widest) - here;
    usize::try_from(demand::needed(&world.demand, &world.holdings).max(wide)).unwrap_or_default()
}

/// Less is better: idle, then what can be had now without a loss, then what loses least, then what ends soonest. Machines of one job stand together.
fn cost(loan: &Loan<'_>) -> (u8, u64, u64, u32) {
    match (loan.work, loan.reclaim) {
        (Work::Idle, _) => (0, 0, 0, loan.machine),
        (Work::Busy { job, done_s, .. }, Reclaim::Migrate) => (1, done_s, job, loan.machine),
        (Work::Busy { job, done_s, .. }, Reclaim::Kill) => (2, done_s, job, loan.machine),
        (Work::Busy { job, left_s, .. }, Reclaim::Wait) => (3, left_s, job, loan.machine),
    }
}
