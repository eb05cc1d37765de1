//! `cargo lab fuzz`: builds the fuzz targets with libFuzzer on stable Rust and runs them for a bounded time.
//!
//! `cargo lab test` runs every target for [`TEST_SECONDS`]. A finding is an input in `target/lab/fuzz/artifacts`, and fails the run with
//! the command that shows it again. Inputs that reached something new stay in `target/lab/fuzz/corpus` and are where the next run begins,
//! beside the seeds that each target writes itself. `docs/notes/fuzzing.md` says how the flags were chosen.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;

use super::steps;
use crate::{command::Program, paths, progress::say};

/// What `cargo lab test` gives each target.
pub const TEST_SECONDS: u64 = 8;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What cargo-fuzz passes, but for sanitizers, which need nightly Rust: coverage as libFuzzer reads it, and what is compared with what.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// How long a first build on two slow cores may take.
const BUILD_DEADLINE: Duration = Duration::from_secs(1800);
/// No input may take longer: the slowest good ones take a tenth of a second on a busy machine.
const INPUT_SECONDS_MAX: u64 = 20;
/// Beyond the time asked for: reading the corpus, and an input that hangs.
const EXTRA_TIME: Duration = Duration::from_secs(120);

/// One program of the fuzz crate, with its limits.
struct Target {
    name: &'static str,
    /// Longest input that is made up.
    input_bytes_max: usize,
    /// Memory at most. A hostile input may cost what its format allows, and no more.
    memory_mib_max: usize,
}

const fn target(name: &'static str, input_bytes_max: usize, memory_mib_max: usize) -> Target {
    Target { name, input_bytes_max, memory_mib_max }
}

const TARGETS: [Target; 10] = [
    target("wire", 16 << 10, 512),
    target("records", 8 << 10, 256),
    target("saved", 8 << 10, 256),
    target("rings", 4 << 10, 512),
    target("frames", 4 << 10, 256),
    // A kernel may unpack to 512 MiB.
    target("kernel", 8 << 10, 1024),
    // A small ext4, XFS or btrfs whole.
    target("bootable", 160 << 10, 2048),
    target("disk", 4 << 10, 512),
    target("pool", 8 << 10, 256),
    target("texts", 4 << 10, 256),
];

