//! What has a target, as `cargo lab bench trade` shows it: a name and a number a line. Built for release.
//!
//! `figures [KTH.swf.gz CTC.swf.gz] [--spot ZONE.json.gz...]`: the trade of two clusters of 100 and 512 processors, if their traces are given, how long
//! 100,000 jobs that are made up take, and what jobs cost on machines that come and go, if traces of those are given.

use std::{fs::File, process::ExitCode, time::Instant};

use rebec_pool::trade::policy::{Modes, Policy, Reclaim};
use rebec_simulate::{
    Costs, DomainSetup, Outcome, Setup, Trace,
    made::{self, Like},
    simulate, spot, trace,
};

/// Together those of the target.
const JOBS: usize = 50_000;

fn main() -> ExitCode {
    let files: Vec<String> = std::env::args().skip(1).collect();
    let (files, zones) = match files.iter().position(|file| file == "--spot") {
        Some(at) => (&files[..at], &files[at + 1..]),
        None => (&files[..], &[][..]),
    };
    let both = if let [kth, ctc] = files { traces(kth, ctc) } else { Ok(()) };
    if let Err(why) = both.and_then(|()| if zones.is_empty() { Ok(()) } else { withdrawn(zones) }) {
        eprintln!("figures: {why}");
        return ExitCode::FAILURE;
    }
    let made = |machines, load_percent, seed| made::trace(Like { jobs: JOBS, machines, load_percent, seed });
    println!("made-s {}", seconds(&[("busy", made(64, 85, 1), 64), ("calm", made(256, 40, 2), 256)]));
    println!("overrun-s {}", seconds(&[("busy", made(64, 400, 1), 64), ("calm", made(256, 40, 2), 256)]));
    ExitCode::SUCCESS
}

/// Of the zones each by itself, on average, and of all together.
fn withdrawn(files: &[String]) -> Result<(), String> {
    let read = |path: &String| {
        let file = File::open(path).map_err(|error| format!("{path}: {error}"))?;
        Ok((path.clone(), spot::read(file).map_err(|error| format!("{path}: {error}"))?))
    };
    let zones: Vec<(String, spot::Ticks)> = files.iter().map(read).collect::<Result<_, String>>()?;
    let outcome = spot::simulate(&spot::Plan::default(), &zones)?;
    let each: Vec<&spot::ZoneOutcome> = outcome.zones.values().collect();
    let mean = |value: fn(&spot::ZoneOutcome) -> f64| each.iter().map(|zone| value(zone)).sum::<f64>() / each.len().max(1) as f64;
    println!("spot-ended-percent {}", mean(|zone| zone.ended.cost_percent));
    println!("spot-ended-late-h {}", mean(|zone| zone.ended.late_mean_h));
    println!("spot-uniform-percent {}", mean(|zone| zone.uniform.cost_percent));
    println!("spot-moved-percent {}", mean(|zone| zone.moved.cost_percent));
    let late = each.iter().copied().chain(&outcome.all).map(|zone| zone.moved.late_jobs).sum::<usize>();
    println!("spot-moved-late {late}");
    if let Some(all) = &outcome.all {
        println!("spot-all-uniform-percent {}\nspot-all-moved-percent {}", all.uniform.cost_percent, all.moved.cost_percent);
    }
    Ok(())
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
