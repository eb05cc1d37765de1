//! The file systems of a disk: ext2 to ext4 and FAT are read, by libraries; what else there is is known by its first bytes and named.

use std::{
    io::{self, Read},
    rc::Rc,
};

use ext4_view::{Ext4, Ext4Error};
use fatfs::{FileSystem, FsOptions};

use crate::{
    NAMES_MAX, TEXT_BYTES_MAX,
    disk::{Disk, Window},
    partitions::{Partition, Table},
    text,
};

/// Partitions that are looked into.
const VOLUMES_MAX: usize = 32;
/// Longest path that is followed.
const PATH_BYTES_MAX: usize = 4096;
const CHUNK_BYTES: usize = 256 << 10;
/// Of ext4.
const SMALLEST_BLOCK_BYTES: usize = 1024;
/// What is known and not read: place, first bytes, and what to call it.
const NAMED: [(u64, &[u8], &str); 9] = [
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0x1008, b"bcachefs", "bcachefs"),
    (512, b"LABELONE", "an LVM volume"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
    (3, b"NTFS    ", "NTFS"),
    (0x8001, b"CD001", "ISO 9660"),
    (4086, b"SWAPSPACE2", "swap space"),
];

/// A file system that can be read.
pub struct Volume {
    pub partition: Partition,
    kind: &'static str,
    /// As `search --fs-uuid` of GRUB compares them.
    pub uuid: String,
    pub label: String,
    disk: Rc<Disk>,
    files: Files,
}

enum Files {
    Ext4(Ext4),
    Fat(Box<FileSystem<Window>>),
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
            Ok(Some(volume)) => volumes.push(volume),
            Ok(None) => {}
            Err(what) => notes.push(format!("{place} {what}")),
        }
    }
    (volumes, notes)
}

fn open_one(disk: &Rc<Disk>, partition: Partition) -> Result<Option<Volume>, String> {
    let window = || Window::new(disk, partition.start, partition.bytes);
    let is_at = |at, magic: &[u8]| {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..magic.len()];
        window().read_at(at, bytes).is_ok() && bytes == magic
    };
    if is_at(0x438, &[0x53, 0xef]) {
        let fs = Ext4::load(Box::new(window())).map_err(|error| format!("holds ext4 that cannot be read: {error}"))?;
        let (uuid, label) = (fs.uuid().to_string(), fs.label().display().to_string());
        return Ok(Some(Volume { partition, kind: "ext4", uuid, label, disk: disk.clone(), files: Files::Ext4(fs) }));
    }
    if let Some((_, _, name)) = NAMED.iter().find(|(at, magic, _)| is_at(*at, magic)) {
        return Err(format!("holds {name}, which is not read"));
    }
    if !is_at(510, &[0x55, 0xaa]) || !(is_at(54, b"FAT") || is_at(82, b"FAT32")) {
        return Ok(None);
    }
    let fs = FileSystem::new(window(), FsOptions::new()).map_err(|error| format!("holds FAT that cannot be read: {error}"))?;
    let (id, label) = (fs.volume_id(), fs.volume_label());
    let uuid = format!("{:04X}-{:04X}", id >> 16, id & 0xffff);
    Ok(Some(Volume { partition, kind: "FAT", uuid, label, disk: disk.clone(), files: Files::Fat(Box::new(fs)) }))
}

impl Volume {
    /// As people call it.
    pub fn name(&self) -> String {
        match self.partition.table {
            Table::Whole => format!("the disk ({})", self.kind),
            Table::Mbr | Table::Gpt => format!("partition {} ({})", self.partition.number, self.kind),
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

    /// A file, whole.
    pub fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        let path = clean(path)?;
        match &self.files {
            Files::Ext4(fs) => {
                let mut file = fs.open(path.as_str()).map_err(of_ext4)?;
                let mut read = |buffer: &mut [u8]| file.read_bytes(buffer).map_err(of_ext4);
                read_all(&path, bytes_max, &mut read)
            }
            Files::Fat(fs) => {
                let mut file = fs.root_dir().open_file(path.trim_start_matches('/')).map_err(|error| of_io(&error))?;
                let mut read = |buffer: &mut [u8]| file.read(buffer).map_err(|error| of_io(&error));
                read_all(&path, bytes_max, &mut read)
            }
        }
    }

    /// A file that fits into a block, and where on the disk it lies, if that can be told.
    pub fn read_placed(&self, path: &str, bytes_max: u64) -> Result<(Vec<u8>, Option<u64>), FileError> {
        // A file system that has read nothing yet: what it keeps of earlier reads would leave the file's own out.
        let (read, ranges) = self.disk.watch(|| match open_one(&self.disk, self.partition) {
            Ok(Some(fresh)) => fresh.read(path, bytes_max),
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
        let Ok(path) = clean(path) else { return false };
        match &self.files {
            Files::Ext4(fs) => fs.open(path.as_str()).is_ok(),
            Files::Fat(fs) => fs.root_dir().open_file(path.trim_start_matches('/')).is_ok(),
        }
    }

    /// The names in a folder, in an order that is the same each time; none, where there is none. A folder of too many is read in part.
    pub fn list(&self, path: &str) -> Vec<String> {
        let Ok(path) = clean(path) else { return vec![] };
        let mut names: Vec<String> = match &self.files {
            Files::Ext4(fs) => {
                let Ok(entries) = fs.read_dir(path.as_str()) else { return vec![] };
                let entries = entries.take(NAMES_MAX).map_while(Result::ok);
                entries.filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned)).collect()
            }
            Files::Fat(fs) => {
                let root = fs.root_dir();
                let folder = match path.trim_matches('/') {
                    "" => root,
                    inner => match root.open_dir(inner) {
                        Ok(folder) => folder,
                        Err(_) => return vec![],
                    },
                };
                folder.iter().take(NAMES_MAX).map_while(Result::ok).map(|entry| entry.file_name()).collect()
            }
        };
        names.retain(|name| !matches!(name.as_str(), "." | ".."));
        names.sort();
        names
    }
}

/// Reads to the end, in pieces: what a file says of its size is not believed.
fn read_all(path: &str, bytes_max: u64, read: &mut dyn FnMut(&mut [u8]) -> Result<usize, FileError>) -> Result<Vec<u8>, FileError> {
    let mut all = vec![];
    let mut filled = 0;
    loop {
        if filled == all.len() {
            all.resize(filled + CHUNK_BYTES, 0);
        }
        let count = read(&mut all[filled..])?;
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

/// An absolute path without doubled slashes.
fn clean(path: &str) -> Result<String, FileError> {
    if path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(FileError::Unread("a path is too long, or none".to_owned()));
    }
    Ok(path.split('/').filter(|part| !part.is_empty()).fold(String::new(), |whole, part| whole + "/" + part))
        .map(|path| if path.is_empty() { "/".to_owned() } else { path })
}

fn of_ext4(error: Ext4Error) -> FileError {
    match error {
        Ext4Error::NotFound | Ext4Error::NotADirectory => FileError::Absent,
        other => FileError::Unread(other.to_string()),
    }
}

fn of_io(error: &io::Error) -> FileError {
    match error.kind() {
        io::ErrorKind::NotFound => FileError::Absent,
        _ => FileError::Unread(error.to_string()),
    }
}
