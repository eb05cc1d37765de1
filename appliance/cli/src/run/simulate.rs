//! `rebec simulate`: traces and policies are read here, and what came of trade is printed and plotted. Nobody is asked.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use rebec_api::job::JobProgress;
use rebec_pool::trade::policy::{Modes, Reclaim};
use rebec_simulate::{Costs, DomainSetup, Outcome, Seen, Setup, plots, simulate, trace};
use serde::Serialize;

use super::{policy, progress::Meter, spot};
use crate::{
    args::{DomainFrom, SimulateCommand, SimulateOptions},
    failure::{Exit, Failure},
    talk,
    text::{count, table::table},
};

/// Carries it out.
pub fn run(options: &SimulateOptions, json: bool) -> Exit {
    let outcome = match &options.other {
        Some(SimulateCommand::Spot(options)) => spot::carry_out(options, json),
        None => carry_out(options, json),
    };
    match outcome {
        Ok(()) => Exit::Done,
        Err(failure) => failure.tell(),
    }
}

fn carry_out(options: &SimulateOptions, json: bool) -> Result<(), Failure> {
    let reclaim = options.reclaim.map(Reclaim::from);
    let mut meter = Meter::new();
    let mut domains = vec![];
    for domain in &options.domains {
        show(&mut meter, format!("reading {}", domain.trace.display()));
        domains.push(read(domain, reclaim)?);
    }
    let setup = Setup { domains, costs: costs(options), interval_s: options.interval.0, seed: options.seed };
    let outcome = simulate(&setup, &mut |seen| {
        if let Seen::Progress { ended, of } = seen {
            show(&mut meter, format!("{ended} of {of} jobs have ended, alone and shared"));
        }
    });
    if let Some(folder) = &options.plots {
        let figures = plots::figures(&setup, &mut |done, of| show(&mut meter, format!("plots: {done} of {of} runs")));
        meter.end();
        write(folder, &figures)?;
    }
    meter.end();
    print(&outcome, json, told)
}

