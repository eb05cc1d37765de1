//! Which guests stand still because the disk that they fill is nearly full: those that take more of it, before they take what this host needs for
//! records, ledgers and moves. They go on when there is room again. Pure: told how much room there is and what each guest's disk takes.
//!
//! ```text
//! free  ──────── high ── all go on ──── low ── who grows stands still ──── reserve ── given back step by step (reserve.rs) ──── 0
//! ```
//! A limit of the file system for each VM would be of no use beside it: a layer is never larger than its disk, and it is the sum that fills up.

use std::collections::BTreeMap;

use rebec_book::key::Id;

/// Less than this part of the disk is little,
const LOW_PART: u64 = 32;
/// but never less than what a fast disk takes between two looks,
const LOW_BYTES_MIN: u64 = 32 << 20;
/// nor more than any host needs.
const LOW_BYTES_MAX: u64 = 1 << 30;
/// So much more is room again.
const HIGH: u64 = 2;

/// What is free of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of the file system.
    pub all_bytes: u64,
    /// What this host may still write.
    pub free_bytes: u64,
}

/// A guest that has a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Its VM.
    pub vm: Id,
    /// What its layer takes.
    pub taken_bytes: u64,
    /// Whether it stands still for want of room.
    pub stands_still: bool,
}

/// What is to be done about a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It stands still from here on.
    Stand(Id),
    /// It goes on.
    GoOn(Id),
}

/// What each guest took at the last look.
#[derive(Debug, Default)]
pub struct Growth {
    taken: BTreeMap<Id, u64>,
}

impl Room {
    /// Whether guests that take more must stand still.
    pub fn is_low(&self) -> bool {
        self.free_bytes < self.low_bytes()
    }

    /// Whether those that stand still may go on.
    pub fn is_enough(&self) -> bool {
        self.free_bytes >= self.low_bytes() * HIGH
    }

    fn low_bytes(&self) -> u64 {
        (self.all_bytes / LOW_PART).clamp(LOW_BYTES_MIN, LOW_BYTES_MAX)
    }
}

impl Growth {
    /// Looks at all guests that run here.
    pub fn look(&mut self, room: Room, guests: &[Guest]) -> Vec<Act> {
        let before = std::mem::take(&mut self.taken);
        self.taken = guests.iter().map(|guest| (guest.vm, guest.taken_bytes)).collect();
        let act = |guest: &Guest| {
            let grows = before.get(&guest.vm).is_some_and(|before| guest.taken_bytes > *before);
            match guest.stands_still {
                true if room.is_enough() => Some(Act::GoOn(guest.vm)),
                false if room.is_low() && grows => Some(Act::Stand(guest.vm)),
                _ => None,
            }
        };
        guests.iter().filter_map(act).collect()
    }
}

#[cfg(test)]
mod tests {
    use rebec_book::key::Name;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn guest(number: u8, taken: u64, stands_still: bool) -> Guest {
        Guest { vm: Name([number; 16]), taken_bytes: taken * MIB, stands_still }
    }

    fn room(free: u64) -> Room {
        Room { all_bytes: 1024 * MIB, free_bytes: free * MIB }
    }

    #[test]
    fn who_grows_stands_still_before_all_is_taken_and_goes_on_when_there_is_room() {
        let (mut growth, [one, two]) = (Growth::default(), [Name([1; 16]), Name([2; 16])]);
        assert_eq!(growth.look(room(500), &[guest(1, 10, false), guest(2, 10, false)]), []);
        assert_eq!(growth.look(room(40), &[guest(1, 470, false), guest(2, 10, false)]), [], "there is room");
        assert_eq!(growth.look(room(31), &[guest(1, 479, false), guest(2, 10, false)]), [Act::Stand(one)]);
        assert_eq!(growth.look(room(30), &[guest(1, 479, true), guest(2, 11, false)]), [Act::Stand(two)]);
        assert_eq!(growth.look(room(30), &[guest(1, 479, true), guest(2, 11, true)]), []);
        assert_eq!(growth.look(room(60), &[guest(1, 479, true), guest(2, 11, true)]), [], "some room, and not enough");
        assert_eq!(growth.look(room(64), &[guest(1, 479, true), guest(2, 11, true)]), [Act::GoOn(one), Act::GoOn(two)]);
    }

    #[test]
    fn who_was_not_seen_before_has_not_grown() {
        let mut growth = Growth::default();
        assert_eq!(growth.look(room(1), &[guest(1, 10, false)]), []);
        assert_eq!(growth.look(room(1), &[guest(1, 10, false)]), []);
        assert_eq!(growth.look(room(1), &[guest(1, 11, false)]), [Act::Stand(Name([1; 16]))]);
    }

    #[test]
    fn what_is_little_grows_with_the_disk_within_bounds() {
        let low = |all| Room { all_bytes: all, free_bytes: 0 }.low_bytes();
        assert_eq!([low(0), low(64 * MIB), low(4096 * MIB), low(u64::MAX)], [32 * MIB, 32 * MIB, 128 * MIB, 1024 * MIB]);
    }
}
