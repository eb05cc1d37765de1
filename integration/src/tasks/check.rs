//! `cargo lab check`: formatting, lints, documentation and the repository's own rules. What CI runs first.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::tidy;
use crate::{command::Program, paths, progress::say};

/// How long one step may take on two slow cores, from nothing.
const STEP_DEADLINE: Duration = Duration::from_secs(1800);

/// Manifests that are not members of the workspace.
const OUTSIDE: [&str; 2] = ["integration/guest/Cargo.toml", "fuzz/Cargo.toml"];

/// Runs every check; the first that fails is the error.
pub fn run() -> Result<ExitCode> {
    say("check", "rules of the repository");
    let faults = tidy::check(&paths::workspace())?;
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} places break the rules of the repository", faults.len());
    }
    step("formatting", &["fmt", "--all", "--check"])?;
    step("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step("documentation", &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"])?;
    for manifest in OUTSIDE {
        if paths::workspace().join(manifest).exists() {
            step(&format!("formatting of {manifest}"), &["fmt", "--check", "--manifest-path", manifest])?;
        }
    }
    // The guest is built by every test that boots it; a fuzz target by nothing but fuzzing, which comes last.
    step(
        "lints of fuzz/Cargo.toml",
        &["clippy", "--quiet", "--manifest-path", "fuzz/Cargo.toml", "--all-targets", "--", "-D", "warnings"],
    )?;
    say("check", "all is in order");
    Ok(ExitCode::SUCCESS)
}

fn step(what: &str, args: &[&str]) -> Result<()> {
    say("check", what);
    let program = Program::new("cargo").args(args).env("RUSTDOCFLAGS", "-D warnings").folder(paths::workspace()).deadline(STEP_DEADLINE);
    program.run().with_context(|| format!("check {what}: cargo {}", args.join(" ")))
}
