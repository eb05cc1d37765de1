//! `rebec-vmm digests`: what a base holds, on standard output. The image is read sealed, as all that may be hostile.

use std::{
    io::{self, BufWriter, IsTerminal},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use rustix::process::nice;

use crate::{
    cli::DigestsOptions,
    moving::write_digests,
    open,
    seal::{SealOptions, seal},
};

/// Least urgent of all.
const NICENESS: i32 = 19;

/// Runs the command.
pub fn run(options: &DigestsOptions) -> Result<ExitCode> {
    let image = open::base(&options.base)?;
    let out = io::stdout().lock();
    if out.is_terminal() {
        let base = options.base.display();
        bail!("standard output is a terminal; write the digests to a file: rebec-vmm digests {base} > {base}.digests");
    }
    // VMs come first.
    nice(NICENESS).context("give way to others")?;
    let _sealed = seal(SealOptions::default())?;
    write_digests(&image.parse()?, &mut BufWriter::new(out)).with_context(|| format!("digests of {}", options.base.display()))?;
    Ok(ExitCode::SUCCESS)
}
