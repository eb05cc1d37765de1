//! Traces that are made up, from a seed: for tests and benchmarks, where a real one may not be passed on.
//!
//! Widths are mostly powers of two, run times spread over several orders of magnitude, days are busier than nights, and users ask for more than they need:
//! what traces of clusters have in common, and no more than that.

use crate::trace::{Job, Trace};

/// What a made trace is like.
#[derive(Debug, Clone, Copy)]
pub struct Like {
    /// How many jobs.
    pub jobs: usize,
    /// Of what cluster.
    pub machines: u32,
    /// Work of what its machines could do, in per cent; above 100 the queue only grows.
    pub load_percent: u64,
    /// What it is drawn from.
    pub seed: u64,
}

/// A trace like that.
pub fn trace(like: Like) -> Trace {
    let mut chance = Chance(like.seed);
    let mut jobs: Vec<Job> = (0..like.jobs).map(|_| job(&mut chance, like.machines)).collect();
    let work: u128 = jobs.iter().map(|job| u128::from(job.run_s) * u128::from(job.width)).sum();
    let span_s = work * 100 / u128::from(like.load_percent.max(1)) / u128::from(like.machines.max(1));
    let span_s = u64::try_from(span_s).unwrap_or(u64::MAX).max(1);
    for job in &mut jobs {
        let day = chance.below(span_s) / 86_400 * 86_400;
        // Two of three come between 8 and 18 o'clock.
        let hour_s = if chance.below(3) < 2 { 8 * 3600 + chance.below(10 * 3600) } else { chance.below(86_400) };
        job.submit_s = day + hour_s;
    }
    jobs.sort_by_key(|job| job.submit_s);
    let first = jobs.first().map_or(0, |job| job.submit_s);
    for job in &mut jobs {
        job.submit_s -= first;
    }
    Trace { jobs, never_ran: 0, begins: None }
}

fn job(chance: &mut Chance, machines: u32) -> Job {
    let widest = machines.max(1).ilog2();
    // The lesser of two: wide jobs are rare.
    let power = chance.below(u64::from(widest) + 1).min(chance.below(u64::from(widest) + 1));
    let width = 1_u32 << power;
    let run_s = 10 + (1_u64 << chance.below(16)) + chance.below(600);
    let asked_s = (run_s * (100 + chance.below(900)) / 100).next_multiple_of(300);
    Job { submit_s: 0, run_s, asked_s, width }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One below a bound, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }
}
