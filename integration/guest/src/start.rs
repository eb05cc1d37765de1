//! What the VMM left for the guest: the PVH start information, its memory map and its command line.
//!
//! The structures are those of Xen's `hvm/start_info.h`. They lie below the image, in memory that is never filled.

use core::slice;

const MAGIC: u32 = 0x336e_c578;
const MEMMAP_RAM: u32 = 1;
/// Longest command line that is read.
const CMDLINE_BYTES_MAX: usize = 4096;
/// Most pieces of memory that are used.
pub const AREAS_MAX: usize = 4;
/// Where the page tables end.
const MAPPED_BYTES: u64 = 32 << 30;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    nr_modules: u32,
    modlist: u64,
    cmdline: u64,
    rsdp: u64,
    memmap: u64,
    memmap_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemmapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// A piece of memory that is the guest's to use.
#[derive(Clone, Copy, Default)]
pub struct Area {
    /// First address.
    pub start: u64,
    /// After the last address.
    pub end: u64,
}

/// What the guest starts from.
pub struct Start {
    /// The command line.
    pub cmdline: &'static str,
    /// Usable memory above the image, in 2 MiB units at its start.
    pub areas: [Area; AREAS_MAX],
}

/// Reads the start information at the address that PVH passed.
///
/// # Safety
/// `address` is what the VMM put in ebx, and is read before any memory is filled.
pub unsafe fn read(address: u64, image_end: u64) -> Result<Start, &'static str> {
    if address == 0 {
        return Err("start_info is absent");
    }
    // SAFETY: the caller promises that the VMM's structure is there; all its fields are plain numbers.
    let info = unsafe { &*(address as *const StartInfo) };
    if info.magic != MAGIC {
        return Err("start_info has no magic number");
    }
    if info.version == 0 || info.memmap == 0 {
        return Err("start_info has no memory map");
    }
    // SAFETY: the VMM's memory map has as many entries as it says; they are plain numbers.
    let entries = unsafe { slice::from_raw_parts(info.memmap as *const MemmapEntry, info.memmap_entries as usize) };
    let mut areas = [Area::default(); AREAS_MAX];
    let mut count = 0;
    for entry in entries.iter().filter(|entry| entry.kind == MEMMAP_RAM) {
        let start = entry.address.max(image_end).next_multiple_of(2 << 20);
        let end = (entry.address + entry.size).min(MAPPED_BYTES) & !4095;
        if start < end && count < AREAS_MAX {
            areas[count] = Area { start, end };
            count += 1;
        }
    }
    if info.nr_modules > 0 {
        return Err("an initramfs was given: the bench guest takes none");
    }
    Ok(Start { cmdline: cmdline(info.cmdline)?, areas })
}

fn cmdline(address: u64) -> Result<&'static str, &'static str> {
    if address == 0 {
        return Ok("");
    }
    // SAFETY: the command line lies in low memory, which is mapped at least this far and never filled.
    let bytes = unsafe { slice::from_raw_parts(address as *const u8, CMDLINE_BYTES_MAX) };
    let end = bytes.iter().position(|byte| *byte == 0).ok_or("the command line is too long")?;
    core::str::from_utf8(&bytes[..end]).map_err(|_| "the command line is not UTF-8")
}
