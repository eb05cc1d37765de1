//! What is done to a clock that was found wrong: set at once when it was never right or is far off, else run faster or slower until it is right.
//! Pure: time comes in as an argument.
//!
//! Each measured offset is spread over the time until the next one. A tenth of it counts as the clock's own drift, which is made up for from
//! then on. Between two measurements half of an offset goes; a constant drift is learnt within a dozen of them.

use std::time::{Duration, Instant};

use super::message::{Nanos, nanos};

/// Clocks that are further off are set at once.
const STEP_NANOS: Nanos = 500_000_000;
/// What counts as right: servers are asked less and less often then.
const GOOD_NANOS: Nanos = 5_000_000;
/// Between two measurements.
const PERIOD_MIN: Duration = Duration::from_secs(64);
const PERIOD_MAX: Duration = Duration::from_secs(1024);
/// The kernel runs a clock no faster or slower than this, in parts per million.
const RATE_PPM_MAX: f64 = 499.0;
/// A crystal is not further off.
const DRIFT_PPM_MAX: f64 = 200.0;
/// How much of an offset is corrected until the next measurement, and how much of it is taken for drift.
const CORRECTED: f64 = 0.5;
const LEARNT: f64 = 0.1;

/// What a clock is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// What is added to it at once.
    pub step: Option<Nanos>,
    /// How much faster than by itself it runs from now on, in parts per million.
    pub rate_ppm: f64,
}

/// What is known of a clock.
#[derive(Debug)]
pub struct Discipline {
    drift_ppm: f64,
    last: Option<Instant>,
    period: Duration,
}

impl Default for Discipline {
    fn default() -> Self {
        Self { drift_ppm: 0.0, last: None, period: PERIOD_MIN }
    }
}

impl Discipline {
    /// The clock was measured: `offset` must be added to it.
    pub fn handle(&mut self, now: Instant, offset: Nanos) -> Correction {
        let before = self.last.replace(now);
        let Some(before) = before.filter(|_| offset.abs() <= STEP_NANOS) else {
            self.period = PERIOD_MIN;
            return Correction { step: Some(offset), rate_ppm: self.drift_ppm };
        };
        self.period = if offset.abs() < GOOD_NANOS { (self.period * 2).min(PERIOD_MAX) } else { PERIOD_MIN };
        let wanted = CORRECTED * ppm(offset, self.period);
        // An offset that takes longer than until the next measurement says nothing about drift.
        if wanted.abs() < RATE_PPM_MAX {
            // A server list that changes has the clock measured early.
            let since = (now - before).max(PERIOD_MIN);
            self.drift_ppm = (self.drift_ppm + LEARNT * ppm(offset, since)).clamp(-DRIFT_PPM_MAX, DRIFT_PPM_MAX);
        }
        Correction { step: None, rate_ppm: (self.drift_ppm + wanted).clamp(-RATE_PPM_MAX, RATE_PPM_MAX) }
    }

    /// It could not be measured: what was still to be corrected is done by now.
    pub fn unmeasured(&self) -> Correction {
        Correction { step: None, rate_ppm: self.drift_ppm }
    }

    /// Whether it was ever measured.
    pub fn is_set(&self) -> bool {
        self.last.is_some()
    }

    /// How long until it is measured again.
    pub fn period(&self) -> Duration {
        self.period
    }
}

/// An offset as the rate that makes up for it within a time.
fn ppm(offset: Nanos, within: Duration) -> f64 {
    offset as f64 / nanos(within) as f64 * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that is measured again and again, with its drift and each measurement's error: the offsets that are found.
    fn offsets(first: Nanos, drift_ppm: f64, noise: impl Fn(usize) -> Nanos) -> Vec<Nanos> {
        let (mut discipline, mut now, mut offset) = (Discipline::default(), Instant::now(), first);
        let mut found = vec![];
        for number in 0..60 {
            found.push(offset);
            let correction = discipline.handle(now, offset + noise(number));
            assert!(correction.rate_ppm.abs() <= RATE_PPM_MAX);
            offset -= correction.step.unwrap_or_default();
            now += discipline.period();
            offset += ((drift_ppm - correction.rate_ppm) * discipline.period().as_secs_f64() * 1e3) as Nanos;
        }
        found
    }

    #[test]
    fn the_first_measurement_and_a_clock_far_off_set_it_at_once() {
        let (mut discipline, now) = (Discipline::default(), Instant::now());
        assert!(!discipline.is_set());
        assert_eq!(discipline.handle(now, 7).step, Some(7));
        assert!(discipline.is_set());
        assert_eq!(discipline.handle(now + PERIOD_MIN, STEP_NANOS).step, None);
        assert_eq!(discipline.handle(now + PERIOD_MIN * 2, -STEP_NANOS - 1).step, Some(-STEP_NANOS - 1));
    }

    #[test]
    fn a_crystals_drift_is_learnt_and_what_is_left_of_it_is_small() {
        for drift in [-100.0, 0.0, 35.0, 150.0] {
            let found = offsets(1 << 70, drift, |_| 0);
            assert!(found[20..].iter().all(|offset| offset.abs() < GOOD_NANOS), "{drift}: {found:?}");
            assert!(found[40..].iter().all(|offset| offset.abs() < 1_000_000), "{drift}: {found:?}");
        }
    }

    #[test]
    fn measurements_that_are_wrong_by_turns_do_not_make_it_swing() {
        let error = 20_000_000;
        let found = offsets(0, 20.0, |number| if number % 2 == 0 { error } else { -error });
        assert!(found[20..].iter().all(|offset| offset.abs() < 2 * error), "{found:?}");
    }

    #[test]
    fn a_clock_half_a_second_off_gets_there_without_a_step() {
        let (mut discipline, mut now) = (Discipline::default(), Instant::now());
        discipline.handle(now, 0);
        let mut offset = STEP_NANOS;
        for _ in 0..40 {
            now += discipline.period();
            let correction = discipline.handle(now, offset);
            assert_eq!(correction.step, None);
            offset -= (correction.rate_ppm * discipline.period().as_secs_f64() * 1e3) as Nanos;
        }
        assert!(offset.abs() < GOOD_NANOS, "{offset}");
    }

    #[test]
    fn without_measurements_only_the_drift_is_corrected() {
        let (mut discipline, now) = (Discipline::default(), Instant::now());
        discipline.handle(now, 0);
        let correction = discipline.handle(now + PERIOD_MIN, 10_000_000);
        let kept = discipline.unmeasured();
        assert!(kept.step.is_none() && kept.rate_ppm < correction.rate_ppm / 5.0, "{correction:?} {kept:?}");
    }
}
