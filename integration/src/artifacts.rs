//! Our own programs, built as static binaries for lab machines and guests.
//!
//! They go to `target/lab/static`, apart from everything else cargo builds, because other flags would rebuild the world.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{command::Program, paths, progress::say};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// How long a first build on two slow cores may take.
const BUILD_DEADLINE: Duration = Duration::from_secs(1800);

/// A program of ours that runs inside lab machines or guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Artifact {
    /// The VMM.
    Vmm,
    /// The agent of lab machines.
    Agent,
    /// What guests run.
    Workload,
    /// The agent and its command line; `/init` of the appliance.
    Rebec,
    /// What sits beside a scheduler.
    Elastic,
    /// Agent and VMM that play a later version.
    Later,
}

impl Artifact {
    fn package(self) -> &'static str {
        match self {
            Self::Vmm => "rebec-vmm",
            Self::Agent => "rebec-lab-agent",
            Self::Workload => "rebec-workload",
            Self::Rebec => "rebec-cli",
            Self::Elastic => "rebec-elastic",
            Self::Later => "rebec-lab-later",
        }
    }

    /// The program's name.
    pub fn binary(self) -> &'static str {
        match self {
            Self::Vmm => "rebec-vmm",
            Self::Agent => "lab-agent",
            Self::Workload => "rebec-workload",
            Self::Rebec => "rebec",
            Self::Elastic => "rebec-elastic",
            Self::Later => "rebec-later",
        }
    }

    fn profile(self) -> &'static str {
        match self {
            // The libraries of the agent are built once for all of them.
            Self::Rebec | Self::Elastic | Self::Later => "image",
            Self::Vmm | Self::Agent | Self::Workload => "release",
        }
    }
}

/// Builds a program and returns where it is. Cargo decides what has to be done.
pub fn build(artifact: Artifact) -> Result<PathBuf> {
    let (binary, profile) = (artifact.binary(), artifact.profile());
    say("build", format_args!("{binary}, static"));
    building(artifact).run().with_context(|| format!("build {binary}"))?;
    let path = folder().join(TRIPLE).join(profile).join(binary);
    ensure_static(&path)?;
    ensure_homeless(&path)?;
    Ok(path)
}

/// Cargo, told to build a program.
pub fn building(artifact: Artifact) -> Program {
    cargo("build", artifact.profile()).args(["--package", artifact.package(), "--bin", artifact.binary()])
}

/// The programs of integration/tests by their names, of which cargo, told so by `build`, has nothing left to build.
pub fn lab_tests(build: Program) -> Result<BTreeMap<String, PathBuf>> {
    let told = build.args(["--message-format", "json"]).output().context("find the lab's tests")?;
    let objects = told.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    // The lab itself is built with them.
    let tests = objects.filter(|object| object["target"]["kind"][0] == "test");
    let named = tests.filter_map(|object| Some((object["target"]["name"].as_str()?.to_owned(), object["executable"].as_str()?.into())));
    Ok(named.collect())
}

/// Builds the unit tests of a package's library as a program.
pub fn build_tests(package: &str) -> Result<PathBuf> {
    say("build", format_args!("tests of {package}, static"));
    let test = cargo("test", "release").args(["--no-run", "--package", package, "--lib", "--message-format", "json"]);
    let told = test.output().with_context(|| format!("build the tests of {package}"))?;
    // One object a line; only what can be started names an executable.
    let objects = told.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let path = objects.filter_map(|object| object["executable"].as_str().map(PathBuf::from)).next_back();
    let path = path.with_context(|| format!("cargo named no test program of {package}"))?;
    ensure_static(&path)?;
    Ok(path)
}

fn folder() -> PathBuf {
    paths::lab().join("static")
}

fn cargo(what: &str, profile: &str) -> Program {
    Program::new("cargo")
        .args([what, "--quiet", "--profile", profile, "--target", TRIPLE])
        .arg("--target-dir")
        .arg(folder())
        .env("RUSTFLAGS", flags())
        // `cargo lab` has those of the lab's own package. Build scripts (ring's) run anew when one changes, and half of all
        // crates are built again after them.
        .without_env("CARGO_PKG_")
        .without_env("CARGO_MANIFEST_")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .folder(paths::workspace())
        .deadline(BUILD_DEADLINE)
}

/// Static, and without the name of cargo's folder: it would make the same sources other bytes elsewhere. The workspace's own
/// sources have names below it, so that its folder needs no word here (`build` looks), and checkouts side by side share builds.
fn flags() -> String {
    let cargo = std::env::var("CARGO_HOME").unwrap_or_else(|_| std::env::var("HOME").unwrap_or_default() + "/.cargo");
    format!("-C target-feature=+crt-static --remap-path-prefix={cargo}=/cargo")
}

/// Refuses a program that names the folder it was built in: built elsewhere, it would be other bytes.
fn ensure_homeless(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let workspace = paths::workspace().display().to_string();
    if String::from_utf8_lossy(&bytes).contains(&workspace) {
        bail!("{} names the folder {workspace}; find out whose path is not relative to it", path.display());
    }
    Ok(())
}

/// Refuses a program that would not start in a lab machine.
pub fn ensure_static(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is not a program", path.display());
    }
    let offset = bytes.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let count = bytes.get(56..58).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let (Some(offset), Some(count)) = (offset, count) else { bail!("{} is cut short", path.display()) };
    const ENTRY_BYTES: usize = 56;
    const PT_INTERP: [u8; 4] = 3u32.to_le_bytes();
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for number in 0..usize::from(count) {
        let at = start.saturating_add(number * ENTRY_BYTES);
        if bytes.get(at..at.saturating_add(4)) == Some(&PT_INTERP) {
            bail!("{} needs shared libraries; build it with RUSTFLAGS='-C target-feature=+crt-static' --target {TRIPLE}", path.display());
        }
    }
    Ok(())
}
