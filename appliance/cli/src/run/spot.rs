//! `rebec simulate spot`: traces are read here, and what came of the jobs is printed.

use std::{fs::File, path::Path};

use rebec_simulate::spot::{Outcome, Plan, Ticks, WayOutcome, ZoneOutcome, read, simulate};

use super::simulate::print;
use crate::{args::SpotOptions, failure::Failure, text::table::table};

/// Carries it out.
pub fn carry_out(options: &SpotOptions, json: bool) -> Result<(), Failure> {
    let mut zones: Vec<(String, Ticks)> = vec![];
    for path in &options.traces {
        let name = name_of(path);
        if zones.iter().any(|(other, _)| *other == name) {
            return Err(Failure::Here(format!(
                "trace {}: another is called {name} too; give each zone's file a name of its own",
                path.display()
            )));
        }
        let failed = |error: &dyn std::fmt::Display| Failure::Here(format!("trace {}: {error}", path.display()));
        let file = File::open(path).map_err(|error| failed(&error))?;
        zones.push((name, read(file).map_err(|error| failed(&error))?));
    }
    let plan = options.plan();
    let outcome = simulate(&plan, &zones).map_err(Failure::Here)?;
    print(&outcome, json, |outcome| told(&plan, outcome))
}

/// A zone is called as its file, without what says how that is written.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(".gz").trim_end_matches(".json").to_owned()
}

/// A row a zone, in the order of the command line, and what a column says below.
fn told(plan: &Plan, outcome: &Outcome) -> String {
    let mut zones: Vec<(String, &ZoneOutcome)> = outcome.zones.iter().map(|(name, zone)| (name.clone(), zone)).collect();
    zones.extend(outcome.all.iter().map(|all| (format!("any of {}", outcome.zones.len()), all)));
    zones.sort_by_key(|(_, zone)| zone.number);
    let rows: Vec<[String; 8]> = zones
        .iter()
        .map(|(name, zone)| {
            let [ended, uniform, moved] = [&zone.ended, &zone.uniform, &zone.moved].map(cost);
            let late = [&zone.ended, &zone.uniform, &zone.moved].map(late);
            let [ended_late, uniform_late, moved_late] = late;
            [name.clone(), format!("{:.0} %", zone.spot_share * 100.0), ended, ended_late, uniform, uniform_late, moved, moved_late]
        })
        .collect();
    let heads = ["ZONE", "THERE", "ENDED", "LATE", "UNIFORM", "LATE", "MOVED", "LATE"];
    let mut text = table(heads, &rows);
    let hours = |seconds: u64| seconds as f64 / 3600.0;
    text += &format!(
        "\n{} jobs a row, each {} h of work in {} h. THERE: time with a cheap machine. Cost: in per cent of the work on machines that are never withdrawn, at {} times the price.\n",
        plan.jobs,
        hours(plan.work_s),
        hours(plan.deadline_s),
        plan.price
    );
    text += "LATE: on average, where it is more than nothing, and how many jobs are; + where some had not ended after the whole trace.\n";
    text += "ENDED: cheap machines alone, begun again after each withdrawal. UNIFORM: the rule Uniform Progress, begun again. MOVED: that rule, and the VM moves.\n";
    text
}

fn cost(way: &WayOutcome) -> String {
    format!("{:.1} %", way.cost_percent)
}

fn late(way: &WayOutcome) -> String {
    match way.late_jobs {
        0 => "-".to_owned(),
        jobs => format!("{}{:.1} h ({jobs})", if way.given_up > 0 { "+" } else { "" }, way.late_mean_h),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::args::{self, SimulateCommand};

    fn options(folder: &Path, more: &str) -> SpotOptions {
        let data: Vec<u8> = (0..2000).map(|tick| u8::from(tick % 8 < 6)).collect();
        let text = serde_json::json!({ "metadata": { "gap_seconds": 300 }, "data": data }).to_string();
        fs::write(folder.join("east.json"), &text).unwrap();
        fs::write(folder.join("west.json"), text.replace("[1,1,1,", "[0,0,1,")).unwrap();
        let place = folder.display();
        let line = format!("rebec simulate spot {place}/east.json {place}/west.json {more}");
        let args::Command::Simulate(options) = args::parse_from(line.split_whitespace()).unwrap().command else { panic!("not it") };
        let Some(SimulateCommand::Spot(options)) = options.other else { panic!("not it") };
        options
    }

    #[test]
    fn from_files_to_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path(), "--work 5h --deadline 8h --jobs 5");
        carry_out(&options, true).unwrap();
        let ticks = || read(File::open(folder.path().join("east.json")).unwrap()).unwrap();
        let text = told(&options.plan(), &simulate(&options.plan(), &[("east".into(), ticks()), ("west".into(), ticks())]).unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ZONE      THERE  ENDED") && lines[1].starts_with("east      75 %"), "{text}");
        assert!(lines[1].contains("h (5)") && lines[3].starts_with("any of 2"), "{text}");
        assert!(text.contains("5 jobs a row, each 5 h of work in 8 h."), "{text}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(folder.path(), "");
        fs::write(folder.path().join("west.json"), "{}").unwrap();
        let told = carry_out(&options, true).unwrap_err().to_string();
        assert!(told.contains("west.json: missing field `metadata`"), "{told}");
        options.traces = vec![folder.path().join("east.json"), folder.path().join("x/../east.json")];
        assert!(carry_out(&options, true).unwrap_err().to_string().contains("another is called east too"));
    }
}
