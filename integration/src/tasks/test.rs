//! `cargo lab test`: every test of the repository, from units to machines.
//!
//! Units run first, everything else after them in order of cost: tests named `local_*` use the namespace lab, the others
//! the QEMU lab. A group that fails does not hide the next one.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;

use super::fuzz;
use crate::{
    artifacts::{self, Artifact},
    command::Program,
    guest, paths,
    progress::say,
    provision,
    qemu::image,
};

/// How long one group may take: a first build on two slow cores included.
const GROUP_DEADLINE: Duration = Duration::from_secs(2400);

/// Stories that wait for leases to run out, most of their time.
const LEASES: &str = "local_pool_keeper";

/// Options of `cargo lab test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Run only groups whose name contains this: `units`, `fuzz`, or the name of a file in integration/tests.
    group: Option<String>,
    /// How long each fuzz target runs.
    #[arg(long, default_value_t = fuzz::TEST_SECONDS, value_name = "N")]
    fuzz_seconds: u64,
}

/// Runs the groups; the exit code says whether all were right.
pub fn run(options: &Options) -> Result<ExitCode> {
    let provisions = provision::provision()?;
    // Built here and once: tests then only ask whether they are fresh.
    artifacts::build(Artifact::Vmm)?;
    image::lab_initramfs(&provisions.lab)?;
    for kernel in [&provisions.guest, &provisions.guest_12] {
        guest::files(kernel)?;
    }
    let wanted = |group: &str| options.group.as_ref().is_none_or(|wanted| group.contains(wanted.as_str()));
    if ["local_pool", "local_service", "qemu_firmware", "qemu_pool"].into_iter().any(wanted) {
        // Minutes from nothing: not on those groups' time, and not on anybody's who wants another.
        artifacts::build(Artifact::Rebec)?;
    }
    let mut wrong = Vec::new();
    if wanted("units") {
        let mut args = vec!["test", "--quiet", "--workspace", "--exclude", "rebec-lab", "--no-fail-fast"];
        group("units", &args, &mut wrong);
        args = vec!["test", "--quiet", "--package", "rebec-lab", "--lib", "--bins"];
        group("units of the lab", &args, &mut wrong);
    }
    for file in test_files()? {
        if wanted(&file) {
            // Labs share this machine's cores: one test at a time keeps their deadlines honest. Leases are waited for, by as many as like to.
            let threads = if file == LEASES { "--test-threads=3" } else { "--test-threads=1" };
            let args = ["test", "--quiet", "--package", "rebec-lab", "--test", &file, "--", threads];
            group(&file, &args, &mut wrong);
        }
    }
    if wanted("fuzz") {
        say("test", "fuzz");
        if let Err(error) = fuzz::run_all(options.fuzz_seconds) {
            say("test", format_args!("fuzz: {error:#}"));
            wrong.push("fuzz".to_owned());
        }
    }
    if wrong.is_empty() {
        say("test", "every group is right");
        return Ok(ExitCode::SUCCESS);
    }
    say("test", format_args!("WRONG: {}; again by: cargo lab test {}", wrong.join(", "), wrong[0].split(' ').next().unwrap_or_default()));
    Ok(ExitCode::FAILURE)
}

fn group(name: &str, args: &[&str], wrong: &mut Vec<String>) {
    say("test", name);
    let done = Program::new("cargo").args(args).folder(paths::workspace()).deadline(GROUP_DEADLINE).run();
    if let Err(error) = done {
        say("test", format_args!("{name}: {error:#}"));
        wrong.push(name.to_owned());
    }
}

/// Names in integration/tests, the namespace lab's first: they take seconds.
fn test_files() -> Result<Vec<String>> {
    let folder = paths::workspace().join("integration/tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort_by_key(|name| (!name.starts_with("local_"), name.clone()));
    Ok(names)
}
