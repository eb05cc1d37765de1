//! Handshakes of QUIC that others begin: side by side, so that one that stalls holds nobody up, and bounded. Whoever sends from an address
//! that is not its own stalls always; once many are underway, an address has to answer first (RFC 9000 §8.1.2), which costs nothing here.

use std::{net::IpAddr, sync::Arc};

use iroh::endpoint::{Incoming, IncomingAddr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::shares::{Share, Shares, sender};

/// Handshakes underway: each costs a millisecond of a processor and some 100 KiB.
const UNDERWAY_MAX: usize = 64;
/// Above so many, an address has to answer before more is done.
const UNPROVEN_MAX: usize = 32;
/// Of one address that has answered.
const PER_ADDRESS: usize = 16;

/// The handshakes underway.
#[derive(Debug)]
pub struct Handshakes {
    places: Arc<Semaphore>,
    of_address: Shares<IpAddr>,
}

/// The place of one.
#[derive(Debug)]
pub struct Underway {
    _place: OwnedSemaphorePermit,
    _of_address: Option<Share<IpAddr>>,
}

/// What is to be done with one more.
#[derive(Debug)]
enum Verdict {
    Begin(Underway),
    Prove,
    Refuse,
}

impl Handshakes {
    /// None yet.
    pub fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(UNDERWAY_MAX)), of_address: Shares::new(PER_ADDRESS) }
    }

    /// Lets one more begin, or answers it.
    pub fn admit(&self, incoming: Incoming) -> Option<(Incoming, Underway)> {
        let from = if let IncomingAddr::Ip(address) = incoming.remote_addr() { Some(sender(address.ip())) } else { None };
        match self.judge(from, incoming.remote_addr_validated()) {
            Verdict::Begin(underway) => return Some((incoming, underway)),
            Verdict::Refuse => incoming.refuse(),
            Verdict::Prove => {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
            }
        }
        None
    }

    fn judge(&self, from: Option<IpAddr>, proven: bool) -> Verdict {
        if !proven && self.places.available_permits() <= UNDERWAY_MAX - UNPROVEN_MAX {
            return Verdict::Prove;
        }
        // Before it has answered, an address may be anybody's: it is not held against its owner.
        let of_address = match from.filter(|_| proven).map(|from| self.of_address.take(from)) {
            Some(None) => return Verdict::Refuse,
            Some(share) => share,
            None => None,
        };
        match self.places.clone().try_acquire_owned() {
            Ok(place) => Verdict::Begin(Underway { _place: place, _of_address: of_address }),
            Err(_) => Verdict::Refuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(handshakes: &Handshakes, from: u8, proven: bool) -> Vec<Underway> {
        let begin =
            || if let Verdict::Begin(underway) = handshakes.judge(Some([10, 0, 0, from].into()), proven) { Some(underway) } else { None };
        std::iter::from_fn(begin).collect()
    }

    #[test]
    fn false_addresses_leave_room_for_those_that_answer() {
        let handshakes = Handshakes::new();
        let unproven = begins(&handshakes, 1, false);
        assert_eq!(unproven.len(), UNPROVEN_MAX);
        assert!(matches!(handshakes.judge(Some([10, 0, 0, 2].into()), false), Verdict::Prove));
        // The owner of the address that was misused gets in too.
        let proven = begins(&handshakes, 1, true);
        assert_eq!(proven.len(), PER_ADDRESS);
        assert!(matches!(handshakes.judge(Some([10, 0, 0, 1].into()), true), Verdict::Refuse));
        let others: Vec<_> = (2..9).flat_map(|from| begins(&handshakes, from, true)).collect();
        assert_eq!(unproven.len() + proven.len() + others.len(), UNDERWAY_MAX);
        drop(unproven);
        assert_eq!(begins(&handshakes, 9, false).len(), 0);
        drop((proven, others));
        assert_eq!(begins(&handshakes, 9, false).len(), UNPROVEN_MAX);
    }
}
