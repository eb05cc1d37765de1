//! What has a target, as `cargo lab bench trade` shows it: a name and a number a line. Built for release.
//!
//! `figures [KTH.swf.gz CTC.swf.gz]`: the trade of two clusters of 100 and 512 processors, if their traces are given, and how long 100,000 jobs that are
//! made up take.

use std::{fs::File, process::ExitCode, time::Instant};

use rebec_pool::trade::policy::{Modes, Policy, Reclaim};
use rebec_simulate::{
    Costs, DomainSetup, Outcome, Setup, Trace,
    made::{self, Like},
    simulate, trace,
};

/// Together those of the target.
const JOBS: usize = 50_000;

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if let [kth, ctc] = &files[..]
        && let Err(why) = traces(kth, ctc)
    {
        eprintln!("figures: {why}");
        return ExitCode::FAILURE;
    }
    let made = |machines, load_percent, seed| made::trace(Like { jobs: JOBS, machines, load_percent, seed });
    println!("made-s {}", seconds(&[("busy", made(64, 85, 1), 64), ("calm", made(256, 40, 2), 256)]));
    println!("overrun-s {}", seconds(&[("busy", made(64, 400, 1), 64), ("calm", made(256, 40, 2), 256)]));
    ExitCode::SUCCESS
}

fn traces(kth: &str, ctc: &str) -> Result<(), String> {
    let read =
        |path: &str| trace::read(File::open(path).map_err(|error| format!("{path}: {error}"))?).map_err(|error| format!("{path}: {error}"));
    let domains = [("kth", read(kth)?, 100), ("ctc", read(ctc)?, 512)];
    let [kill, again, migrate] = [Reclaim::Kill, Reclaim::Kill, Reclaim::Migrate].map(|mode| shared(&domains, mode));
    for (name, outcome) in [("kill", &kill), ("migrate", &migrate)] {
        for (domain, of) in &outcome.domains {
            println!("{domain}-{name}-percent {}", of.change_percent());
            println!("{domain}-{name}-wasted-h {}", of.wasted_node_h);
        }
    }
    println!("differs-from-itself {}", u8::from(kill != again));
    println!("traces-s {}", seconds(&domains));
    Ok(())
}

fn shared(domains: &[(&str, Trace, u32)], mode: Reclaim) -> Outcome {
    let mut policy = Policy::default();
    policy.lending.reclaim.value = Modes(vec![mode]);
    policy.borrowing.survives.value = Modes(vec![mode]);
    let domain = |(name, trace, machines): &(&str, Trace, u32)| DomainSetup {
        name: (*name).to_owned(),
        trace: trace.clone(),
        machines: *machines,
        policy: policy.clone(),
    };
    let setup = Setup { domains: domains.iter().map(domain).collect(), costs: Costs::default(), interval_s: 3600, seed: 1 };
    simulate(&setup, &mut |_| {})
}

fn seconds(domains: &[(&str, Trace, u32)]) -> f64 {
    let begun = Instant::now();
    shared(domains, Reclaim::Kill);
    begun.elapsed().as_secs_f64()
}
