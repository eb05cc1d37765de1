//! `cargo lab bench`: the figures of the project as a table and as JSON, each beside its target.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{bench::boot, provision};

/// Options of `cargo lab bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Measures; the exit code says whether every target was met.
pub fn run(options: &Options) -> Result<ExitCode> {
    let boots = boot::measure(&provision::provision()?)?;
    if options.json {
        println!("{}", serde_json::to_string(&boots).context("write the figures")?);
    } else {
        boots.iter().for_each(|cost| println!("{cost}"));
    }
    Ok(if boots.iter().all(boot::BootCost::is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
