//! How much a guest may make all others hear: a bucket for each kind of flood, counted in copies, for each copy is work of this host and of another.

use std::time::{Duration, Instant};

use crate::counters::Reason;

/// Copies a second, of each kind: 180 Mbit/s of full frames to one other port, and an ARP question every 8 ms to 128 of them.
pub const COPIES_PER_SECOND: u32 = 16_384;
/// Copies at once, after a second of rest.
pub const COPIES_MAX: u32 = COPIES_PER_SECOND;

const NANOS_PER_COPY: u64 = 1_000_000_000 / COPIES_PER_SECOND as u64;

/// Why a frame goes to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// It is for all.
    Broadcast,
    /// It is for a group.
    Multicast,
    /// Nobody knows where its station is.
    Unknown,
}

impl Flood {
    /// What is counted where there is too much of it.
    pub fn reason(self) -> Reason {
        match self {
            Self::Broadcast => Reason::StormBroadcast,
            Self::Multicast => Reason::StormMulticast,
            Self::Unknown => Reason::StormUnknown,
        }
    }
}

/// The buckets of one port.
#[derive(Debug, Default)]
pub struct Storms([Bucket; 3]);

/// Empty when `owed` is nothing; it runs out with time.
#[derive(Debug, Default)]
struct Bucket {
    /// Copies that are not paid for with time yet.
    owed: u32,
    since: Option<Instant>,
}

impl Storms {
    /// Takes `copies` of a flood at once, or none of them. A frame of more copies than there can be room for goes when nothing else did.
    pub fn take(&mut self, now: Instant, flood: Flood, copies: usize) -> Result<(), Reason> {
        let copies = u32::try_from(copies).unwrap_or(u32::MAX).min(COPIES_MAX);
        let has_room = self.0[flood as usize].take(now, copies);
        if has_room { Ok(()) } else { Err(flood.reason()) }
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, copies: u32) -> bool {
        let since = *self.since.get_or_insert(now);
        let paid = u64::try_from(now.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX) / NANOS_PER_COPY;
        if paid >= u64::from(self.owed) {
            (self.owed, self.since) = (0, Some(now));
        } else {
            // What is left of a copy's time still counts.
            self.owed -= paid as u32;
            self.since = Some(since + Duration::from_nanos(paid * NANOS_PER_COPY));
        }
        if self.owed + copies > COPIES_MAX {
            return false;
        }
        self.owed += copies;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_second_of_copies() {
        let (mut storms, start) = (Storms::default(), Instant::now());
        for flood in [Flood::Broadcast, Flood::Multicast, Flood::Unknown] {
            assert!((0..COPIES_MAX).all(|_| storms.take(start, flood, 1).is_ok()));
            assert_eq!(storms.take(start, flood, 1), Err(flood.reason()));
        }
        assert_eq!(storms.take(start + Duration::from_nanos(NANOS_PER_COPY), Flood::Broadcast, 1), Ok(()));
    }

    /// Against a count of the time in 128 bits: whatever is asked when, never more than a second's worth and what time gave.
    #[test]
    fn nothing_is_taken_twice_and_nothing_is_lost_to_rounding() {
        for step_nanos in [1, NANOS_PER_COPY - 1, NANOS_PER_COPY, NANOS_PER_COPY + 1, 7 * NANOS_PER_COPY / 3, 1_000_000] {
            let (mut bucket, start, mut taken) = (Bucket::default(), Instant::now(), 0_u128);
            for step in 0..200_000_u64 {
                let now = start + Duration::from_nanos(step * step_nanos);
                taken += u128::from(bucket.take(now, 1));
                let allowed = u128::from(COPIES_MAX) + u128::from(step * step_nanos / NANOS_PER_COPY);
                assert!(taken <= allowed, "{taken} of {allowed} at step {step} of {step_nanos} ns");
                assert!(taken + 1 >= allowed.min(u128::from(step + 1)), "{taken} of {allowed} at step {step} of {step_nanos} ns");
            }
        }
    }

    #[test]
    fn a_frame_of_more_copies_than_fit_goes_alone() {
        let (mut bucket, start) = (Storms::default(), Instant::now());
        assert_eq!(bucket.take(start, Flood::Broadcast, usize::MAX), Ok(()));
        assert_eq!(bucket.take(start, Flood::Broadcast, 1), Err(Reason::StormBroadcast));
        assert_eq!(bucket.take(start + Duration::from_secs(1), Flood::Broadcast, usize::MAX), Ok(()));
        // A clock that goes back gives nothing.
        assert_eq!(bucket.take(start, Flood::Broadcast, 1), Err(Reason::StormBroadcast));
    }
}
