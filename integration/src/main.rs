//! `cargo lab`: the one door to building, testing, showing and measuring Rebec.
//!
//! Parses the command line and calls a task of `rebec_lab::tasks`. An error is one line that names the object.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rebec_lab::{demo, tasks};

/// The lab: boots machines, runs the demo, the tests, the checks and the benchmarks.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Move a VM between two machines and back while it works, and report what was seen.
    Demo(demo::Options),
    /// Run every test of the repository.
    Test(tasks::test::Options),
    /// Check formatting, lints, documentation and the repository's rules.
    Check,
    /// Look for inputs that break what reads bytes from outside.
    Fuzz(tasks::fuzz::Options),
    /// Remove what the lab has made.
    Clean(tasks::clean::Options),
    /// Measure what has a target, beside its peers.
    Bench(tasks::bench::Options),
    /// Simulate a pool of a thousand hosts, or measure a large book.
    Sim(tasks::sim::Options),
    /// Build the appliance's image: ISO, kernel and initrd; and the Debian package.
    Image,
    /// Write the newest packages of the image into its lock file.
    Pin,
    /// Boot one lab machine and a VM in it, and show the VM's console.
    Boot(tasks::boot::Options),
}

fn main() -> ExitCode {
    env_logger::init();
    let done = match Cli::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => tasks::test::run(&options),
        Task::Check => tasks::check::run(),
        Task::Fuzz(options) => tasks::fuzz::run(&options),
        Task::Clean(options) => tasks::clean::run(&options),
        Task::Bench(options) => tasks::bench::run(&options),
        Task::Sim(options) => tasks::sim::run(&options),
        Task::Image => tasks::image::run(),
        Task::Pin => tasks::image::pin(),
        Task::Boot(options) => tasks::boot::run(&options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cargo lab: {error:#}");
        ExitCode::FAILURE
    })
}
