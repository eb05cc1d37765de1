//! `cargo lab test`: every test of the repository, from units to machines.
//!
//! ```text
//! tests of the lab ── provision ── programs for machines and guests ── groups that wait ──┐
//!                 └── idle: units and fuzz targets are compiled ──────────────────────────┴── units ── what goes alone
//!                                                                                          ── the other groups, two at a time ── fuzz
//! ```
//! Groups named `local_*` use the namespace lab, the others the QEMU lab. One that fails does not hide the next one. What may overlap and
//! why is told in docs/notes/ci.md.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{
    fuzz,
    steps::{Steps, cargo, idle_cargo},
};
use crate::{
    artifacts::{self, Artifact},
    command::Program,
    guest, paths,
    progress::say,
    provision,
    qemu::image,
};

/// Groups that wait most of their time (leases to run out, links to be missed, slow clients to be sent away), and how many of their tests may
/// do so at once. They go while others are compiled for.
const WAITING: [(&str, &str); 3] = [("local_pool_keeper", "3"), ("local_pool_faults", "2"), ("local_pool_refusals", "1")];
/// Groups that judge silences and fractions of seconds: nothing goes beside them.
const ALONE: [&str; 6] = ["local_boot", "local_handover", "local_lan", "local_lease", "local_move", "qemu_demo"];
/// How many of the others go at a time. None of them keeps two processors busy.
const OTHERS_AT_ONCE: usize = 2;
/// How the names of groups begin that want the appliance's program.
const OF_REBEC: [&str; 5] = ["local_pool", "local_service", "qemu_boot", "qemu_firmware", "qemu_pool"];
/// The groups that want what sits beside a scheduler.
const OF_ELASTIC: [&str; 2] = ["local_pool_slurm", "local_pool_trade"];
/// The group that wants agents of a later version.
const OF_LATER: &str = "local_pool_versions";
/// Cargo's words for every unit test but the lab's, whose features are the lab's own.
const UNITS: [&str; 5] = ["test", "--quiet", "--workspace", "--exclude", "rebec-lab"];

/// Options of `cargo lab test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Run only groups whose name contains this: `units`, `fuzz`, or the name of a file in integration/tests.
    group: Option<String>,
    /// How long each fuzz target runs.
    #[arg(long, default_value_t = fuzz::TEST_SECONDS, value_name = "N")]
    fuzz_seconds: u64,
}

impl Options {
    fn wants(&self, group: &str) -> bool {
        self.group.as_ref().is_none_or(|wanted| group.contains(wanted.as_str()))
    }
}

/// Runs the groups; the exit code says whether all were right.
pub fn run(options: &Options) -> Result<ExitCode> {
    let steps = Steps::begin("test");
    let done = groups(options, &steps);
    steps.tell();
    let wrong = done?;
    if wrong.is_empty() {
        say("test", "every group is right");
        return Ok(ExitCode::SUCCESS);
    }
    say("test", format_args!("WRONG: {}; again by: cargo lab test {}", wrong.join(", "), wrong[0].split(' ').next().unwrap_or_default()));
    Ok(ExitCode::FAILURE)
}

