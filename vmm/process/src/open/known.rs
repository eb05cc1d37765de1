//! What an image starts, read and unpacked before: the kernel, and how its disk was found to start it.
//!
//! ```text
//! ELF │ initial RAM disks │ words (JSON) │ bytes of these two and of the words: u64 each │ "RBSTART1" │ BLAKE3 of the packed kernel (32) │ "RBKERNL1"
//!       └──────── left out where a start depends on more than the image's bytes ──────────────────┘
//! ```
//! `rebec-vmm unpack --disk` makes it of an image, sealed, and nothing else writes it: no VM can change what another starts from. It is used twice over:
//! a disk that stands on the image and holds nothing of its own where the reading looked starts what the image starts, and is not read at all; any
//! other is read, and its kernel is not unpacked again if it is this one, byte for byte.
//!
//! That a disk may be longer than its image changes nothing: the reading compares places with the length, and nothing else; it was done for the image's own
//! length and for the greatest, and what comes out alike at both comes out so in between.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use rebec_boot::Content;
use rebec_bootable::Start;
use rebec_devices::disk::Disk;
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 8] = *b"RBKERNL1";
const START_MAGIC: [u8; 8] = *b"RBSTART1";
const END_BYTES: usize = blake3::OUT_LEN + MAGIC.len();
const START_END_BYTES: usize = 3 * size_of::<u64>() + START_MAGIC.len();
/// Ranges and a command line: an image's are at a few kilobytes.
const WORDS_BYTES_MAX: u64 = 1 << 20;
/// How much of a disk's start tells one image from another: its table of partitions has a number of its own.
const MARK_BYTES: u64 = 16 << 10;

/// One that is at hand.
pub struct KnownKernel {
    /// The ELF, with its end.
    pub file: File,
    packed: blake3::Hash,
    start: Option<KnownStart>,
}

/// A start that was read before.
struct KnownStart {
    words: Words,
    initramfs: Range<u64>,
}

/// What is not the kernel's bytes, nor the initial RAM disk's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Words {
    cmdline: String,
    from: String,
    /// Of the image. A disk on it is as long, or longer.
    bytes: u64,
    /// Of the image's first bytes.
    mark: [u8; 32],
    /// All that was read, start and end, in order.
    read: Vec<(u64, u64)>,
}

/// A start that needs no reading.
pub struct Remembered {
    pub initramfs: Option<Content>,
    pub cmdline: String,
    pub from: String,
}

impl KnownKernel {
    /// Reads what it was unpacked from.
    pub fn open(file: File) -> io::Result<Self> {
        let mut end = [0; END_BYTES];
        let at = file.metadata()?.len().checked_sub(END_BYTES as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        file.read_exact_at(&mut end, at)?;
        let (digest, magic) = end.split_at(blake3::OUT_LEN);
        if magic != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not what `rebec-vmm unpack --disk` writes"));
        }
        let packed = blake3::Hash::from_slice(digest).map_err(|_| io::ErrorKind::InvalidData)?;
        let start = KnownStart::read(&file, at)?;
        Ok(Self { file, packed, start })
    }

    /// What follows the ELF of a kernel that was packed so.
    pub fn end(packed: &[u8]) -> [u8; END_BYTES] {
        let mut end = [0; END_BYTES];
        end[..blake3::OUT_LEN].copy_from_slice(blake3::hash(packed).as_bytes());
        end[blake3::OUT_LEN..].copy_from_slice(&MAGIC);
        end
    }

    /// What stands between the ELF and its end: how a disk of so many bytes, read at these ranges, was found to start it.
    pub fn middle(disk: &Disk, start: &Start, elf_bytes: u64, read: &[Range<u64>]) -> io::Result<Vec<u8>> {
        let (cmdline, from, bytes) = (start.cmdline.clone(), start.from.clone(), disk.size_bytes());
        let read = read.iter().map(|range| (range.start, range.end)).collect();
        let words = serde_json::to_vec(&Words { cmdline, from, bytes, mark: mark(disk)?, read })?;
        if words.len() as u64 > WORDS_BYTES_MAX {
            return Err(io::Error::other("it lies in too many pieces"));
        }
        let initramfs = start.initramfs.as_deref().unwrap_or_default();
        let lengths = [elf_bytes, initramfs.len() as u64, words.len() as u64].map(u64::to_le_bytes).concat();
        Ok([initramfs, &words, &lengths, &START_MAGIC].concat())
    }

    /// Whether it is this one, unpacked.
    pub fn is_of(&self, packed: &[u8]) -> bool {
        blake3::hash(packed) == self.packed
    }

    /// How this disk starts, if it stands on the image and holds nothing of its own of what was read there.
    pub fn start_of(&self, disk: &Disk) -> io::Result<Option<Remembered>> {
        let Some(KnownStart { words, initramfs }) = &self.start else { return Ok(None) };
        if disk.size_bytes() < words.bytes || !shows_through(disk, &words.read)? || mark(disk)? != words.mark {
            return Ok(None);
        }
        let initramfs = Content::from_range(&self.file, initramfs.clone())?;
        let initramfs = Some(initramfs).filter(|content| !content.is_empty());
        Ok(Some(Remembered { initramfs, cmdline: words.cmdline.clone(), from: words.from.clone() }))
    }
}

