//! Puts kernel, initramfs, command line, start_info and ACPI tables into guest memory.
//!
//! Memory must be fresh, all zero: pages of zeros are not written, so they stay unpopulated and a move need not look at them.
//! A machine that is reset gets its memory emptied first and is loaded again.

#[cfg(test)]
mod tests;

use std::{io, ops::Range, os::unix::fs::FileExt};

use rebec_layout::{
    ACPI, CMDLINE_BYTES_MAX, HIGH_RAM_START, KERNEL_START, PAGE_BYTES, START_INFO, VCPUS_MAX, high_ram_bytes, low_ram_bytes,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, bitmap::Bitmap, guest_memory};

use crate::{acpi, content::Content, kernel::KernelImage, ram::GuestRam, start_info};

/// What to boot, on what machine.
#[derive(Debug, Clone, Copy)]
pub struct BootConfig<'a> {
    /// The kernel.
    pub kernel: &'a KernelImage,
    /// Handed to the kernel as module 0, at the end of low RAM.
    pub initramfs: Option<&'a Content>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// vCPUs, 1 to 16; APIC ids are 0, 1, 2...
    pub vcpus: u8,
}

/// Where the first vCPU starts: 32-bit protected mode without paging, flat segments, `ebx` = `start_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Instruction pointer.
    pub rip: u32,
    /// Address of `hvm_start_info`.
    pub start_info: u32,
}

