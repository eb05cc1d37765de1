//! A VM is assigned anew by its home, and leased by its keeper: what the book says of who has a copy of it.

use rebec_book::{Book, Key, key::Id, view};

use crate::lease::{Ask, Stance};

/// Epochs that one move may take.
const MOVE_EPOCHS: u64 = 2;

/// The epoch at which a VM's home may assign it: nobody else's claim comes near. An unproved claim counts as far as one move, or one that was taken
/// back, could have led.
pub fn next_epoch(book: &Book, vm: Id) -> u64 {
    let at = view::holder(book, vm).map_or(0, |at| at.epoch);
    let claimed = view::claims(book, vm).map(|(_, seen)| seen.epoch).filter(|epoch| *epoch <= at.saturating_add(MOVE_EPOCHS));
    claimed.fold(at, u64::max).saturating_add(1)
}

/// Whether a host has a copy of a VM that a promise can be for: it holds the VM by proof, or the holder sends it there.
pub fn has_copy(book: &Book, vm: Id, asker: Key, ask: Ask) -> bool {
    let Some(at) = view::holder(book, vm) else { return false };
    let holds = at.host == asker && at.epoch == ask.epoch && ask.stance != Stance::Arrives;
    let is_sent = || view::seen(book, vm).is_some_and(|seen| seen.holder == at.host && seen.body.to == Some(asker));
    holds || ask.epoch == at.epoch.saturating_add(1) && is_sent()
}
