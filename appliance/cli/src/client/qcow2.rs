//! A qcow2 image whose clusters are packed by zstd, unpacked on its way to the agent: VMMs read raw images and qcow2 with zlib. What else is special about an
//! image is left to the judgement at its import, which has a remedy for each.
//!
//! ```text
//! big endian:  0 "QFI\xfb"  4 version  8 backing name (8)  20 cluster bits  24 virtual size (8)  32 encryption  36 L1 entries  40 L1 offset (8)
//!              72 incompatible features (8)   100 header length   104 compression type: 0 zlib, 1 zstd
//! L1 entry  ──► L2 table of one cluster       L2 entry  0 | offset, or bit 0: zeros | bit 62: packed: offset and 512-byte sectors
//! ```
//! (docs/interop/qcow2.txt of QEMU.) Bytes from outside: tables have limits, whatever they say is looked at before it is read, and what comes out is as long
//! as the header says.

use std::io::{self, Read};

/// Bytes of a header, as far as it is looked at.
pub const HEADER_BYTES: usize = 105;
const MAGIC: &[u8] = b"QFI\xfb";
const ZSTD: u8 = 1;
/// An image that was not closed well, which is read as it is, and one whose packed clusters are not of the usual kind.
const FEATURES: u64 = 1 << 0 | 1 << 3;
const L1_ENTRIES_MAX: u32 = 4 << 20;
/// The largest disk that VMMs take.
const BYTES_MAX: u64 = 8 << 40;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const PACKED: u64 = 1 << 62;
const ZEROS: u64 = 1;

/// What the image holds, from its first byte to its last. `F` reads the file at a place, as much as there is.
pub struct Unpacked<F> {
    read_at: F,
    cluster_bits: u32,
    left: u64,
    l1: Vec<u8>,
    l2: Vec<u8>,
    /// Of which cluster the next bytes are.
    next: u64,
    cluster: Vec<u8>,
    /// How much of it was passed on.
    passed: usize,
}

/// What is needed of a header.
#[derive(Debug)]
pub struct Header {
    cluster_bits: u32,
    bytes: u64,
    l1_entries: u32,
    l1_offset: u64,
}

impl Header {
    /// Reads the header of an image that is unpacked here.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_BYTES>().filter(|header| header.starts_with(MAGIC))?;
        let (version, header_bytes, features) = (word(header, 4), word(header, 100), double(header, 72));
        let is_zstd = version == 3 && header_bytes as usize >= HEADER_BYTES && features & 1 << 3 != 0 && header[104] == ZSTD;
        let is_plain = features & !FEATURES == 0 && double(header, 8) == 0 && word(header, 32) == 0;
        let found =
            Self { cluster_bits: word(header, 20), bytes: double(header, 24), l1_entries: word(header, 36), l1_offset: double(header, 40) };
        let is_possible =
            (9..=21).contains(&found.cluster_bits) && found.l1_entries <= L1_ENTRIES_MAX && (1..=BYTES_MAX).contains(&found.bytes);
        (is_zstd && is_plain && is_possible).then_some(found)
    }

    /// The image with this header.
    pub fn unpack<F: Fn(u64, &mut [u8]) -> io::Result<usize>>(self, read_at: F) -> io::Result<Unpacked<F>> {
        let mut l1 = vec![0; self.l1_entries as usize * 8];
        exactly(&read_at, self.l1_offset, &mut l1)?;
        let (cluster_bits, left) = (self.cluster_bits, self.bytes);
        Ok(Unpacked { read_at, cluster_bits, left, l1, l2: vec![], next: 0, cluster: vec![], passed: 0 })
    }
}

impl<F: Fn(u64, &mut [u8]) -> io::Result<usize>> Unpacked<F> {
    /// Makes the next cluster the one that is passed on.
    fn advance(&mut self) -> io::Result<()> {
        let entries = 1_u64 << (self.cluster_bits - 3);
        let (table, index) = (self.next / entries, self.next % entries);
        if index == 0 {
            self.l2.clear();
            let at = self.l1.get(table as usize * 8..).and_then(|rest| rest.first_chunk()).map_or(0, |entry| u64::from_be_bytes(*entry))
                & OFFSET;
            if at != 0 {
                self.l2.resize(1 << self.cluster_bits, 0);
                exactly(&self.read_at, at, &mut self.l2)?;
            }
        }
        let entry = self.l2.get(index as usize * 8..).and_then(|rest| rest.first_chunk()).map_or(0, |entry| u64::from_be_bytes(*entry));
        self.cluster.clear();
        self.cluster.resize(1 << self.cluster_bits, 0);
        if entry & PACKED != 0 {
            self.unpack_cluster(entry)?;
        } else if entry & ZEROS == 0 && entry & OFFSET != 0 {
            exactly(&self.read_at, entry & OFFSET, &mut self.cluster)?;
        }
        (self.next, self.passed) = (self.next + 1, 0);
        Ok(())
    }

