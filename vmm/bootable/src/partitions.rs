//! Where file systems lie on a disk.
//!
//! ```text
//! MBR   446 four entries of 16 bytes: +4 type, +8 first sector (u32), +12 sectors (u32); type 5, f: a chain of further tables; 510 55 aa
//! GPT   sector 1 "EFI PART", 12 its length, 16 its CRC-32, 72 first sector of entries, 80 how many, 84 size of one, 88 their CRC-32
//!       entry: 0 type, 16 own GUID, 32 first sector, 40 last sector, 56 name in UTF-16        (UEFI 2.10 §5.3; all little endian)
//! ```

use std::io;

use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use crate::disk::Disk;

const SECTOR_BYTES: u64 = 512;
/// Disks of 4 KiB sectors have their table there.
const LARGE_SECTOR_BYTES: u64 = 4096;
/// The specification asks for 128 at least, and nobody writes more.
const GPT_ENTRIES_MAX: u32 = 1024;
/// Tables in a chain of extended partitions.
const EXTENDED_MAX: usize = 64;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
const PROTECTIVE: u8 = 0xee;
const ESP: [u8; 16] = [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

/// Which table says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// None: the disk is one file system.
    Whole,
    Mbr,
    Gpt,
}

/// A range of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    pub table: Table,
    /// From 1; 0 for the whole disk.
    pub number: u32,
    pub start: u64,
    pub bytes: u64,
    /// The EFI system partition.
    pub is_esp: bool,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct MbrEntry {
    _boot: [u8; 4],
    kind: u8,
    _end: [u8; 3],
    first: U32,
    sectors: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptHeader {
    magic: [u8; 8],
    _revision: U32,
    bytes: U32,
    crc: U32,
    _reserved: U32,
    _own: U64,
    _other: U64,
    _usable: [U64; 2],
    _guid: [u8; 16],
    entries_at: U64,
    entries: U32,
    entry_bytes: U32,
    entries_crc: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GptEntry {
    kind: [u8; 16],
    _guid: [u8; 16],
    first: U64,
    last: U64,
}

/// All of them, as the disk's own table says; the whole disk, where it has none. What lies outside of the disk is left out.
pub fn find(disk: &Disk) -> io::Result<Vec<Partition>> {
    let whole = Partition { table: Table::Whole, number: 0, start: 0, bytes: disk.bytes(), is_esp: false };
    if disk.bytes() < SECTOR_BYTES {
        return Ok(vec![]);
    }
    for sector_bytes in [SECTOR_BYTES, LARGE_SECTOR_BYTES] {
        if let Some(found) = gpt(disk, sector_bytes)? {
            return Ok(found);
        }
    }
    let found = mbr(disk)?;
    Ok(if found.is_empty() { vec![whole] } else { found })
}

/// The first table, or its copy at the disk's end.
fn gpt(disk: &Disk, sector_bytes: u64) -> io::Result<Option<Vec<Partition>>> {
    let last = (disk.bytes() / sector_bytes).saturating_sub(1);
    for sector in [1, last] {
        if let Some(found) = gpt_at(disk, sector_bytes, sector)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn gpt_at(disk: &Disk, sector_bytes: u64, sector: u64) -> io::Result<Option<Vec<Partition>>> {
    let at = sector.saturating_mul(sector_bytes);
    if at.saturating_add(SECTOR_BYTES) > disk.bytes() {
        return Ok(None);
    }
    let mut bytes = [0; SECTOR_BYTES as usize];
    disk.read_at(at, &mut bytes)?;
    let Ok((header, _)) = GptHeader::ref_from_prefix(&bytes) else { return Ok(None) };
    let (length, entries, entry_bytes) = (header.bytes.get() as usize, header.entries.get(), header.entry_bytes.get());
    let is_sound = header.magic == *b"EFI PART"
        && (size_of::<GptHeader>()..=bytes.len()).contains(&length)
        && (1..=GPT_ENTRIES_MAX).contains(&entries)
        && entry_bytes.is_power_of_two()
        && (128..=1024).contains(&entry_bytes);
    if !is_sound {
        return Ok(None);
    }
    let mut summed = bytes;
    summed[16..20].fill(0);
    let Some(table_at) = header.entries_at.get().checked_mul(sector_bytes) else { return Ok(None) };
    let mut table = vec![0; entries as usize * entry_bytes as usize];
    let is_inside = table_at.checked_add(table.len() as u64).is_some_and(|end| end <= disk.bytes());
    if crc32fast::hash(&summed[..length]) != header.crc.get() || !is_inside {
        return Ok(None);
    }
    disk.read_at(table_at, &mut table)?;
    if crc32fast::hash(&table) != header.entries_crc.get() {
        return Ok(None);
    }
    let mut found = vec![];
    for (number, bytes) in (1..).zip(table.chunks_exact(entry_bytes as usize)) {
        let Ok((entry, _)) = GptEntry::ref_from_prefix(bytes) else { continue };
        if entry.kind == [0; 16] {
            continue;
        }
        let range = range(disk, entry.first.get(), entry.last.get().checked_add(1), sector_bytes);
        found.extend(range.map(|(start, bytes)| Partition { table: Table::Gpt, number, start, bytes, is_esp: entry.kind == ESP }));
    }
    Ok(Some(found))
}

fn mbr(disk: &Disk) -> io::Result<Vec<Partition>> {
    let mut found = vec![];
    let Some(primary) = mbr_table(disk, 0)? else { return Ok(found) };
    for (number, (kind, first, sectors)) in (1..).zip(primary) {
        if EXTENDED.contains(&kind) {
            extended(disk, first, &mut found)?;
        } else if kind != 0 && kind != PROTECTIVE {
            add_mbr(disk, number, kind, first, sectors, &mut found);
        }
    }
    found.sort_by_key(|partition| partition.number);
    Ok(found)
}

/// Each table of the chain has one partition, counted from the table, and the way to the next, counted from the first.
fn extended(disk: &Disk, start: u64, found: &mut Vec<Partition>) -> io::Result<()> {
    let mut at = start;
    for number in (5..).take(EXTENDED_MAX) {
        let Some(table) = mbr_table(disk, at)? else { return Ok(()) };
        let [(kind, first, sectors), (next_kind, next, _), ..] = table;
        if kind != 0 {
            add_mbr(disk, number, kind, at.saturating_add(first), sectors, found);
        }
        if !EXTENDED.contains(&next_kind) || next == 0 {
            return Ok(());
        }
        at = start.saturating_add(next);
    }
    Ok(())
}

fn add_mbr(disk: &Disk, number: u32, kind: u8, first: u64, sectors: u64, found: &mut Vec<Partition>) {
    let range = range(disk, first, first.checked_add(sectors), SECTOR_BYTES);
    found.extend(range.map(|(start, bytes)| Partition { table: Table::Mbr, number, start, bytes, is_esp: kind == 0xef }));
}

/// Type, first sector and sectors of the four entries.
fn mbr_table(disk: &Disk, sector: u64) -> io::Result<Option<[(u8, u64, u64); 4]>> {
    let mut bytes = [0; SECTOR_BYTES as usize];
    let Some(at) = sector.checked_mul(SECTOR_BYTES).filter(|at| at.saturating_add(SECTOR_BYTES) <= disk.bytes()) else { return Ok(None) };
    disk.read_at(at, &mut bytes)?;
    if bytes[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let Ok((entries, _)) = <[MbrEntry; 4]>::ref_from_prefix(&bytes[446..]) else { return Ok(None) };
    Ok(Some(entries.each_ref().map(|entry| (entry.kind, entry.first.get().into(), entry.sectors.get().into()))))
}

/// Where a partition lies, in bytes; one that reaches past the end is cut there: a disk may be a cut copy of a larger one.
fn range(disk: &Disk, first: u64, end: Option<u64>, sector_bytes: u64) -> Option<(u64, u64)> {
    let start = first.checked_mul(sector_bytes)?;
    let end = end?.checked_mul(sector_bytes)?.min(disk.bytes());
    (first > 0 && start < end).then(|| (start, end - start))
}
