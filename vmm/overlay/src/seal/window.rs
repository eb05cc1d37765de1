//! Which sequence numbers have been seen (RFC 4303 §3.4.3, with the ring of RFC 6479): each datagram is taken once, whatever order they come in.

/// How far a datagram may be behind the newest one. GRO and several queues reorder by some hundred.
pub const WINDOW: u64 = RING_BITS - 64;
const RING_BITS: u64 = 16_384;

/// What has been seen of one direction.
#[derive(Debug, Clone)]
pub struct Window {
    /// The greatest number that was taken; 0 before the first.
    top: u64,
    /// Bit *n* mod the ring's size: whether *n* was taken, for the numbers in the window.
    ring: Box<[u64]>,
}

impl Window {
    /// One that takes what is above `top`.
    pub fn above(top: u64) -> Self {
        let mut ring: Box<[u64]> = vec![u64::MAX; (RING_BITS / 64) as usize].into();
        // Above the top nothing has been seen.
        ring[word(top)] = u64::MAX >> (63 - top % 64);
        Self { top, ring }
    }

    /// The greatest number that was taken.
    pub fn top(&self) -> u64 {
        self.top
    }

    /// Whether this number has not been taken yet and is not too old to tell.
    pub fn admits(&self, number: u64) -> bool {
        number > self.top || (number + WINDOW > self.top && self.ring[word(number)] & bit(number) == 0)
    }

    /// Takes a number that [`Self::admits`].
    pub fn take(&mut self, number: u64) {
        if number > self.top {
            // The words that the window moves over are of numbers that were not seen yet.
            let words = (number / 64 - self.top / 64).min(RING_BITS / 64);
            for step in 0..words {
                self.ring[word(number - step * 64)] = 0;
            }
            self.top = number;
        }
        self.ring[word(number)] |= bit(number);
    }

    /// The whole number of which a datagram carries the lower half (RFC 4303, appendix A2.2): the one that is nearest to the window.
    pub fn infer(&self, low: u32) -> u64 {
        let (high, top_low) = (self.top >> 32, self.top as u32);
        let bottom = top_low.wrapping_sub(WINDOW as u32 - 1);
        let high = if u64::from(top_low) >= WINDOW - 1 {
            if low >= bottom { high } else { high + 1 }
        } else if low >= bottom {
            high.saturating_sub(1)
        } else {
            high
        };
        (high << 32) | u64::from(low)
    }
}

fn word(number: u64) -> usize {
    (number % RING_BITS / 64) as usize
}

fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_newest_moves_the_window_and_the_oldest_falls_out() {
        let mut window = Window::above(0);
        assert!(!window.admits(0));
        for number in [1, 3, 2, WINDOW, WINDOW + 1] {
            assert!(window.admits(number), "{number}");
            window.take(number);
            assert!(!window.admits(number), "{number}");
        }
        assert!(!window.admits(1), "too old to tell");
        assert!(window.admits(4));
        window.take(10 * RING_BITS);
        assert!(!window.admits(10 * RING_BITS - WINDOW) && window.admits(10 * RING_BITS - WINDOW + 1));
    }

    #[test]
    fn a_window_that_begins_above_a_number_takes_nothing_below() {
        let window = Window::above(1_000_000);
        assert!((1_000_000 - 2 * WINDOW..=1_000_000).all(|number| !window.admits(number)));
        assert!(window.admits(1_000_001));
    }

    proptest! {
        /// Against a set of all numbers that were ever taken.
        #[test]
        fn it_is_what_a_set_says(start in 0_u64..1 << 34, steps in proptest::collection::vec(-20_000_i64..20_000, 1..400)) {
            let (mut window, mut taken, mut top, mut at) = (Window::above(start), BTreeSet::new(), start, start);
            for step in steps {
                at = at.saturating_add_signed(step).max(1);
                let right = at > start && !taken.contains(&at) && (at > top || top - at < WINDOW);
                prop_assert_eq!(window.admits(at), right, "{} with top {}", at, top);
                if right {
                    window.take(at);
                    taken.insert(at);
                    top = top.max(at);
                }
            }
        }

        /// Whatever lies less than 2^31 ahead or within the window is inferred from its lower half.
        #[test]
        fn the_upper_half_is_inferred(top in WINDOW..1 << 40, ahead in -(WINDOW as i64 - 1)..1 << 31) {
            let number = top.saturating_add_signed(ahead);
            prop_assert_eq!(Window::above(top).infer(number as u32), number);
        }
    }
}
