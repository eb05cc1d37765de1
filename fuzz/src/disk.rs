//! A disk image that somebody gives, raw or qcow2, and a guest that then works with it.
//!
//! ```text
//! input = flags:u8 length:u32 count:u8 access*count piece*       flags: 1 read only, 2 the other choice about a backing image
//! access = kind:u8 offset:u32 bytes:u16
//! piece = offset:u32 bytes:(length:u16 bytes)
//! file = pieces where they belong, holes elsewhere, as long as `length` says, up to 64 MiB
//! ```

use std::{fs::File, os::unix::fs::FileExt as _};

use rebec_devices::disk::{BackingName, Disk, ImageFormat};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::input::Input;

/// Above every table that the seeds have, below what makes a run slow.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Largest disk whose changes are recorded.
const TRACKED_BYTES_MAX: u64 = 1 << 38;
/// Extents looked at; a walk that does not advance is found by then.
const EXTENTS_MAX: usize = 64;

struct Access {
    kind: u8,
    offset: u64,
    bytes: u64,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (flags, length, count) = (input.u8(), u64::from(input.u32()), input.u8() % 16);
    let accesses: Vec<Access> =
        (0..count).map(|_| Access { kind: input.u8(), offset: input.u32().into(), bytes: input.u16().into() }).collect();
    let file = memory_file();
    file.set_len(length.min(FILE_BYTES_MAX)).expect("a memory file grows");
    while !input.is_empty() {
        let offset = u64::from(input.u32()) % FILE_BYTES_MAX;
        file.write_all_at(input.piece(), offset).expect("memory for a file");
    }

    let named = Disk::backing_name("fuzz", &file);
    let backing = match &named {
        Ok(Some(BackingName { name, .. })) => {
            assert!(!name.is_empty() && name.len() <= 1023);
            if flags & 2 == 0 { vec![backing_file()] } else { Vec::new() }
        }
        _ if flags & 2 != 0 => vec![backing_file()],
        _ => Vec::new(),
    };
    match Disk::open("fuzz", file, backing, flags & 1 != 0) {
        Ok(disk) => {
            assert!(named.is_ok());
            use_disk(&disk, &accesses);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn use_disk(disk: &Disk, accesses: &[Access]) {
    let bytes = disk.size_bytes();
    assert!(bytes > 0 && bytes.is_multiple_of(512));
    let mut buffer = vec![0; 1 << 16];
    // One bit for each 4 KiB: a disk of the largest size costs 256 MiB, twice while they are taken, by its format and not by a mistake.
    let tracked = bytes <= TRACKED_BYTES_MAX;
    if tracked {
        disk.track_start();
    }
    for access in accesses {
        // Most within the disk, some across its end.
        let offset = if access.kind & 0x80 == 0 { access.offset % bytes } else { bytes.saturating_sub(access.offset & 0xffff) };
        let part = &mut buffer[..access.bytes as usize];
        let inside = offset + access.bytes <= bytes;
        match access.kind % 6 {
            0 => assert!(disk.read_at(offset, part).is_err() || inside),
            1 => {
                part.fill(access.kind);
                let written = disk.write_at(offset, part);
                assert!(written.is_err() || inside && !disk.read_only());
            }
            2 => assert!(disk.zero_at(offset, access.bytes).is_err() || inside && !disk.read_only()),
            3 => assert!(disk.discard_at(offset, access.bytes).is_err() || inside && !disk.read_only()),
            4 => walk(disk, offset),
            _ => drop(disk.flush()),
        }
    }
    walk(disk, 0);
    assert_eq!(disk.track_take().size(), if tracked { bytes.div_ceil(4096) } else { 0 });
}

fn walk(disk: &Disk, mut offset: u64) {
    for _ in 0..EXTENTS_MAX {
        match disk.extent_at(offset) {
            Ok(Some(extent)) => {
                assert!(extent.range.start == offset && extent.range.end > offset && extent.range.end <= disk.size_bytes(), "{extent:?}");
                offset = extent.range.end;
            }
            Ok(None) => return assert!(offset >= disk.size_bytes()),
            Err(_) => return,
        }
    }
}

fn memory_file() -> File {
    memfd_create("fuzz-disk", MemfdFlags::CLOEXEC).expect("memory for a file").into()
}

fn backing_file() -> File {
    let file = memory_file();
    file.set_len(1 << 20).expect("a memory file grows");
    file
}

/// A raw disk; qcow2 images, empty, written to, and over a backing image.
pub fn seeds() -> Vec<Vec<u8>> {
    let accesses =
        [(1, 0, 4096), (0, 0, 4096), (1, 70_000, 300), (3, 65_536, 4096), (2, 4096, 512), (4, 0, 0), (5, 0, 0), (0, 8192, 65535)];
    let accesses: Vec<u8> = accesses
        .iter()
        .flat_map(|&(kind, offset, bytes): &(u8, u32, u16)| [&[kind][..], &offset.to_le_bytes(), &bytes.to_le_bytes()].concat())
        .collect();
    let seed = |flags: u8, length: u32, file: &[u8]| [&[flags][..], &length.to_le_bytes(), &[8], &accesses, file].concat();
    let backing = BackingName { name: "base.raw".to_owned(), format: Some(ImageFormat::Raw) };
    let images = [qcow2(None, 0), qcow2(None, 3), qcow2(Some(&backing), 0)];
    let mut seeds = vec![seed(0, 1 << 20, &pieces(b"raw")), seed(1, 1 << 20, &pieces(b"raw"))];
    seeds.extend(images.iter().map(|image| seed(0, image.len() as u32, &pieces(image))));
    seeds
}

/// What is not zero in a file: images are mostly holes.
fn pieces(file: &[u8]) -> Vec<u8> {
    let mut pieces = Vec::new();
    let is_zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
    for (at, block) in file.chunks(64).enumerate().filter(|(_, block)| !is_zero(block)) {
        pieces.extend_from_slice(&(at as u32 * 64).to_le_bytes());
        pieces.extend_from_slice(&(block.len() as u16).to_le_bytes());
        pieces.extend_from_slice(block);
    }
    pieces
}

fn qcow2(backing: Option<&BackingName>, writes: u64) -> Vec<u8> {
    let mut file = memory_file();
    Disk::create_qcow2("seed", &file, 1 << 20, backing).expect("a seed is made");
    let disk = Disk::open("seed", file.try_clone().expect("a descriptor"), backing.map(|_| backing_file()).into_iter().collect(), false);
    let disk = disk.expect("a seed opens");
    for number in 0..writes {
        disk.write_at(number * 70_000, &[7; 512]).expect("a seed is written");
    }
    disk.flush().expect("a seed is written");
    drop(disk);
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).expect("a memory file");
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("a memory file");
    bytes
}