/// Why a machine could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A number that no machine can have.
    #[error("{what} {value}: not between {min} and {max}")]
    Shape {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// The memory handed in is not what the size says.
    #[error("memory of {0} bytes is not whole pages, too small, or not mapped as the layout says")]
    Memory(u64),
    /// The kernel's segments end beyond low RAM.
    #[error("the kernel needs {needed} bytes of memory and the machine has {low} below 4 GiB; raise --memory")]
    KernelTooLarge {
        /// End of the last segment.
        needed: u64,
        /// Low RAM.
        low: u64,
    },
    /// No room between the kernel and the end of low RAM.
    #[error("the initramfs of {bytes} bytes does not fit into the {room} bytes above the kernel; raise --memory or use a smaller one")]
    InitramfsTooLarge {
        /// Its size.
        bytes: u64,
        /// Room for it.
        room: u64,
    },
    /// An initramfs without a byte.
    #[error("the initramfs is empty; leave it out, or build it again")]
    InitramfsEmpty,
    /// Linux would cut it.
    #[error("the command line has {bytes} bytes and Linux reads {max}; shorten --cmdline")]
    CmdlineTooLong {
        /// Its length.
        bytes: usize,
        /// The longest.
        max: usize,
    },
    /// A zero byte would end it early.
    #[error("the command line has a zero byte at {0}; remove it from --cmdline")]
    CmdlineZero(usize),
    /// Reading kernel or initramfs failed while it was copied.
    #[error("read {what}; was the file changed meanwhile?")]
    Read {
        /// Which file.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Guest memory refused a write.
    #[error("write {what} to guest memory")]
    Write {
        /// What was written.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: guest_memory::Error,
    },
}

/// Fills fresh memory of `ram_bytes` so that a vCPU can be started at the returned entry.
///
/// # Errors
/// A [`BootError`]; memory may then be filled in part.
pub fn load(ram: &GuestRam, ram_bytes: u64, config: &BootConfig<'_>) -> Result<Entry, BootError> {
    check_machine(ram, ram_bytes, config)?;
    let initramfs = place_initramfs(ram_bytes, config)?;

    for segment in config.kernel.segments() {
        copy(ram, "the kernel", config.kernel.content(), segment.offset, segment.address, segment.file_bytes)?;
    }
    if let (Some(content), Some(range)) = (config.initramfs, &initramfs) {
        copy(ram, "the initramfs", content, 0, range.start, content.len())?;
    }
    let tables = acpi::tables(config.vcpus);
    ram.write_slice(&tables, GuestAddress(ACPI.start)).map_err(|source| BootError::Write { what: "ACPI tables", source })?;
    start_info::write(ram, ram_bytes, config.cmdline, initramfs.as_ref())
        .map_err(|source| BootError::Write { what: "start_info", source })?;
    Ok(Entry { rip: config.kernel.entry(), start_info: START_INFO as u32 })
}

fn check_machine(ram: &GuestRam, ram_bytes: u64, config: &BootConfig<'_>) -> Result<(), BootError> {
    let shape = |what, value, min, max| if (min..=max).contains(&value) { Ok(()) } else { Err(BootError::Shape { what, value, min, max }) };
    shape("vCPUs", config.vcpus.into(), 1, VCPUS_MAX.into())?;

    let mapped = |start, bytes: u64| bytes == 0 || GuestMemoryBackend::check_range(ram, GuestAddress(start), bytes as usize);
    let fits = ram_bytes.is_multiple_of(PAGE_BYTES) && ram_bytes > KERNEL_START;
    if !fits || !mapped(0, low_ram_bytes(ram_bytes)) || !mapped(HIGH_RAM_START, high_ram_bytes(ram_bytes)) {
        return Err(BootError::Memory(ram_bytes));
    }
    let (needed, low) = (config.kernel.end(), low_ram_bytes(ram_bytes));
    if needed > low {
        return Err(BootError::KernelTooLarge { needed, low });
    }
    if config.cmdline.len() > CMDLINE_BYTES_MAX {
        return Err(BootError::CmdlineTooLong { bytes: config.cmdline.len(), max: CMDLINE_BYTES_MAX });
    }
    config.cmdline.bytes().position(|byte| byte == 0).map_or(Ok(()), |at| Err(BootError::CmdlineZero(at)))
}

/// The end of low RAM: the kernel grows upwards from its own end while it starts, and 32 bits must name the place.
fn place_initramfs(ram_bytes: u64, config: &BootConfig<'_>) -> Result<Option<Range<u64>>, BootError> {
    let Some(content) = config.initramfs else { return Ok(None) };
    let bytes = content.len();
    if bytes == 0 {
        return Err(BootError::InitramfsEmpty);
    }
    let floor = config.kernel.end().next_multiple_of(PAGE_BYTES);
    let room = low_ram_bytes(ram_bytes).saturating_sub(floor);
    let start = low_ram_bytes(ram_bytes).checked_sub(bytes).map(|start| start - start % PAGE_BYTES).filter(|start| *start >= floor);
    let start = start.ok_or(BootError::InitramfsTooLarge { bytes, room })?;
    Ok(Some(start..start + bytes))
}

/// Either side of a copy can fail; `copy` adds what was copied.
enum CopyError {
    Read(io::Error),
    Write(guest_memory::Error),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

fn copy(ram: &GuestRam, what: &'static str, content: &Content, offset: u64, address: u64, bytes: u64) -> Result<(), BootError> {
    let write = |done: u64, piece: &[u8]| write_nonzero(ram, address + done, piece).map_err(CopyError::Write);
    content.pieces(offset, bytes, write).map_err(|error| match error {
        CopyError::Read(source) => BootError::Read { what, source },
        CopyError::Write(source) => BootError::Write { what, source },
    })
}

/// Writes the runs of `bytes` between guest pages of zeros: a quarter of a Debian kernel is zeros.
fn write_nonzero(ram: &GuestRam, address: u64, bytes: &[u8]) -> Result<(), guest_memory::Error> {
    static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
    let (mut run, mut at) = (0, 0);
    while at < bytes.len() {
        let page_end = (at + (PAGE_BYTES - (address + at as u64) % PAGE_BYTES) as usize).min(bytes.len());
        if bytes[at..page_end] == ZEROS[..page_end - at] {
            write_run(ram, address + run as u64, &bytes[run..at])?;
            run = page_end;
        }
        at = page_end;
    }
    write_run(ram, address + run as u64, &bytes[run..])
}

/// Writes into the file behind a region where there is one: fresh pages of it are then filled without being cleared first, and
/// without a page fault for each.
fn write_run(ram: &GuestRam, address: u64, bytes: &[u8]) -> Result<(), guest_memory::Error> {
    let address = GuestAddress(address);
    let whole = ram.to_region_addr(address).filter(|(region, at)| region.len() - at.raw_value() >= bytes.len() as u64);
    match whole.and_then(|(region, at)| Some((region, at, region.file_offset()?))) {
        Some((region, at, file)) if !bytes.is_empty() => {
            file.file().write_all_at(bytes, file.start() + at.raw_value()).map_err(guest_memory::Error::IOError)?;
            region.bitmap().mark_dirty(at.raw_value() as usize, bytes.len());
            Ok(())
        }
        _ => ram.write_slice(bytes, address),
    }
}
