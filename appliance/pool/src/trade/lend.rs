//! What a domain lends: what others may ask for, and the answer to each that asks.

use super::{
    demand,
    plan::Plan,
    policy::{Modes, Reclaim},
    world::World,
};

/// What may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer<'a> {
    /// Whose.
    pub lender: &'a str,
    /// How many.
    pub machines: u32,
    /// How they may be taken back, what the lender prefers first.
    pub reclaim: &'a Modes,
}

/// A borrower's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask<'a> {
    /// Whose.
    pub borrower: &'a str,
    /// How many.
    pub machines: u32,
    /// Fewer are of no use to it.
    pub least: u32,
    /// How they may be taken back.
    pub reclaim: Reclaim,
}

/// Machines are lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lend<'a> {
    /// To whom.
    pub borrower: &'a str,
    /// How many; it may be fewer than were asked for.
    pub machines: u32,
    /// When the lease ends, in seconds since 1970; none is when the lender needs them.
    pub until: Option<u64>,
    /// How they come back.
    pub reclaim: Reclaim,
}

/// What may be asked for now.
///
/// # Errors
/// Why nothing.
pub fn offer<'a>(me: &'a str, world: &World<'a>) -> Result<Offer<'a>, String> {
    let (machines, _) = room(world)?;
    Ok(Offer { lender: me, machines, reclaim: &world.policy.lending.reclaim.value })
}

/// Answers those who ask, in their order.
pub fn plan<'a>(world: &World<'_>, asks: &[Ask<'a>]) -> Plan<Lend<'a>> {
    let mut plan = Plan::nothing();
    let lending = &world.policy.lending;
    let (mut left, why) = match room(world) {
        Ok(room) => room,
        Err(why) => (0, why),
    };
    for ask in asks {
        if !lending.to.value.include(ask.borrower) {
            plan.refuse(ask.borrower, format!("is not lent to ({})", lending.to));
        } else if !lending.reclaim.value.0.contains(&ask.reclaim) {
            plan.refuse(ask.borrower, format!("wants to give machines back by {} ({})", ask.reclaim, lending.reclaim));
        } else if left == 0 || left < ask.least {
            plan.refuse(ask.borrower, format!("asks for {}, at least {}, of the {left} that are left: {why}", ask.machines, ask.least));
        } else {
            let machines = ask.machines.min(left);
            left -= machines;
            let lease = lending.longest.value.0.map(|longest| world.now.saturating_add(longest));
            let until = [lease, lending.when.value.closes(world.now)].into_iter().flatten().min();
            plan.step(Lend { borrower: ask.borrower, machines, until, reclaim: ask.reclaim }, why.clone());
        }
    }
    plan
}

/// How many may be lent, and by what rule.
fn room(world: &World<'_>) -> Result<(u32, String), String> {
    let lending = &world.policy.lending;
    let told = demand::told(&world.demand, &world.holdings);
    if !lending.when.value.is_open(world.now) {
        return Err(format!("it is not the time to lend ({})", lending.when));
    }
    if world.holdings.borrowed > 0 {
        return Err(format!("it has borrowed {} itself", world.holdings.borrowed));
    }
    let spare = u64::try_from(-demand::needed(&world.demand, &world.holdings)).unwrap_or_default().min(u64::from(world.idle));
    if spare == 0 {
        return Err(format!("its own work leaves nothing: {told}"));
    }
    let lent = u64::from(world.holdings.lent);
    let by_share = ((spare + lent) * u64::from(lending.share.value.0) / 100).saturating_sub(lent);
    let by_keep = spare.saturating_sub(u64::from(lending.keep.value));
    let rule = if by_keep < by_share { lending.keep.to_string() } else { lending.share.to_string() };
    let room = u32::try_from(by_share.min(by_keep)).unwrap_or(u32::MAX);
    let why = format!("{told}, {} idle, {lent} lent ({rule})", world.idle);
    if room == 0 { Err(why) } else { Ok((room, why)) }
}