/// Returns the names of those that are wrong.
fn groups(options: &Options, steps: &Steps) -> Result<Vec<String>> {
    let tests = lab_tests(options, steps)?;
    let mut wrong = Wrong(Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| compile_beside(options, steps));
        let provisions = steps.take("provision", provision::provision)?;
        programs(&tests, steps)?;
        image::lab_initramfs(&provisions.lab)?;
        for kernel in [&provisions.guest, &provisions.guest_12] {
            guest::files(kernel)?;
        }
        for (name, threads) in WAITING {
            if let Some(program) = tests.get(name) {
                wrong.add(name, steps.run(name, test(program, threads)));
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;

    if options.wants("units") {
        wrong.add("units", steps.run("units", cargo().args(UNITS).arg("--no-fail-fast")));
        let of_lab = cargo().args(["test", "--quiet", "--package", "rebec-lab", "--lib", "--bins"]);
        wrong.add("units of the lab", steps.run("units of the lab", of_lab));
    }
    let (alone, others): (Vec<_>, Vec<_>) = tests
        .iter()
        .filter(|(name, _)| !is_one_of(name, WAITING.map(|(waiting, _)| waiting)))
        .partition(|(name, _)| is_one_of(name, ALONE));
    for (name, program) in alone {
        wrong.add(name, steps.run(name, test(program, "1")));
    }
    for (name, done) in two_at_a_time(&others, steps) {
        wrong.add(&name, done);
    }
    if options.wants("fuzz") {
        wrong.add("fuzz", steps.take("fuzz", || fuzz::run_all(options.fuzz_seconds)));
    }
    Ok(wrong.0)
}

fn is_one_of<const N: usize>(name: &str, groups: [&str; N]) -> bool {
    groups.contains(&name)
}

/// Runs groups of which none asks for the machine alone. Machines come first: they take minutes, and what takes seconds fills the end.
fn two_at_a_time(groups: &[(&String, &PathBuf)], steps: &Steps) -> Vec<(String, Result<()>)> {
    let mut waiting = groups.to_vec();
    waiting.sort_by_key(|(name, _)| name.starts_with("qemu_"));
    let (waiting, done) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some((name, program)) = next() {
            let how = steps.run(name, test(program, "1"));
            done.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), how));
        }
    };
    thread::scope(|scope| {
        for _ in 0..OTHERS_AT_ONCE {
            scope.spawn(work);
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Builds the wanted tests of the lab and returns their programs: groups start those without cargo, whose lock others may hold.
fn lab_tests(options: &Options, steps: &Steps) -> Result<BTreeMap<String, PathBuf>> {
    let names: Vec<String> = test_files()?.into_iter().filter(|name| options.wants(name)).collect();
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let build = || {
        let words = ["test", "--quiet", "--package", "rebec-lab", "--no-run"];
        cargo().args(words).args(names.iter().flat_map(|name| ["--test", name]))
    };
    steps.run("build of the lab's tests", build()).context("build the lab's tests")?;
    artifacts::lab_tests(build())
}

/// Names in integration/tests.
fn test_files() -> Result<Vec<String>> {
    let folder = paths::workspace().join("integration/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    Ok(names)
}

/// Builds what machines and guests run, once: tests then only ask whether it is fresh. A first build takes minutes: not on a group's time, and
/// not on anybody's who wants another.
fn programs(tests: &BTreeMap<String, PathBuf>, steps: &Steps) -> Result<()> {
    let wants_rebec = tests.keys().any(|name| OF_REBEC.iter().any(|beginning| name.starts_with(beginning)));
    let artifacts = [Artifact::Vmm, Artifact::Agent, Artifact::Workload].into_iter().chain(wants_rebec.then_some(Artifact::Rebec));
    let artifacts = artifacts.chain(OF_ELASTIC.iter().any(|name| tests.contains_key(*name)).then_some(Artifact::Elastic));
    let artifacts = artifacts.chain(tests.contains_key(OF_LATER).then_some(Artifact::Later));
    for artifact in artifacts {
        let name = artifact.binary();
        steps.run(&format!("build of {name}, static"), artifacts::building(artifact)).with_context(|| format!("build {name}"))?;
    }
    Ok(())
}

/// Compiles what comes later, in the time that nobody else wants. What is wrong with it is told when its turn comes.
fn compile_beside(options: &Options, steps: &Steps) {
    let builds = [("units", idle_cargo().args(UNITS).arg("--no-run")), ("fuzz", fuzz::building(idle_cargo()))];
    for (group, build) in builds.into_iter().filter(|(group, _)| options.wants(group)) {
        let name = format!("build of {group}");
        if let Err(error) = steps.run(&name, build) {
            say("test", format_args!("{name}: {error:#}"));
        }
    }
}

fn test(program: &Path, threads: &str) -> Program {
    Program::new(&program.display().to_string()).args(["--quiet", "--test-threads", threads]).folder(paths::workspace().join("integration"))
}

/// Names of what went wrong.
struct Wrong(Vec<String>);

impl Wrong {
    fn add(&mut self, name: &str, done: Result<()>) {
        if let Err(error) = done {
            say("test", format_args!("{name}: {error:#}"));
            self.0.push(name.to_owned());
        }
    }
}
