//! How far the clock of a host that a VM moves to is ahead of this one's: asked with the move's own streams. Pure.
//!
//! A guest's clock goes on by the difference of the two hosts' clocks, because that is how long the move took. Where they differ by more than time
//! servers leave, it would jump by that, so the VMM is told and leaves it out.

/// What says the time in the answer to who opens a stream: milliseconds since 1970.
pub const HEADER: &str = "rebec-clock-ms";
/// Clocks that time servers keep are closer.
const MATTERS_MS: u64 = 500;

/// What one question to a host's clock said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    ahead_ms: i64,
    /// It may be so much more or less: half of the time that the question took.
    within_ms: u64,
}

impl Reading {
    /// Asked and answered at these times of the own clock, with that one of the other's.
    pub fn new(asked_ms: i64, answered_ms: i64, told_ms: i64) -> Self {
        let took = answered_ms.saturating_sub(asked_ms);
        Self { ahead_ms: told_ms.saturating_sub(asked_ms.saturating_add(took / 2)), within_ms: took.unsigned_abs() / 2 }
    }
}

/// How far it is ahead, by the quickest of some readings; nothing where that is no more than clocks differ that are kept, or than was measured.
pub fn ahead_ms(readings: &[Reading]) -> i64 {
    let best = readings.iter().min_by_key(|reading| reading.within_ms);
    best.filter(|best| best.ahead_ms.unsigned_abs() > best.within_ms.saturating_add(MATTERS_MS)).map_or(0, |best| best.ahead_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answer_counts_and_small_differences_do_not() {
        let hour = 3_600_000;
        let quick = Reading::new(1000, 1010, 1005 + hour);
        let slow = Reading::new(1000, 9000, 1000 + hour);
        assert_eq!((ahead_ms(&[slow, quick]), ahead_ms(&[])), (hour, 0));
        assert_eq!(ahead_ms(&[Reading::new(1000, 1010, 1005 - hour)]), -hour);
        assert_eq!(ahead_ms(&[Reading::new(1000, 1010, 1505)]), 0);
        assert_eq!(ahead_ms(&[Reading::new(1000, 1010, 1516)]), 511);
        // Told by a link that takes seconds, a second is nothing that is known.
        assert_eq!(ahead_ms(&[Reading::new(1000, 5000, 4000)]), 0);
        // Whatever a host says, and whatever this clock does meanwhile.
        for told in [i64::MIN, i64::MAX, 0] {
            for (asked, answered) in [(0, 0), (i64::MAX, i64::MIN), (i64::MIN, i64::MAX), (5, 0)] {
                ahead_ms(&[Reading::new(asked, answered, told)]);
            }
        }
    }
}
