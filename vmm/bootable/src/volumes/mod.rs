//! The file systems of a disk: ext2 to ext4, FAT, XFS and btrfs are read, each by a library; what else there is is known by its first bytes and named.

use std::rc::Rc;

use crate::{
    NAMES_MAX, TEXT_BYTES_MAX,
    disk::{Disk, Window},
    partitions::{Partition, Table},
    text,
};

mod btrfs;
mod ext4;
mod fat;
mod links;
mod xfs;

/// Partitions that are looked into.
const VOLUMES_MAX: usize = 32;
/// Longest path that is followed.
const PATH_BYTES_MAX: usize = 4096;
/// The smallest block of ext4 and of XFS as people make it.
const SMALLEST_BLOCK_BYTES: usize = 1024;
/// What is known and not read: place, first bytes, and what to call it.
const NAMED: [(u64, &[u8], &str); 8] = [
    (0x1008, b"bcachefs", "bcachefs"),
    (512, b"LABELONE", "an LVM volume"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "a part of a RAID"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
    (3, b"NTFS    ", "NTFS"),
    (0x8001, b"CD001", "ISO 9660"),
    (4086, b"SWAPSPACE2", "swap space"),
];

/// A file system that can be read.
pub struct Volume {
    pub partition: Partition,
    disk: Rc<Disk>,
    known: Known,
}

/// What opening a file system told of it.
struct Known {
    /// As people call it.
    kind: &'static str,
    /// As `search --fs-uuid` of GRUB compares them.
    uuid: String,
    label: String,
    files: Box<dyn Files>,
}

/// The files of a file system, by absolute paths. Links are followed.
trait Files {
    /// A file, whole.
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError>;

    /// Whether there is a file that can be opened.
    fn has(&self, path: &str) -> bool;

    /// Up to [`NAMES_MAX`] names in a folder; none, where there is none.
    fn list(&self, path: &str) -> Vec<String>;
}

/// Why a file cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub enum FileError {
    Absent,
    /// Any other reason, as a clause.
    Unread(String),
}

/// All that can be read, and a clause on each that cannot.
pub fn open(disk: &Rc<Disk>, partitions: Vec<Partition>) -> (Vec<Volume>, Vec<String>) {
    let (mut volumes, mut notes) = (vec![], vec![]);
    for partition in partitions.into_iter().take(VOLUMES_MAX) {
        let place = match partition.table {
            Table::Whole => "the disk".to_owned(),
            Table::Mbr | Table::Gpt => format!("partition {}", partition.number),
        };
        match open_one(disk, partition) {
            Ok(Some(known)) => volumes.push(Volume { partition, disk: disk.clone(), known }),
            Ok(None) => {}
            Err(what) => notes.push(format!("{place} {what}")),
        }
    }
    (volumes, notes)
}

fn open_one(disk: &Rc<Disk>, partition: Partition) -> Result<Option<Known>, String> {
    let window = || Window::new(disk, partition.start, partition.bytes);
    let is_at = |at, magic: &[u8]| {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..magic.len()];
        window().read_at(at, bytes).is_ok() && bytes == magic
    };
    let named = |kind: &str, error: String| format!("holds {kind} that cannot be read: {error}");
    if is_at(0x438, &[0x53, 0xef]) {
        return ext4::open(window()).map(Some).map_err(|error| named("ext4", error));
    }
    if is_at(0, b"XFSB") {
        return xfs::open(window()).map(Some).map_err(|error| named("XFS", error));
    }
    if is_at(btrfs::MAGIC_AT, btrfs::MAGIC) {
        return btrfs::open(&window).map(Some).map_err(|error| named("btrfs", error));
    }
    if let Some((_, _, name)) = NAMED.iter().find(|(at, magic, _)| is_at(*at, magic)) {
        return Err(format!("holds {name}, which is not read"));
    }
    if !is_at(510, &[0x55, 0xaa]) || !(is_at(54, b"FAT") || is_at(82, b"FAT32")) {
        return Ok(None);
    }
    fat::open(window()).map(Some).map_err(|error| named("FAT", error))
}

impl Volume {
    /// As people call it.
    pub fn name(&self) -> String {
        match self.partition.table {
            Table::Whole => format!("the disk ({})", self.known.kind),
            Table::Mbr | Table::Gpt => format!("partition {} ({})", self.partition.number, self.known.kind),
        }
    }

