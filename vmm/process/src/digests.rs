//! `rebec-vmm digests`: what a base holds, on standard output. The image is read sealed, as all that may be hostile.

use std::{
    fs::File,
    io::{self, BufWriter},
    os::fd::AsFd,
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

/// Digests take 1/128 of what comes out of an image. One of which more than 32 times its size comes out is hardly meant to be used.
const IMAGE_SHARE: u64 = 4;
/// Least urgent of all.
const NICENESS: i32 = 19;

/// Runs the command.
pub fn run(options: &DigestsOptions) -> Result<ExitCode> {
    let image = open::base(&options.base)?;
    let out = File::from(io::stdout().as_fd().try_clone_to_owned().context("duplicate standard output")?);
    if !out.metadata().context("inspect standard output")?.is_file() {
        let base = &options.base;
        bail!("standard output is no file; write the digests to one: rebec-vmm digests {base} > {base}.digests");
    }
    // VMs come first.
    nice(NICENESS).context("give way to others")?;
    let _sealed = seal(SealOptions::default())?;
    let bytes_max = image.file.metadata().context("inspect the image")?.len() / IMAGE_SHARE;
    write_digests(&image.parse()?, bytes_max, &mut BufWriter::new(out)).with_context(|| format!("digests of {}", image.name))?;
    Ok(ExitCode::SUCCESS)
}
