//! `rebec-vmm unpack`: the ELF kernel inside a bzImage, on standard output. Reading it is done sealed, as all reading of what may be hostile.
//!
//! With `--disk` it is the kernel that would start from a disk image, followed by the digest of what it was unpacked from ([`crate::open::KnownKernel`]):
//! a VM whose disk still has that kernel need not unpack it again.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use rebec_boot::KernelImage;

use crate::{
    boot_plan::start_of,
    cli::UnpackOptions,
    open::{self, KnownKernel},
    seal::{SealOptions, seal},
};

/// Runs the command.
pub fn run(options: &UnpackOptions) -> Result<ExitCode> {
    let (kernel, disk) = open::for_unpacking(options)?;
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        bail!("standard output is a terminal; write the kernel to a file: rebec-vmm unpack FILE > vmlinux");
    }
    let _sealed = seal(SealOptions::default())?;
    if let Some(kernel) = &kernel {
        let image = KernelImage::from_file(&kernel.file).with_context(|| format!("kernel {}", kernel.path.display()))?;
        image.write_elf(&mut out).context("write the kernel to standard output")?;
    }
    if let Some(file) = &disk {
        let disk = Arc::new(file.parse()?);
        let start = start_of(&disk)?;
        let end = KnownKernel::end(&start.kernel);
        let image = KernelImage::from_bytes(start.kernel).with_context(|| format!("disk {}: the kernel of {}", disk.name(), start.from))?;
        image.write_elf(&mut out).and_then(|()| out.write_all(&end)).context("write the kernel to standard output")?;
    }
    out.flush().context("write the kernel to standard output")?;
    Ok(ExitCode::SUCCESS)
}