impl KnownStart {
    /// What ends there, if it is such a one.
    fn read(file: &File, end: u64) -> io::Result<Option<Self>> {
        let mut last = [0; START_END_BYTES];
        let Some(at) = end.checked_sub(START_END_BYTES as u64) else { return Ok(None) };
        file.read_exact_at(&mut last, at)?;
        let (lengths, magic) = last.split_at(START_END_BYTES - START_MAGIC.len());
        if magic != START_MAGIC {
            return Ok(None);
        }
        let mut lengths =
            lengths.chunks_exact(size_of::<u64>()).map(|bytes| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)));
        let mut next = || lengths.next().unwrap_or_default();
        let (elf, initramfs, words) = (next(), next(), next());
        let adds_up = elf.checked_add(initramfs).and_then(|sum| sum.checked_add(words)) == Some(at);
        if !adds_up || words > WORDS_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its parts do not add up to its length"));
        }
        let mut text = vec![0; words as usize];
        file.read_exact_at(&mut text, at - words)?;
        Ok(Some(Self { words: serde_json::from_slice(&text)?, initramfs: elf..elf + initramfs }))
    }
}

/// Whether a disk shows its backing image at all these ranges.
fn shows_through(disk: &Disk, ranges: &[(u64, u64)]) -> io::Result<bool> {
    for (start, end) in ranges {
        let mut at = *start;
        while at < *end {
            match disk.extent_at(at)? {
                Some(extent) if extent.is_backing => at = extent.range.end.max(at + 1),
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}

fn mark(disk: &Disk) -> io::Result<[u8; 32]> {
    let mut start = vec![0; MARK_BYTES.min(disk.size_bytes()) as usize];
    disk.read_at(0, &mut start)?;
    Ok(*blake3::hash(&start).as_bytes())
}

#[cfg(test)]
mod tests {
    use rebec_devices::disk::{BackingName, ImageFormat};

    use super::*;

    const DISK_BYTES: u64 = 1 << 20;

    #[test]
    fn a_kernel_is_known_by_every_byte_that_it_was_unpacked_from() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"the elf", 0).unwrap();
        assert!(KnownKernel::open(file.try_clone().unwrap()).is_err());
        file.write_all_at(&KnownKernel::end(b"packed"), 7).unwrap();
        let known = KnownKernel::open(file.try_clone().unwrap()).unwrap();
        assert!(known.is_of(b"packed") && !known.is_of(b"Packed") && !known.is_of(b"packed "));
        file.write_all_at(b"X", 7 + END_BYTES as u64 - 1).unwrap();
        assert!(KnownKernel::open(file).is_err());
    }

    /// An image of ones, and layers on it.
    fn base(byte: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![byte; DISK_BYTES as usize], 0).unwrap();
        file
    }

    fn layer(base: &File, bytes: u64) -> Disk {
        let file = tempfile::tempfile().unwrap();
        let name = BackingName { name: "base".to_owned(), format: Some(ImageFormat::Raw) };
        Disk::create_qcow2("layer", &file, bytes, Some(&name)).unwrap();
        Disk::open("layer", file, vec![base.try_clone().unwrap()], false).unwrap()
    }

    #[test]
    fn a_start_is_remembered_while_nothing_of_what_was_read_is_the_disks_own() {
        let base = base(1);
        let image = Disk::open("base", base.try_clone().unwrap(), vec![], true).unwrap();
        let initramfs = Some(b"initial".to_vec());
        let start = Start { kernel: vec![], initramfs, cmdline: "ro".to_owned(), from: "here".to_owned(), forget: None };
        let read = [0..512, 300_000..400_000];
        let middle = KnownKernel::middle(&image, &start, 7, &read).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b"the elf", &middle[..], &KnownKernel::end(b"packed")].concat(), 0).unwrap();
        let known = KnownKernel::open(file.try_clone().unwrap()).unwrap();
        let is_known = |disk: &Disk| known.start_of(disk).unwrap();

        let fresh = layer(&base, DISK_BYTES);
        let remembered = is_known(&fresh).unwrap();
        assert_eq!((remembered.cmdline.as_str(), remembered.from.as_str()), ("ro", "here"));
        assert_eq!(remembered.initramfs.unwrap().len(), 7);
        // What lies beside it may be the disk's own, and the disk longer.
        fresh.write_at(500_000, b"x").unwrap();
        assert!(is_known(&fresh).is_some());
        assert!(is_known(&layer(&base, 2 * DISK_BYTES)).is_some());
        for at in [0, 511, 300_000, 399_999, 350_000] {
            let disk = layer(&base, DISK_BYTES);
            disk.write_at(at, b"x").unwrap();
            assert!(is_known(&disk).is_none(), "{at}");
        }
        // Zeros are the disk's own too, and so is what was given back.
        for change in [Disk::zero_at, Disk::discard_at] {
            let disk = layer(&base, DISK_BYTES);
            change(&disk, 262_144, 131_072).unwrap();
            assert!(is_known(&disk).is_none());
        }
        // Another image, a shorter disk, one that stands alone.
        assert!(is_known(&layer(&self::base(2), DISK_BYTES)).is_none());
        assert!(is_known(&layer(&base, DISK_BYTES / 2)).is_none());
        assert!(is_known(&image).is_none());

        // Lengths that lie.
        let lengths_at = 7 + middle.len() as u64 - START_END_BYTES as u64;
        for (part, value) in [(0, 8), (1, u64::MAX), (2, u64::MAX - 6)] {
            let mut spoilt = [0; START_END_BYTES];
            file.read_exact_at(&mut spoilt, lengths_at).unwrap();
            let sound = spoilt;
            spoilt[part * 8..part * 8 + 8].copy_from_slice(&u64::to_le_bytes(value));
            file.write_all_at(&spoilt, lengths_at).unwrap();
            assert!(KnownKernel::open(file.try_clone().unwrap()).is_err());
            file.write_all_at(&sound, lengths_at).unwrap();
        }
    }
}
