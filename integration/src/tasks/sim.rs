//! `cargo lab sim`: a pool of a thousand hosts in one process and virtual time, and what a large book takes.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    figure::{Figure, table},
    progress::say,
    sim::{self, Plan, resident},
};

/// Options of `cargo lab sim`.
#[derive(Debug, Args)]
pub struct Options {
    /// Measure a book of 100,000 records, and the exchange of 100 hosts, in place of a pool.
    #[arg(long)]
    book: bool,
    /// From which everything follows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Hosts.
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// Domains.
    #[arg(long, default_value_t = 20)]
    domains: usize,
    /// VMs of each host.
    #[arg(long, default_value_t = 10)]
    vms: usize,
    /// Of a hundred hosts, those that are silent.
    #[arg(long, default_value_t = 20)]
    silent: usize,
    /// Records that the pool writes in a second.
    #[arg(long, default_value_t = 5)]
    changes: usize,
    /// Seconds in which that is measured.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Write the figures as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Read records from the standard input and measure a book of them: what the others start.
    #[arg(long, hide = true)]
    resident: bool,
}

/// Simulates; the exit code says whether every target was met.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.resident {
        resident::serve()?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        options.hosts > 2 * options.domains && options.domains > 1 && options.vms > 0,
        "at least two domains of three hosts with a VM each"
    );
    say("sim", format!("seed {}", options.seed));
    let plan = Plan {
        seed: options.seed,
        hosts: options.hosts,
        domains: options.domains,
        vms: options.vms,
        silent_percent: options.silent.min(90),
        changes_s: options.changes,
        seconds: options.seconds.max(1),
    };
    let (figures, spots) = if options.book {
        ([sim::measure_book(options.seed)?, vec![sim::exchange()?]].concat(), String::new())
    } else {
        sim::measure(&plan)?
    };
    print!("{}{spots}", table(&figures));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures).context("write the figures")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if figures.iter().all(Figure::is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
