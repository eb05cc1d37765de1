//! `rebec-vmm unpack`: the ELF kernel inside a bzImage, on standard output. Reading it is done sealed, as all reading of what may be hostile.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use rebec_boot::KernelImage;

use crate::{
    cli::UnpackOptions,
    open,
    seal::{SealOptions, seal},
};

/// Runs the command.
pub fn run(options: &UnpackOptions) -> Result<ExitCode> {
    let kernel = open::kernel(&options.kernel)?;
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        bail!("standard output is a terminal; write the kernel to a file: rebec-vmm unpack {} > vmlinux", options.kernel);
    }
    let _sealed = seal(SealOptions::default())?;
    let image = KernelImage::from_file(&kernel.file).with_context(|| format!("kernel {}", kernel.path.display()))?;
    image.write_elf(&mut out).and_then(|()| out.flush()).context("write the kernel to standard output")?;
    Ok(ExitCode::SUCCESS)
}