/// Options of `cargo lab fuzz`.
#[derive(Debug, Args)]
pub struct Options {
    /// One target only: wire, records, saved, rings, frames, kernel, bootable, disk, pool or texts.
    target: Option<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Run this input once, as after a finding, instead of looking for others.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

/// Runs one target or all.
pub fn run(options: &Options) -> Result<ExitCode> {
    let wanted: Vec<&Target> = match &options.target {
        None => TARGETS.iter().collect(),
        Some(name) => match TARGETS.iter().find(|target| target.name == name) {
            Some(target) => vec![target],
            None => bail!("no fuzz target {name}; there are {}", TARGETS.map(|target| target.name).join(", ")),
        },
    };
    build()?;
    if let (Some(input), [target]) = (&options.input, &wanted[..]) {
        let input = input.canonicalize().with_context(|| format!("find {}", input.display()))?;
        let limit = format!("-rss_limit_mb={}", target.memory_mib_max);
        Program::new(&program(target)).arg(limit).arg(input).env("RUST_BACKTRACE", "1").run()?;
        return Ok(ExitCode::SUCCESS);
    }
    fuzz(&wanted, options.seconds)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds, and runs every target for so many seconds; the error names what was found.
pub fn run_all(seconds: u64) -> Result<()> {
    build()?;
    fuzz(&TARGETS.iter().collect::<Vec<_>>(), seconds)
}

fn build() -> Result<()> {
    say("fuzz", "building the targets");
    building(steps::cargo()).deadline(BUILD_DEADLINE).run().context("build the fuzz targets")
}

/// What builds the targets, given cargo.
pub fn building(cargo: Program) -> Program {
    of_targets(cargo.args(["build", "--quiet", "--bins"]))
}

/// What lints them, given cargo: in the folder and with the flags of the build, so that libFuzzer's C++ is compiled for both at once.
pub fn linting(cargo: Program) -> Program {
    of_targets(cargo.args(["clippy", "--quiet", "--all-targets"])).args(["--", "-D", "warnings"])
}

fn of_targets(cargo: Program) -> Program {
    cargo
        .args(["--release", "--manifest-path", "fuzz/Cargo.toml"])
        // With a target triple, flags do not reach build scripts, which have no libFuzzer beside them.
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(target_folder())
        .env("RUSTFLAGS", FLAGS)
}

fn target_folder() -> PathBuf {
    paths::workspace().join("target/fuzz")
}

fn program(target: &Target) -> String {
    target_folder().join(TRIPLE).join("release").join(target.name).display().to_string()
}

/// As many targets at a time as there are processors.
fn fuzz(targets: &[&Target], seconds: u64) -> Result<()> {
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let mut findings = Vec::new();
    for group in targets.chunks(at_once) {
        thread::scope(|scope| {
            let running: Vec<_> = group.iter().map(|target| (target.name, scope.spawn(|| fuzz_one(target, seconds)))).collect();
            for (name, thread) in running {
                match thread.join().unwrap_or_else(|_| Err(anyhow!("its thread panicked"))) {
                    Ok(figures) => say("fuzz", format_args!("{name}: {figures}")),
                    Err(error) => findings.push(format!("{name}: {error:#}")),
                }
            }
        });
    }
    if findings.is_empty() { Ok(()) } else { bail!("{}", findings.join("\n")) }
}

fn fuzz_one(target: &Target, seconds: u64) -> Result<String> {
    let folder = paths::lab().join("fuzz");
    let (corpus, artifacts) = (folder.join("corpus").join(target.name), folder.join("artifacts"));
    for folder in [&corpus, &artifacts] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let log = folder.join(format!("{}.log", target.name));
    Program::new(&program(target)).env("REBEC_FUZZ_SEEDS", &corpus).quiet().context("write its seeds")?;
    // libFuzzer tells on stderr what it does: thousands of lines that count only when something is found.
    let done = Program::new("sh")
        .args(["-c", "exec \"$0\" \"$@\" 2>\"$FUZZ_LOG\"", &program(target)])
        .arg(&corpus)
        .arg(format!("-artifact_prefix={}/{}-", artifacts.display(), target.name))
        .args([format!("-max_total_time={seconds}"), format!("-timeout={INPUT_SECONDS_MAX}"), "-print_final_stats=1".to_owned()])
        .args([format!("-max_len={}", target.input_bytes_max), format!("-rss_limit_mb={}", target.memory_mib_max)])
        .env("FUZZ_LOG", &log)
        .env("RUST_BACKTRACE", "1")
        .deadline(Duration::from_secs(seconds) + EXTRA_TIME)
        .quiet();
    let said = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let said = String::from_utf8_lossy(&said);
    match done {
        Ok(()) => Ok(figures(&said)),
        Err(error) => bail!("{}", finding(target.name, &said, &log).unwrap_or_else(|| format!("{error:#}; see {}", log.display()))),
    }
}

/// What a run without findings did, from libFuzzer's last words.
fn figures(said: &str) -> String {
    let last = |key: &str| {
        let after = said.lines().rev().find_map(|line| line.split_once(key).map(|(_, rest)| rest));
        after.and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
    };
    let (inputs, memory) = (last("stat::number_of_executed_units:"), last("stat::peak_rss_mb:"));
    format!("{inputs} inputs, {} edges covered, {memory} MiB at most", last("cov: "))
}

/// What was found, where the input is and how to see it again.
fn finding(name: &str, said: &str, log: &Path) -> Option<String> {
    let input = said.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path.trim()))?;
    let panicked = said.lines().skip_while(|line| !(line.starts_with("thread ") && line.contains(" panicked at "))).take(2);
    let mut what = panicked.collect::<Vec<_>>().join(" ");
    if what.is_empty() {
        what = said.lines().find(|line| line.contains("ERROR: libFuzzer")).unwrap_or("it ended").to_owned();
    }
    Some(format!("{what}\n  input {input}, log {}\n  again by: cargo lab fuzz {name} --input {input}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_the_fuzz_crate_is_run() {
        let folder = paths::workspace().join("fuzz/src/bin");
        let mut programs: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
        programs.sort();
        let mut targets = TARGETS.map(|target| target.name.to_owned());
        targets.sort();
        assert_eq!(programs, targets);
    }

    #[test]
    fn a_finding_says_what_where_and_how_to_see_it_again() {
        let said = "INFO: Seed: 1\n\nthread '<unnamed>' (7) panicked at vmm/x.rs:3:5:\nit broke\nnote: run\n==7== ERROR: libFuzzer: deadly signal\n\
                    artifact_prefix='/a/'; Test unit written to /a/wire-crash-1\nBase64: AA==\n";
        let found = finding("wire", said, Path::new("/log")).unwrap();
        assert_eq!(
            found,
            "thread '<unnamed>' (7) panicked at vmm/x.rs:3:5: it broke\n  input /a/wire-crash-1, log /log\n  \
             again by: cargo lab fuzz wire --input /a/wire-crash-1"
        );
        assert_eq!(finding("wire", "stat::peak_rss_mb: 40\n", Path::new("/log")), None);
        let hang = "==7== ERROR: libFuzzer: timeout after 20 seconds\nartifact_prefix='/a/'; Test unit written to /a/timeout-1\n";
        assert!(finding("wire", hang, Path::new("/log")).unwrap().starts_with("==7== ERROR: libFuzzer: timeout"));
    }

    #[test]
    fn figures_are_the_last_ones() {
        let said = "#2 INITED cov: 12 ft: 13\n#9 NEW cov: 345 ft: 99\nstat::number_of_executed_units: 77\nstat::peak_rss_mb:  40\n";
        assert_eq!(figures(said), "77 inputs, 345 edges covered, 40 MiB at most");
    }
}
