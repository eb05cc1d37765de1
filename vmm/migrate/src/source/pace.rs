//! How fast the target applies, and so how long a switch would pause the VM; the user's bandwidth cap; when to slow the
//! vCPUs and when to give up. Everything is measured by what the target *applied*: a socket that swallowed bytes proves nothing.

use std::time::Duration;

/// Bytes in flight before the rate is known, and the least and most afterwards.
const WINDOW_BYTES_FIRST: u64 = 4 << 20;
const WINDOW_BYTES_MIN: u64 = 1 << 20;
const WINDOW_BYTES_MAX: u64 = 32 << 20;
/// Work that may queue at the target beyond the round trip: enough to keep it busy, little enough to drain quickly.
const WINDOW_AHEAD: Duration = Duration::from_millis(200);
/// Shortest busy time that makes a sample of the rate.
const SAMPLE_TIME: Duration = Duration::from_millis(50);
/// Rate assumed when nothing was measured (an empty machine): 10 Mbit/s.
const RATE_UNKNOWN: f64 = 1.25e6;
/// Saving and restoring, as measured on a small machine.
const SWITCH_COST: Duration = Duration::from_millis(15);
/// Records that are synced one after the other while the VM stands still: GRANTED, PREPARED, RUNNING.
const RECORDS_SYNCED: u32 = 3;
/// What a sync costs at least, and where none was measured.
const SYNC_COST_MIN: Duration = Duration::from_millis(5);
/// Rounds without progress before the vCPUs are slowed (further).
const STALLED_ROUNDS_MAX: u32 = 2;
/// A round makes progress if the predicted pause falls below this part of the best so far.
const PROGRESS: f64 = 0.9;
const THROTTLE_STEPS: [u8; 5] = [20, 40, 60, 80, THROTTLE_PERCENT_MAX];
/// A slowed vCPU keeps a tenth of its speed: less, and the guest's own watchdogs bite.
pub const THROTTLE_PERCENT_MAX: u8 = 90;
/// A move that has not converged by then never will.
const ROUNDS_MAX: u32 = 100;

/// Rate and round trip, from acknowledgements.
#[derive(Debug, Default)]
pub struct Pace {
    rate: Option<f64>,
    round_trip: Option<Duration>,
    sample_from: Option<Duration>,
    sample_bytes: u64,
    /// What the target's disks took to be flushed: after the last round, and at least.
    flush: Option<(Duration, Duration)>,
}

impl Pace {
    /// Bytes went out; nothing was in flight before if `idle`.
    pub fn sent(&mut self, now: Duration, idle: bool) {
        if idle {
            self.sample_from = Some(now);
            self.sample_bytes = 0;
        }
    }

    /// A frame was applied that was sent at `sent_at`; nothing is in flight any more if `idle`.
    pub fn applied(&mut self, now: Duration, bytes: u64, sent_at: Duration, idle: bool) {
        let trip = now.saturating_sub(sent_at);
        self.round_trip = Some(self.round_trip.map_or(trip, |best| best.min(trip)));
        self.sample_bytes += bytes;
        let Some(from) = self.sample_from else { return };
        let took = now.saturating_sub(from);
        if took >= SAMPLE_TIME || (idle && self.rate.is_none() && !took.is_zero()) {
            let sample = self.sample_bytes as f64 / took.as_secs_f64();
            self.rate = Some(self.rate.map_or(sample, |rate| (rate + sample) / 2.0));
            self.sample_from = (!idle).then_some(now);
            self.sample_bytes = 0;
        }
    }

    /// The target has flushed its disks, this long after it was asked to.
    pub fn flushed(&mut self, took: Duration) {
        let took = took.saturating_sub(self.round_trip());
        self.flush = Some((took, self.flush.map_or(took, |(_, least)| least.min(took))));
    }

