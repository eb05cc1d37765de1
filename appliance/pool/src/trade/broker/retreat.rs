//! Where a borrower's VM goes when the machine under it is wanted back: home, or to a machine of a third domain that a contract lends it, by how long the
//! moves are thought to take and how much of the notice is left.

use rebec_book::{
    contract::{Contract, Reclaim, State},
    key::Key,
};

use super::{Desk, Guest, Held, Place};

/// Bytes a second of a move that nobody has seen: 100 Mbit/s. Who is wrong about it learns with the first move.
pub const RATE_UNKNOWN: u64 = 12_500_000;
/// A move takes so long beside its bytes: both sides make ready.
const BESIDE_S: u64 = 2;

/// Why VMs leave a borrowed machine, if they do.
pub fn leaves(contract: &Contract, now: u64) -> Option<String> {
    let (terms, standing) = (contract.terms(), contract.standing(now));
    let ends_soon = terms.until.is_some_and(|until| until.saturating_sub(terms.notice_s) <= now && now > terms.from);
    match standing.state {
        State::Recalled | State::Ended => Some(standing.why),
        State::Active if ends_soon => Some("its lease ends within its notice".to_owned()),
        _ => None,
    }
}

/// Whether a machine that was called back is waited for until its work has ended.
pub(super) fn waits(contract: &Contract, now: u64) -> bool {
    contract.terms().reclaim == Reclaim::Wait && contract.standing(now).state == State::Recalled
}

/// Where a VM goes, and why there.
pub(super) fn choose<'g>(desk: &Desk<'_>, held: &Held, guest: &'g Guest) -> Result<(&'g Place, String), String> {
    let places = guest.places.as_ref().map_err(Clone::clone)?;
    let terms = held.contract.terms();
    let left_s = held.contract.due().map(|due| due.saturating_sub(desk.now));
    let takes_s = |place: &Place| predicted_s(desk, terms.lender, place.domain, guest.memory_bytes);
    let in_time = |place: &Place| left_s.is_none_or(|left| takes_s(place) <= left);
    let home = places.iter().find(|place| place.domain == desk.me);
    let quickest = |in_time: bool| {
        let others = places.iter().filter(|place| !in_time || left_s.is_none_or(|left| takes_s(place) <= left));
        others.min_by_key(|place| (takes_s(place), place.domain != desk.me))
    };
    let left = left_s.map_or_else(|| "without a deadline".to_owned(), |left| format!("of {left} s that are left"));
    let about = |place: &Place| format!("host {}, {}; about {} s {left}", place.name, place.reason, takes_s(place));
    if let Some(place) = home.filter(|place| in_time(place)) {
        return Ok((place, format!("it goes home: {}", about(place))));
    }
    let Some(place) = quickest(true).or_else(|| quickest(false)) else { return Err("no host takes it".into()) };
    let why_not_home =
        home.map_or_else(|| "no host at home takes it".to_owned(), |home| format!("home is too far: about {} s", takes_s(home)));
    let late = if in_time(place) { "" } else { ", and nowhere is nearer" };
    let of = if place.domain == desk.me { "home" } else { "a third domain" };
    Ok((place, format!("{why_not_home}{late}; it goes to {of} {}: {}", desk.called(&place.domain), about(place))))
}

/// How long a move is thought to take.
fn predicted_s(desk: &Desk<'_>, from: Key, to: Key, bytes: u64) -> u64 {
    let rate = desk.rates.get(&(from, to)).copied().unwrap_or(RATE_UNKNOWN).max(1);
    bytes.div_ceil(rate).saturating_add(BESIDE_S)
}
