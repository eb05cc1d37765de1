//! `cargo lab bench`: the figures of the project as a table and as JSON, each beside its target.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{
    bench::{Figure, Target, arrived, base, boot, disks, donors, engine, lan, machines, memory, moves, pool, requests, table, trade},
    progress::say,
    provision,
};

/// Rows that can be measured alone, in the order of a whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Resident memory beside guest memory.
    Memory,
    /// What a move leaves behind in the VMM where it ended.
    Arrived,
    /// Bytes and gap of two moves, the second with a donor.
    Moves,
    /// A move to where the base of the disk is already, with its digests kept and without.
    Base,
    /// Bulk from guest to guest beside the kernel's VXLAN.
    Lan,
    /// What agents cost: joining, starting, carrying a move, doing nothing.
    Pool,
    /// How soon the index over a donor's memory stands.
    Donors,
    /// Reading what starts out of a disk, and importing one with holes.
    Disks,
    /// Small reads of a disk, one by one and side by side, beside QEMU's.
    Requests,
    /// Pages a second through the move's page functions.
    Engine,
    /// What trade does to the jobs of two clusters (`--traces`), and how fast it is simulated.
    Trade,
    /// Instructions from exec to init, in the QEMU lab.
    Boot,
    /// Four machines that boot the image and become a pool, in the QEMU lab.
    Machines,
}

/// Options of `cargo lab bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Rows to measure; all when none is named.
    #[arg(value_enum)]
    rows: Vec<Row>,
    /// Traces of KTH and CTC in the Standard Workload Format, for `trade`.
    #[arg(long, value_names = ["KTH", "CTC"], num_args = 2)]
    traces: Vec<PathBuf>,
    /// Traces of machines that come and go, one a zone, for `trade`.
    #[arg(long, value_name = "ZONE", num_args = 1..)]
    zones: Vec<PathBuf>,
    /// Write the figures as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures; the exit code says whether every target was met. A row that cannot be measured fails the run after the others.
pub fn run(options: &Options) -> Result<ExitCode> {
    let (mut figures, mut failed) = (Vec::new(), false);
    for row in Row::value_variants().iter().filter(|row| options.rows.is_empty() || options.rows.contains(row)) {
        let name = row.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        say("bench", &name);
        match measure(*row, options) {
            Ok(found) => figures.extend(found),
            Err(error) => {
                failed = true;
                eprintln!("cargo lab bench: {name}: {error:#}");
            }
        }
    }
    print!("{}", table(&figures));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures).context("write the figures")?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    let is_well = !failed && figures.iter().all(Figure::is_met);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(row: Row, options: &Options) -> Result<Vec<Figure>> {
    match row {
        Row::Memory => memory::measure(),
        Row::Arrived => arrived::measure(),
        Row::Moves => moves::measure(),
        Row::Base => base::measure(),
        Row::Lan => lan::measure(),
        Row::Pool => pool::measure(),
        Row::Donors => donors::measure(),
        Row::Disks => disks::measure(),
        Row::Requests => requests::measure(),
        Row::Engine => engine::measure(),
        Row::Trade => trade::measure(&options.traces, &options.zones),
        Row::Machines => machines::measure(),
        Row::Boot => Ok(boot::measure(&provision::provision()?)?.iter().map(boot_figure).collect()),
    }
}

fn boot_figure(cost: &boot::BootCost) -> Figure {
    let giga = |count: u64| count as f64 / 1e9;
    Figure {
        name: format!("exec to init, {}, {}", cost.program, cost.kernel),
        unit: "G instructions",
        measured: giga(cost.instructions),
        target: cost.target.map_or(Target::None, |target| Target::AtMost(giga(target))),
        peers: Vec::new(),
        how: "Debian 13 cloud kernel, 256 MiB, one vCPU, counted by a lab machine whose clock is its instructions".into(),
    }
}
