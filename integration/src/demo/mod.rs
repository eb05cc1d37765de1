//! `cargo lab demo`: machines boot the appliance's image, become a pool by tickets, and a VM moves through both of its domains.
//!
//! The VMs are Debian guests whose work goes on meanwhile, and a report says what was seen:
//! ```text
//! domain alpha                                                       domain beta
//! host a1                            host a2                         host b1
//!   VM web      serves a transfer,     VM control  is pinged and       VM client   sends the transfer,
//!               writes blocks, holds               never moves                     pings web and control
//!               a pattern
//!        └──────── as fast as it goes ──┘  └── 100 Mbit/s, 20 ms round trip ──┘
//! ```
//! The hosts boot the appliance's image and join by tickets; all that is done is done by `rebec` (`pool`). With `--short` a small guest
//! that only beats makes the same journey, and there is no report.
//!
//! With `--two-vmms` there is no pool and no agent, only two VMMs that are told what to do (`story`):
//! ```text
//! machine a                                   machine b
//!   VM web      serves a transfer, writes       VM client   sends the transfer, pings web and control
//!               blocks, holds a pattern
//!   VM control  is pinged and never moves
//!        └────────── 100 Mbit/s, 20 ms round trip ──────────┘
//! ```
//! `work` is what the VMs do in both, `report` judges it. With `--local` the bench guest does the same in network namespaces. `trade` tells of two domains that
//! lend each other machines.

mod faults;
pub mod pool;
pub mod report;
pub mod story;
pub mod trade;
pub mod work;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use serde::Serialize;

use crate::{netlab, qemu::Accel};

/// Stories beside that of the VM that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Other {
    /// A queue borrows another domain's machines.
    Trade,
}

/// Options of `cargo lab demo`.
#[derive(Debug, Args)]
pub struct Options {
    /// Another story than that of the VM that moves; it is told with --local.
    #[arg(value_enum, requires = "local")]
    pub other: Option<Other>,
    /// Use the bench guest in network namespaces on this machine's own KVM: seconds instead of minutes.
    #[arg(long, conflicts_with_all = ["accel", "vmm", "two_vmms", "short"])]
    pub local: bool,
    /// Move a VM between two VMMs, without a pool.
    #[arg(long)]
    pub two_vmms: bool,
    /// Move a small guest that only beats, without a report: minutes less under emulation.
    #[arg(long, conflicts_with = "two_vmms")]
    pub short: bool,
    /// How lab machines run; without it, KVM if nesting works here and emulation if not.
    #[arg(long, value_enum)]
    pub accel: Option<Accel>,
    /// A static rebec-vmm to use instead of building one.
    #[arg(long, value_name = "FILE", requires = "two_vmms")]
    pub vmm: Option<PathBuf>,
    /// A folder with an image to boot instead of building one.
    #[arg(long, value_name = "FOLDER", conflicts_with = "two_vmms")]
    pub image: Option<PathBuf>,
    /// Moves of --two-vmms: there, back, there, and so on.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    pub moves: u8,
    /// Parallel streams of each move.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub streams: u8,
    /// Also write the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Tells the story; the exit code says whether every verdict was right.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.other == Some(Other::Trade) {
        let report = trade::tell()?;
        println!("{report}");
        write(options, &report)?;
        return Ok(if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if options.local {
        netlab::demo::run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = if options.two_vmms {
        let report = story::tell(options)?;
        println!("{report}");
        report
    } else if options.short {
        println!("{}", pool::tell_shortly(options)?);
        return Ok(ExitCode::SUCCESS);
    } else {
        let (report, views) = pool::tell(options)?;
        println!("{report}\n{views}");
        report
    };
    write(options, &report)?;
    Ok(if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes a report as JSON, where that was asked for.
fn write(options: &Options, report: &impl Serialize) -> Result<()> {
    let Some(path) = &options.json else { return Ok(()) };
    let text = serde_json::to_string_pretty(report).context("write the report")?;
    std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}
