//! What a domain borrows, and what it gives back by itself.

use super::{
    demand,
    lend::{Ask, Offer},
    plan::Plan,
    world::World,
};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deal<'a> {
    /// This is asked of a lender.
    Ask {
        /// Whom.
        lender: &'a str,
        /// What.
        ask: Ask<'a>,
    },
    /// So many borrowed machines on which nothing runs are given back.
    GiveBack(u32),
}

/// What is lacking is asked for, at the lender with most first; what is left over is given back.
pub fn plan<'a>(me: &'a str, world: &World<'_>, offers: &[Offer<'a>]) -> Plan<Deal<'a>> {
    let mut plan = Plan::nothing();
    let borrowing = &world.policy.borrowing;
    let (needed, told) = (demand::needed(&world.demand, &world.holdings), demand::told(&world.demand, &world.holdings));
    let spare = u32::try_from(-needed).unwrap_or_default().min(world.borrowed_idle);
    if spare > 0 {
        plan.step(Deal::GiveBack(spare), format!("{told}, {} of what was borrowed idle", world.borrowed_idle));
    }
    let lacking = u32::try_from(needed).unwrap_or_default();
    if lacking == 0 {
        return plan;
    }
    if lacking < borrowing.threshold.value {
        plan.refuse(me, format!("{told}: too few to borrow ({})", borrowing.threshold));
        return plan;
    }
    let allowed = borrowing.most.value.saturating_sub(world.holdings.borrowed);
    if allowed == 0 {
        plan.refuse(me, format!("{told}: it has borrowed {} ({})", world.holdings.borrowed, borrowing.most));
        return plan;
    }
    let (mut wanted, rule) =
        if allowed < lacking { (allowed, borrowing.most.to_string()) } else { (lacking, borrowing.threshold.to_string()) };
    let mut offers: Vec<&Offer<'a>> = offers.iter().collect();
    offers.sort_by_key(|offer| std::cmp::Reverse(offer.machines));
    for offer in offers {
        let machines = wanted.min(offer.machines);
        if machines == 0 {
            continue;
        }
        if !borrowing.from.value.include(offer.lender) {
            plan.refuse(offer.lender, format!("is not borrowed from ({})", borrowing.from));
        } else if machines < borrowing.least.value {
            plan.refuse(offer.lender, format!("{machines} are too few to borrow ({})", borrowing.least));
        } else if let Some(reclaim) = offer.reclaim.agree(&borrowing.survives.value) {
            wanted -= machines;
            let ask = Ask { borrower: me, machines, least: borrowing.least.value, reclaim };
            plan.step(Deal::Ask { lender: offer.lender, ask }, format!("{told} ({rule})"));
        } else {
            plan.refuse(offer.lender, format!("takes machines back by {} alone ({})", offer.reclaim, borrowing.survives));
        }
    }
    plan
}
