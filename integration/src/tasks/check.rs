//! `cargo lab check`: formatting, lints, documentation and the repository's own rules. What CI runs first.

use std::{process::ExitCode, thread};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    fuzz,
    steps::{Steps, cargo},
    tidy,
};
use crate::{command::Program, paths, progress::say};

/// Manifests that are not members of the workspace.
const OUTSIDE: [&str; 2] = ["integration/guest/Cargo.toml", "fuzz/Cargo.toml"];

/// Runs every check; the first that fails is the error.
pub fn run() -> Result<ExitCode> {
    let steps = Steps::begin("check");
    let checked = check(&steps);
    steps.tell();
    checked?;
    say("check", "all is in order");
    Ok(ExitCode::SUCCESS)
}

fn check(steps: &Steps) -> Result<()> {
    let faults = steps.take("rules of the repository", || tidy::check(&paths::workspace()))?;
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} places break the rules of the repository", faults.len());
    }
    told("formatting", steps.run("formatting", cargo().args(["fmt", "--all", "--check"])))?;
    for manifest in OUTSIDE.into_iter().filter(|manifest| paths::workspace().join(manifest).exists()) {
        let what = format!("formatting of {manifest}");
        told(&what, steps.run(&what, cargo().args(["fmt", "--check", "--manifest-path", manifest])))?;
    }
    // The fuzz targets have a folder of their own, so neither waits for the other's lock: when one has a single crate to look at, the other has
    // the second processor. The guest is built by every test that boots it.
    thread::scope(|scope| {
        let of_targets = scope.spawn(|| {
            let what = "lints of the fuzz targets";
            told(what, steps.run(what, fuzz::linting(cargo())))
        });
        let of_workspace = workspace(steps);
        let of_targets = of_targets.join().unwrap_or_else(|_| Err(anyhow!("the thread of the fuzz targets' lints panicked")));
        of_workspace.and(of_targets)
    })
}

fn workspace(steps: &Steps) -> Result<()> {
    let step = |what: &str, program: Program| told(what, steps.run(what, program));
    step("lints", cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let documentation = cargo().args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    step("documentation", documentation.env("RUSTDOCFLAGS", "-D warnings"))
}

fn told(what: &str, done: Result<()>) -> Result<()> {
    done.with_context(|| format!("check {what}"))
}