    fn unpack_cluster(&mut self, entry: u64) -> io::Result<()> {
        let shift = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << shift) - 1);
        let sectors = (entry & !PACKED) >> shift & ((1 << (self.cluster_bits - 8)) - 1);
        let mut packed = vec![0; ((sectors + 1) * 512 - offset % 512) as usize];
        // The last sectors of a file need not be whole.
        let count = (self.read_at)(offset, &mut packed)?;
        let mut decoder = zstd::stream::read::Decoder::with_buffer(&packed[..count])?.single_frame();
        let damaged = |error: io::Error| io::Error::other(format!("the cluster at {offset} does not unpack: {error}"));
        decoder.read_exact(&mut self.cluster).map_err(damaged)
    }
}

impl<F: Fn(u64, &mut [u8]) -> io::Result<usize>> Read for Unpacked<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.passed == self.cluster.len() {
            self.advance()?;
        }
        let rest = &self.cluster[self.passed..];
        let count = rest.len().min(buffer.len()).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        buffer[..count].copy_from_slice(&rest[..count]);
        self.passed += count;
        self.left -= count as u64;
        Ok(count)
    }
}

fn exactly(read_at: impl Fn(u64, &mut [u8]) -> io::Result<usize>, at: u64, buffer: &mut [u8]) -> io::Result<()> {
    let wanted = buffer.len();
    match read_at(at, buffer)? {
        count if count == wanted => Ok(()),
        _ => Err(io::Error::other(format!("its tables name {wanted} bytes at {at}, which lie outside the file: is it whole?"))),
    }
}

fn word(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_be_bytes(*word))
}

fn double(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |double| u64::from_be_bytes(*double))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTER: usize = 4096;

    /// A disk of six clusters less one sector: packed, as it is, zeros, never written, packed, packed and shared with the first.
    fn sample() -> (Vec<u8>, Vec<u8>) {
        let text: Vec<u8> = b"all work and no play ".iter().copied().cycle().take(CLUSTER).collect();
        let noise: Vec<u8> = (0..CLUSTER as u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
        let zeros = vec![0; CLUSTER];
        let size = 6 * CLUSTER - 512;
        let disk = [&text[..], &noise, &zeros, &zeros, &[7; CLUSTER], &text].concat()[..size].to_vec();
        let mut file = vec![0; 4 * CLUSTER];
        file[..4].copy_from_slice(MAGIC);
        let shift = 62 - (12 - 8);
        let mut pack = |bytes: &[u8]| {
            let packed = zstd::bulk::compress(bytes, 1).unwrap();
            // Not at the start of a sector.
            file.resize(file.len() + 100, 0xee);
            let at = file.len();
            file.extend(&packed);
            let sectors = (at % 512 + packed.len()).div_ceil(512) - 1;
            PACKED | (sectors as u64) << shift | at as u64
        };
        let (first, fifth) = (pack(&text), pack(&[7; CLUSTER]));
        file[3 * CLUSTER..4 * CLUSTER].copy_from_slice(&noise);
        for (at, bytes) in [(4, 3), (20, 12), (36, 1), (100, 112)] {
            file[at..at + 4].copy_from_slice(&u32::to_be_bytes(bytes));
        }
        for (at, bytes) in [(24, size), (40, CLUSTER), (72, 1 << 3), (CLUSTER, 2 * CLUSTER)] {
            file[at..at + 8].copy_from_slice(&(bytes as u64).to_be_bytes());
        }
        file[104] = ZSTD;
        let entries = [first, 3 * CLUSTER as u64, ZEROS | CLUSTER as u64, 0, fifth, first];
        for (at, entry) in (2 * CLUSTER..).step_by(8).zip(entries) {
            file[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        }
        (file, disk)
    }

    fn read(file: &[u8]) -> Option<io::Result<Vec<u8>>> {
        let read_at = |at: u64, buffer: &mut [u8]| {
            let rest = usize::try_from(at).ok().and_then(|at| file.get(at..)).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        };
        let header = Header::read(file)?;
        let mut disk = vec![];
        // Not all that a spoilt header announces.
        Some(header.unpack(read_at).and_then(|image| image.take(64 << 10).read_to_end(&mut disk)).map(|_| disk))
    }

    #[test]
    fn every_kind_of_cluster_comes_out_as_it_was() {
        let (file, disk) = sample();
        assert!(read(&file).unwrap().unwrap() == disk);
    }

    #[test]
    fn what_is_not_for_here_is_left_alone_and_what_is_cut_off_is_said() {
        let (file, _) = sample();
        for (at, byte) in [
            (0, b'q'),
            (7, 2),
            (15, 9),
            (23, 8),
            (23, 22),
            (35, 1),
            (79, 0),
            (79, 1 << 3 | 1 << 2),
            (79, 1 << 3 | 1 << 4),
            (104, 0),
            (24, 1),
        ] {
            let mut other = file.clone();
            other[at] = byte;
            assert!(read(&other).is_none(), "byte {at}");
        }
        assert!(read(&file[..100]).is_none());
        let cut = read(&file[..3 * CLUSTER + 100]).unwrap().unwrap_err().to_string();
        assert!(cut.contains("outside the file") || cut.contains("does not unpack"), "{cut}");
    }

    proptest! {
        #[test]
        fn a_spoilt_image_gives_an_error_or_wrong_bytes(spoil in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let (mut file, _) = sample();
            for (at, byte) in spoil {
                let at = at.index(file.len());
                file[at] = byte;
            }
            if let Some(Ok(disk)) = read(&file) {
                prop_assert!(disk.len() <= 64 << 10);
            }
        }
    }
}