    /// Bytes that may be in flight.
    pub fn window_bytes(&self) -> u64 {
        let Some(rate) = self.rate else { return WINDOW_BYTES_FIRST };
        let time = self.round_trip() + WINDOW_AHEAD;
        ((rate * time.as_secs_f64()) as u64).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX)
    }

    /// Bytes a second that the target applies.
    pub fn rate(&self) -> f64 {
        self.rate.unwrap_or(RATE_UNKNOWN)
    }

    fn round_trip(&self) -> Duration {
        self.round_trip.unwrap_or_default()
    }

    /// The pause if `bytes` were left: they travel, `Final` and `PREPARED` and `GRANTED` take one and a half round trips,
    /// the machine is saved and restored, and what was written to disks is flushed: as long as after the round before, in which more was
    /// written; and a ledger is synced no faster than the least flush.
    pub fn predicted_pause(&self, bytes: f64) -> Duration {
        let travel = Duration::from_secs_f64((bytes / self.rate().max(1.0)).min(1e6));
        let (flush, least) = self.flush.unwrap_or_default();
        travel + self.round_trip() * 3 / 2 + SWITCH_COST + flush + least.max(SYNC_COST_MIN) * RECORDS_SYNCED
    }
}

/// The user's bandwidth cap: a token bucket that may be overdrawn by one batch.
#[derive(Debug)]
pub struct Bucket {
    bytes_per_second: f64,
    tokens: f64,
    filled_at: Duration,
}

/// Burst of the bucket, so that a cap is kept over any tenth of a second.
const BURST_SECONDS: f64 = 0.1;

impl Bucket {
    /// A full bucket.
    pub fn new(bytes_per_second: u64, now: Duration) -> Self {
        let bytes_per_second = (bytes_per_second as f64).max(1.0);
        Self { bytes_per_second, tokens: bytes_per_second * BURST_SECONDS, filled_at: now }
    }

    /// Whether something may be sent.
    pub fn is_open(&mut self, now: Duration) -> bool {
        let earned = now.saturating_sub(self.filled_at).as_secs_f64() * self.bytes_per_second;
        self.tokens = (self.tokens + earned).min(self.bytes_per_second * BURST_SECONDS);
        self.filled_at = now;
        self.tokens > 0.0
    }

    /// Pays for what was sent.
    pub fn pay(&mut self, bytes: u64) {
        self.tokens -= bytes as f64;
    }

    /// When it opens again; now, if it is open.
    pub fn opens_at(&self) -> Duration {
        let missing = (-self.tokens).max(0.0);
        // A microsecond more, so that rounding never wakes the engine just before.
        self.filled_at + Duration::from_secs_f64(missing / self.bytes_per_second) + Duration::from_micros(1)
    }
}

/// What to do after a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Pause the VM and send the rest.
    Switch,
    /// Send what changed, the VM running on; slow its vCPUs by so many percent first, if that is new.
    Round {
        /// New throttle.
        throttle: Option<u8>,
    },
    /// The limit cannot be met.
    GiveUp {
        /// The figure and what to do.
        reason: String,
    },
}

/// The course of the rounds.
#[derive(Debug, Default)]
pub struct Convergence {
    best: Option<Duration>,
    stalled: u32,
    throttle: u8,
}

impl Convergence {
    /// Decides what follows a round after which a switch would pause the VM for `predicted`, when the user accepts `limit`.
    pub fn decide(&mut self, rounds: u32, predicted: Duration, limit: Duration) -> Step {
        if predicted <= limit {
            return Step::Switch;
        }
        let progress = self.best.is_none_or(|best| predicted.as_secs_f64() < best.as_secs_f64() * PROGRESS);
        self.best = Some(self.best.map_or(predicted, |best| best.min(predicted)));
        self.stalled = if progress { 0 } else { self.stalled + 1 };
        if self.stalled < STALLED_ROUNDS_MAX && rounds < ROUNDS_MAX {
            return Step::Round { throttle: None };
        }
        let next = THROTTLE_STEPS.into_iter().find(|&step| step > self.throttle);
        match next {
            Some(throttle) if rounds < ROUNDS_MAX => {
                self.throttle = throttle;
                self.stalled = 0;
                Step::Round { throttle: Some(throttle) }
            }
            _ => Step::GiveUp { reason: self.hopeless(rounds, predicted, limit) },
        }
    }

