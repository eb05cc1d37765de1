//! `rebec-vmm unpack`: the ELF kernel inside a bzImage, on standard output. Reading it is done sealed, as all reading of what may be hostile.
//!
//! With `--disk` it is the kernel that would start from a disk image, followed by all else that such a start takes and the digest of what the kernel was
//! unpacked from ([`crate::open::KnownKernel`]): a VM whose disk is the image's there need not read it, and one that still has the kernel not unpack it.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use rebec_boot::KernelImage;

use crate::{
    boot_plan::start_and_trace,
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
        let (mut start, read) = start_and_trace(&disk)?;
        let end = KnownKernel::end(&start.kernel);
        let packed = std::mem::take(&mut start.kernel);
        let image = KernelImage::from_bytes(packed).with_context(|| format!("disk {}: the kernel of {}", disk.name(), start.from))?;
        let middle = read.map(|read| KnownKernel::middle(&disk, &start, image.elf_bytes(), &read)).transpose();
        let middle = middle.with_context(|| format!("disk {}: remember what starts", disk.name()))?.unwrap_or_default();
        let written = image.write_elf(&mut out).and_then(|()| out.write_all(&middle)).and_then(|()| out.write_all(&end));
        written.context("write the kernel to standard output")?;
    }
    out.flush().context("write the kernel to standard output")?;
    Ok(ExitCode::SUCCESS)
}