    /// As GRUB calls it.
    pub fn grub_name(&self) -> String {
        match self.partition.table {
            Table::Whole => "hd0".to_owned(),
            Table::Mbr => format!("hd0,msdos{}", self.partition.number),
            Table::Gpt => format!("hd0,gpt{}", self.partition.number),
        }
    }

    /// As `search --fs-uuid` of GRUB compares it.
    pub fn uuid(&self) -> &str {
        &self.known.uuid
    }

    pub fn label(&self) -> &str {
        &self.known.label
    }

    /// A file, whole.
    pub fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        self.known.files.read(&clean(path)?, bytes_max)
    }

    /// A file that fits into a block, and where on the disk it lies, if that can be told and it may be written there.
    pub fn read_placed(&self, path: &str, bytes_max: u64) -> Result<(Vec<u8>, Option<u64>), FileError> {
        if self.known.kind == btrfs::KIND {
            // Its data has checksums: who writes it in place spoils it.
            return Ok((self.read(path, bytes_max)?, None));
        }
        // A file system that has read nothing yet: what it keeps of earlier reads would leave the file's own out.
        let (read, ranges) = self.disk.watch(|| match open_one(&self.disk, self.partition) {
            Ok(Some(fresh)) => fresh.files.read(&clean(path)?, bytes_max),
            _ => self.read(path, bytes_max),
        });
        let bytes = read?;
        let lies_at = |offset: u64| {
            let mut there = vec![0; bytes.len()];
            self.disk.read_at(offset, &mut there).is_ok() && there == bytes
        };
        if bytes.is_empty() {
            return Ok((bytes, None));
        }
        // Libraries read several blocks at a time, from the one that is wanted on: the last that begins so is it. One that came along with an earlier
        // block is it only if there is no other like it.
        let began = ranges.iter().rev().map(|range| range.start).find(|start| lies_at(*start));
        let inside = || {
            let all = ranges.iter().flat_map(|range| range.clone().step_by(SMALLEST_BLOCK_BYTES)).filter(|at| lies_at(*at));
            let mut places: Vec<u64> = all.collect();
            places.sort_unstable();
            places.dedup();
            if let [place] = places[..] { Some(place) } else { None }
        };
        let place = began.or_else(inside);
        Ok((bytes, place))
    }

    /// A file of words; none, where there is none or it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        self.read(path, TEXT_BYTES_MAX).ok().map(text)
    }

    /// Whether there is a file that can be opened.
    pub fn has(&self, path: &str) -> bool {
        clean(path).is_ok_and(|path| self.known.files.has(&path))
    }

    /// The names in a folder, in an order that is the same each time; none, where there is none. A folder of too many is read in part.
    pub fn list(&self, path: &str) -> Vec<String> {
        let mut names = clean(path).map_or(vec![], |path| self.known.files.list(&path));
        names.retain(|name| !matches!(name.as_str(), "." | ".."));
        names.sort();
        names
    }
}

/// Fills a buffer from a place in a file, and says how far.
type Reader<'a> = dyn FnMut(u64, &mut [u8]) -> Result<usize, FileError> + 'a;

/// Reads to the end, in pieces of `chunk_bytes`: what a file says of its size is not believed.
fn read_all(path: &str, bytes_max: u64, chunk_bytes: usize, read: &mut Reader<'_>) -> Result<Vec<u8>, FileError> {
    let mut all = vec![];
    let mut filled = 0;
    loop {
        if filled == all.len() {
            all.resize(filled + chunk_bytes, 0);
        }
        let count = read(filled as u64, &mut all[filled..])?;
        if count == 0 {
            all.truncate(filled);
            return Ok(all);
        }
        filled += count;
        if filled as u64 > bytes_max {
            return Err(FileError::Unread(format!("{path} is larger than {} KiB", bytes_max >> 10)));
        }
    }
}

/// Bytes of a UUID as they are written down.
fn uuid_of(bytes: [u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>| bytes[range].iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-")
}

/// An absolute path without doubled slashes.
fn clean(path: &str) -> Result<String, FileError> {
    if path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(FileError::Unread("a path is too long, or none".to_owned()));
    }
    Ok(path.split('/').filter(|part| !part.is_empty()).fold(String::new(), |whole, part| whole + "/" + part))
        .map(|path| if path.is_empty() { "/".to_owned() } else { path })
}