    fn hopeless(&self, rounds: u32, predicted: Duration, limit: Duration) -> String {
        format!(
            "after {rounds} rounds, with vCPUs slowed by {} %, the switch would still pause the VM for {} ms and {} ms are allowed: \
             raise --downtime-max-ms, or give the move more bandwidth",
            self.throttle,
            predicted.as_millis(),
            limit.as_millis()
        )
    }

    /// How far the vCPUs are slowed.
    pub fn throttle(&self) -> u8 {
        self.throttle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_rate_is_what_was_applied() {
        let mut pace = Pace::default();
        pace.sent(MS(0), true);
        for at in 1..=20 {
            pace.applied(MS(at * 10), 125_000, MS(at * 10 - 5), false);
        }
        assert!((pace.rate() - 12.5e6).abs() < 1e5, "{}", pace.rate());
        // 1.25 MB at 12.5 MB/s, one and a half round trips of 5 ms, 30 ms for the rest.
        assert_eq!(pace.predicted_pause(1.25e6).as_millis(), 137);
        assert_eq!(pace.window_bytes(), 12_500_000 * 205 / 1000);
    }

    #[test]
    fn a_slow_disk_is_part_of_the_pause() {
        let mut pace = Pace::default();
        pace.sent(MS(0), true);
        pace.applied(MS(10), 1_000_000, MS(0), true);
        let without = pace.predicted_pause(0.0);
        pace.flushed(MS(12));
        assert_eq!(pace.predicted_pause(0.0), without + MS(2), "the round trip is no part of the flush");
        pace.flushed(MS(410));
        assert_eq!(pace.predicted_pause(0.0), without + MS(400));
        let mut slow = Pace::default();
        slow.flushed(MS(200));
        assert_eq!(
            slow.predicted_pause(0.0),
            Pace::default().predicted_pause(0.0) + MS(200 + 3 * 195),
            "each of three records is synced too"
        );
    }

    #[test]
    fn idle_time_is_not_counted() {
        let mut pace = Pace::default();
        pace.sent(MS(0), true);
        pace.applied(MS(100), 1_000_000, MS(0), true);
        let rate = pace.rate();
        pace.sent(MS(10_000), true);
        pace.applied(MS(10_100), 1_000_000, MS(10_000), true);
        assert!((pace.rate() - rate).abs() < 1.0);
    }

    #[test]
    fn the_cap_is_kept() {
        let mut bucket = Bucket::new(1_000_000, MS(0));
        let (mut now, mut sent) = (MS(0), 0);
        while now < MS(2_000) {
            if bucket.is_open(now) {
                bucket.pay(131_072);
                sent += 131_072;
            } else {
                now = bucket.opens_at();
            }
        }
        assert!((1_900_000..2_300_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_stalled_move_slows_the_vcpus_and_then_names_the_figure() {
        let mut course = Convergence::default();
        let mut throttles = vec![];
        let reason = (1..).find_map(|round| match course.decide(round, MS(900), MS(300)) {
            Step::Switch => panic!("900 ms were not allowed"),
            Step::Round { throttle } => {
                throttles.extend(throttle);
                None
            }
            Step::GiveUp { reason } => Some(reason),
        });
        assert_eq!(throttles, THROTTLE_STEPS);
        let reason = reason.unwrap();
        assert!(reason.contains("900 ms") && reason.contains("300 ms") && reason.contains("90 %"), "{reason}");
        assert_eq!(Convergence::default().decide(1, MS(300), MS(300)), Step::Switch);
    }
}