/// What came of a simulation, for programs or as it is told to people.
pub fn print<T: Serialize>(outcome: &T, json: bool, told: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    let text = match json {
        true => serde_json::to_string_pretty(outcome).map_err(|error| Failure::Here(format!("write the result: {error}")))? + "\n",
        false => told(outcome),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn show(meter: &mut Meter, phase: String) {
    meter.show("simulate", &JobProgress { phase, ..JobProgress::default() });
}

fn read(from: &DomainFrom, reclaim: Option<Reclaim>) -> Result<DomainSetup, Failure> {
    let shown = from.trace.display();
    let file = File::open(&from.trace).map_err(|error| Failure::Here(format!("trace {shown}: {error}")))?;
    let trace = trace::read(file).map_err(|error| Failure::Here(format!("trace {shown}: {error}")))?;
    let mut policy = from.policy.as_deref().map(policy::read).transpose()?.unwrap_or_default();
    if let Some(reclaim) = reclaim {
        policy.lending.reclaim.value = Modes(vec![reclaim]);
        policy.borrowing.survives.value = Modes(vec![reclaim]);
    }
    Ok(DomainSetup { name: from.name.clone(), trace, machines: from.machines, policy })
}

fn costs(options: &SimulateOptions) -> Costs {
    let usual = Costs::default();
    let or = |given: Option<crate::args::values::Span>, usual: u64| given.map_or(usual, |given| given.0);
    Costs {
        boot_s: or(options.boot, usual.boot_s),
        halt_s: or(options.halt, usual.halt_s),
        slowdown_percent: options.slowdown.unwrap_or(usual.slowdown_percent),
        move_first_s: or(options.move_first, usual.move_first_s),
        move_next_s: or(options.move_next, usual.move_next_s),
        ..usual
    }
}

/// A row a domain, in the order of the command line, and what befell their jobs below.
fn told(outcome: &Outcome) -> String {
    let mut domains: Vec<_> = outcome.domains.iter().collect();
    domains.sort_by_key(|(_, domain)| domain.told.number);
    let hours = |hours: f64| format!("{hours:.2} h");
    let node_hours = |hours: f64| format!("{hours:.0}");
    let rows: Vec<[String; 9]> = domains
        .iter()
        .map(|(name, domain)| {
            [
                (*name).clone(),
                domain.jobs.to_string(),
                domain.left_out.to_string(),
                hours(domain.mean_completion_alone_h),
                hours(domain.mean_completion_h),
                format!("{:+.1} %", domain.change_percent()),
                node_hours(domain.borrowed_node_h),
                node_hours(domain.lent_node_h),
                node_hours(domain.wasted_node_h),
            ]
        })
        .collect();
    let heads = ["DOMAIN", "JOBS", "LEFT OUT", "ALONE", "SHARED", "CHANGE", "BORROWED", "LENT", "WASTED"];
    let mut text = table(heads, &rows);
    text += "\nALONE and SHARED: mean time from submission to end. BORROWED, LENT and WASTED: node-hours.\n";
    for (name, domain) in domains {
        let told = &domain.told;
        let out = format!("left out: {} wider than the cluster, {} that never ran", told.wider, told.never_ran);
        let jobs = |number: u64| count(number, "job");
        let back = format!(
            "called back: {} ended and begun anew, {} moved, {} stood still",
            jobs(told.killed),
            count(told.moved, "VM"),
            jobs(told.stood)
        );
        text += &format!("{name}: {out}; {back}\n");
    }
    text
}

fn write(folder: &Path, figures: &[plots::Figure]) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Here(format!("write plots into {}: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    for figure in figures {
        fs::write(folder.join(format!("{}.svg", figure.name)), &figure.svg).map_err(failed)?;
        fs::write(folder.join(format!("{}.csv", figure.name)), &figure.csv).map_err(failed)?;
    }
    talk::say(&format!("{} are in {}, each with its numbers", count(figures.len() as u64, "plot"), folder.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    /// Made up: `a` has more to do than its two machines can, `b` has four and little to do; one job is wider than `a`.
    const A: &str = "; made up\n1 0 -1 9000 2 -1 -1 2 9000 -1 1 1 1 -1 -1 -1 -1 -1\n2 60 -1 7000 2 -1 -1 2 9000 -1 1 1 1 -1 -1 -1 -1 -1\n3 90 -1 5 3 -1 -1 3 5 -1 1 1 1 -1 -1 -1 -1 -1\n";
    const B: &str = "1 0 -1 60 1 -1 -1 1 60 -1 1 1 1 -1 -1 -1 -1 -1\n2 5 -1 -1 1 -1 -1 1 60 -1 5 1 1 -1 -1 -1 -1 -1\n";

    fn options(folder: &Path, more: &str) -> SimulateOptions {
        fs::write(folder.join("a.swf"), A).unwrap();
        fs::write(folder.join("b.swf"), B).unwrap();
        let place = folder.display();
        let line = format!("rebec simulate --domain a={place}/a.swf,cpus=2 --domain b={place}/b.swf,cpus=4 {more}");
        let args::Command::Simulate(options) = args::parse_from(line.split_whitespace()).unwrap().command else { panic!("not it") };
        *options
    }

    #[test]
    fn from_files_to_a_table_and_to_plots() {
        let folder = tempfile::tempdir().unwrap();
        let plots = folder.path().join("plots");
        let options = options(folder.path(), &format!("--reclaim kill --plots {}", plots.display()));
        assert_eq!(run(&options, true), Exit::Done);
        let files = fs::read_dir(&plots).unwrap().count();
        assert_eq!(files, 12);

        let domains: Vec<_> = options.domains.iter().map(|domain| read(domain, None).unwrap()).collect();
        let setup = Setup { domains, costs: costs(&options), interval_s: 3600, seed: 1 };
        let text = told(&simulate(&setup, &mut |_| {}));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("a       2     1         3.46 h"), "{text}");
        assert!(lines[2].starts_with("b       1     1"), "{text}");
        assert!(text.contains("a: left out: 1 wider than the cluster, 0 that never ran;"), "{text}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), "");
        fs::write(folder.path().join("b.swf"), "1 2 3\n").unwrap();
        let told = carry_out(&options, true).unwrap_err().to_string();
        assert!(told.ends_with("b.swf: line 1: 3 fields, and a job has 18"), "{told}");
        options.domains[0].policy = Some(folder.path().join("b.swf"));
        let told = carry_out(&options, true).unwrap_err().to_string();
        assert!(told.contains("b.swf:1:"), "{told}");
    }
}
