//! How much a device may do a second. Pure but for [`Rate`], which others change while the device works.
//!
//! ```text
//! control ──set──► Rate ──read by each──► Limit of a queue: a bucket for requests, one for bytes ──► not_before(now), took(now, bytes)
//! ```
//! A bucket is kept as the instant at which it would be full of debt no more (GCRA, ATM Forum TM 4.1 §4.4.2): what is taken moves it on by its time at
//! the rate, and whoever is not more than `BURST` ahead may take. So a device that was idle may do a tenth of a second's work at once and no more, a
//! request of any size goes through, and what it was too large for is waited for afterwards.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What may be done ahead of time.
const BURST: Duration = Duration::from_millis(100);
/// A rate that was changed is noticed after this at the latest.
const LOOK: Duration = Duration::from_millis(100);

/// What a device may do a second; 0 is as much as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerSecond {
    /// Requests or frames.
    pub requests: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The same, for several devices and directions, each of which may do as much.
#[derive(Debug, Default)]
pub struct Rate {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Rate {
    /// From now on.
    pub fn set(&self, rate: PerSecond) {
        self.requests.store(rate.requests, Ordering::Relaxed);
        self.bytes.store(rate.bytes, Ordering::Relaxed);
    }

    /// As it is.
    pub fn get(&self) -> PerSecond {
        PerSecond { requests: self.requests.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// What one queue may do. It begins anew, and full, with each start of its device.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    rate: Arc<Rate>,
    requests: Bucket,
    bytes: Bucket,
}

impl Limit {
    pub(crate) fn new(rate: Arc<Rate>) -> Self {
        Self { rate, ..Self::default() }
    }

    /// When to ask again; none, when something may be done now.
    pub(crate) fn not_before(&mut self) -> Option<Instant> {
        let rate = self.rate.get();
        if rate == PerSecond::default() {
            return None;
        }
        self.at(rate, Instant::now())
    }

    /// Something was done.
    pub(crate) fn took(&mut self, bytes: u64) {
        let rate = self.rate.get();
        if rate != PerSecond::default() {
            self.take(rate, Instant::now(), bytes);
        }
    }

    fn at(&mut self, rate: PerSecond, now: Instant) -> Option<Instant> {
        let free = [self.requests.not_before(rate.requests, now), self.bytes.not_before(rate.bytes, now)];
        free.into_iter().flatten().max().map(|at| at.min(now + LOOK))
    }

    fn take(&mut self, rate: PerSecond, now: Instant, bytes: u64) {
        self.requests.take(rate.requests, now, 1);
        self.bytes.take(rate.bytes, now, bytes);
    }
}

/// What several queues of one device may do together.
#[derive(Debug, Default)]
pub(crate) struct SharedLimit {
    rate: Arc<Rate>,
    limit: Mutex<Limit>,
}

impl SharedLimit {
    pub(crate) fn new(rate: Arc<Rate>) -> Self {
        Self { limit: Mutex::new(Limit::new(rate.clone())), rate }
    }

    /// When to ask again; none, when something may be done now.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        if self.is_none() { None } else { self.lock().not_before() }
    }

    /// Something was done.
    pub(crate) fn took(&self, bytes: u64) {
        if !self.is_none() {
            self.lock().took(bytes);
        }
    }

    fn is_none(&self) -> bool {
        self.rate.get() == PerSecond::default()
    }

    fn lock(&self) -> MutexGuard<'_, Limit> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thing that is counted.
#[derive(Debug, Default)]
struct Bucket {
    rate: u64,
    /// When all that was taken would have been done at the rate.
    done: Option<Instant>,
}

impl Bucket {
    /// When something may be taken; none if now.
    fn not_before(&mut self, rate: u64, now: Instant) -> Option<Instant> {
        self.agree(rate);
        let done = self.done?;
        (done > now + BURST).then(|| done - BURST)
    }

    fn take(&mut self, rate: u64, now: Instant, amount: u64) {
        self.agree(rate);
        if rate > 0 {
            let time = Duration::from_nanos(u64::try_from(u128::from(amount) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX));
            self.done = self.done.unwrap_or(now).max(now).checked_add(time);
        }
    }

    /// What was owed at another rate is forgotten: at a low one that could be hours.
    fn agree(&mut self, rate: u64) {
        if self.rate != rate {
            (self.rate, self.done) = (rate, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Does what may be done for some time, by requests of this many bytes; how many those were.
    fn done_in(limit: &mut Limit, rate: PerSecond, start: Instant, time: Duration, bytes: u64) -> u64 {
        let (mut now, mut count) = (start, 0);
        while now < start + time {
            match limit.at(rate, now) {
                Some(at) => now = at,
                None => {
                    limit.take(rate, now, bytes);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn a_rate_is_kept_and_a_burst_is_a_tenth_of_a_second() {
        let (start, rate) = (Instant::now(), PerSecond { requests: 1000, bytes: 0 });
        let mut limit = Limit::default();
        let second = Duration::from_secs(1);
        assert_eq!(done_in(&mut limit, rate, start, second, 4096), 1100);
        assert_eq!(done_in(&mut limit, rate, start + second, second, 4096), 1000);
        // After an idle minute as after its beginning.
        assert_eq!(done_in(&mut limit, rate, start + 60 * second, second, 4096), 1100);
    }

    #[test]
    fn the_scarcer_of_both_counts() {
        let (start, ten) = (Instant::now(), Duration::from_secs(10));
        let both = PerSecond { requests: 1000, bytes: 1 << 20 };
        assert_eq!(done_in(&mut Limit::default(), both, start, ten, 512), 10_100);
        assert_eq!(done_in(&mut Limit::default(), both, start, ten, 1 << 20), 11);
        assert_eq!(done_in(&mut Limit::default(), PerSecond { bytes: 1 << 20, requests: 0 }, start, ten, 1 << 16), 162);
    }

    #[test]
    fn a_request_that_is_larger_than_a_burst_goes_and_is_paid_afterwards() {
        let (now, rate) = (Instant::now(), PerSecond { requests: 0, bytes: 1000 });
        let mut limit = Limit::default();
        limit.take(rate, now, 5000);
        assert_eq!(limit.at(rate, now), Some(now + LOOK), "a change is heard of meanwhile");
        assert!(limit.at(rate, now + Duration::from_millis(4899)).is_some());
        assert_eq!(limit.at(rate, now + Duration::from_millis(4900)), None);
    }

    #[test]
    fn another_rate_counts_at_once_and_forgets_what_was_owed() {
        let (now, slow) = (Instant::now(), PerSecond { requests: 0, bytes: 1 });
        let mut limit = Limit::default();
        limit.take(slow, now, 1 << 40);
        assert!(limit.at(slow, now + Duration::from_secs(1 << 20)).is_some());
        let fast = PerSecond { requests: 0, bytes: 1 << 30 };
        assert_eq!(limit.at(fast, now), None);
        limit.take(slow, now, 1 << 40);
        assert_eq!(limit.at(PerSecond::default(), now), None);
    }

    proptest! {
        /// Whatever comes when, no more than the rate and a burst goes through in any time, and nothing overflows.
        #[test]
        fn no_pattern_gets_more(rate in 1_u64..1_000_000, requests in proptest::collection::vec((0_u64..200_000, 1_u64..10_000), 1..200)) {
            let (start, per_second) = (Instant::now(), PerSecond { requests: 0, bytes: rate });
            let (mut limit, mut now, mut sum) = (Limit::default(), start, 0);
            for (wait_us, bytes) in requests {
                now += Duration::from_micros(wait_us);
                while let Some(at) = limit.at(per_second, now) {
                    now = at;
                }
                limit.take(per_second, now, bytes);
                let allowed = u128::from(rate) * ((now - start) + BURST).as_nanos() / 1_000_000_000 + 1;
                // The last one goes whatever its size.
                prop_assert!(u128::from(sum) <= allowed, "{sum} of {allowed}");
                sum += bytes;
            }
            limit.take(PerSecond { requests: 1, bytes: 1 }, now, u64::MAX);
        }
    }
}
