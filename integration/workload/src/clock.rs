//! Watches the clocks: CLOCK_MONOTONIC must never be behind an earlier look, on any processor.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    thread::{CpuSet, sched_setaffinity},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};

use crate::words::ClockReport;

/// How often a watcher looks. In an emulated machine each look costs it about a millisecond: looks every 2 ms left nothing for others.
const EVERY: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Seen {
    latest_ns: AtomicU64,
    looks: AtomicU64,
    steps_back: AtomicU64,
    longest_stall_ns: AtomicU64,
}

/// Watchers, one for each processor, for the life of the process.
pub struct Watch {
    seen: Arc<Seen>,
}

impl Watch {
    /// Starts them, each on a processor of its own; each compares with the latest look of all.
    pub fn start() -> Self {
        let seen = Arc::new(Seen::default());
        let watchers = thread::available_parallelism().map_or(1, usize::from);
        for processor in 0..watchers {
            let seen = Arc::clone(&seen);
            thread::spawn(move || {
                let mut own = CpuSet::new();
                own.set(processor);
                // A processor that is not there leaves the watcher where the scheduler puts it.
                sched_setaffinity(None, &own).ok();
                let mut before = monotonic_ns();
                loop {
                    thread::sleep(EVERY);
                    before = look(&seen, before);
                }
            });
        }
        Self { seen }
    }

    /// Begins a new phase: stalls are counted anew.
    pub fn phase(&self) {
        self.seen.longest_stall_ns.store(0, Ordering::Relaxed);
    }

    /// What was seen, and both clocks now.
    pub fn report(&self) -> ClockReport {
        ClockReport {
            looks: self.seen.looks.load(Ordering::Relaxed),
            steps_back: self.seen.steps_back.load(Ordering::Relaxed),
            longest_stall_ms: self.seen.longest_stall_ns.load(Ordering::Relaxed) / 1_000_000,
            monotonic_ns: monotonic_ns(),
            realtime_ns: realtime_ns(),
        }
    }
}

fn look(seen: &Seen, before: u64) -> u64 {
    // Published before this look began, so it must not be ahead of it.
    let published = seen.latest_ns.load(Ordering::SeqCst);
    let now = monotonic_ns();
    if now < published || now < before {
        seen.steps_back.fetch_add(1, Ordering::Relaxed);
    }
    seen.latest_ns.fetch_max(now, Ordering::SeqCst);
    seen.looks.fetch_add(1, Ordering::Relaxed);
    seen.longest_stall_ns.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
    now
}

/// CLOCK_REALTIME.
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

/// Moves CLOCK_REALTIME.
pub fn step(by_ns: i64) -> std::io::Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let ns = now.tv_sec * 1_000_000_000 + now.tv_nsec + by_ns;
    let time = Timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_is_counted() {
        let seen = Seen::default();
        let now = look(&seen, monotonic_ns());
        assert_eq!(seen.steps_back.load(Ordering::Relaxed), 0);
        seen.latest_ns.store(now + 60_000_000_000, Ordering::SeqCst);
        look(&seen, now);
        assert_eq!(seen.steps_back.load(Ordering::Relaxed), 1);
    }
}
