//! The tables of a qcow2 image, walked before imago sees them: each lies inside the file, in its own place, once. A table that points at itself, at
//! another or at a million clusters that are not there would cost time, and at last the bytes of whoever wrote them.
//!
//! ```text
//! header, L1 ──► L2 ──► data, compressed data          refcount table ──► refcount blocks
//!    every cluster of these belongs to one of them; clusters of compressed data may hold several
//! ```
//! Read are the tables, never the data: 8 bytes for a cluster of the file. What counts clusters is not believed and not checked further: a host that lost its
//! power may have written a table and not the count, and what is counted too low costs this image alone.

use std::{collections::BTreeMap, fs::File, io};

use super::{
    DiskError,
    header::{Fault, Tables, be64, read_up_to},
};

/// How far behind the end of the file a cluster may lie: a host that lost its power may have written where it is and not the cluster.
const BEHIND_END_BYTES_MAX: u64 = 1 << 30;
/// Read at once of a table.
const PIECE_BYTES: usize = 64 << 10;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const REFCOUNTS_RESERVED: u64 = 0x1ff;
const L2_COMPRESSED: u64 = 1 << 62;
const SECTOR: u64 = 512;

/// Walks the tables of an image.
pub(super) fn check(name: &str, file: &File, tables: &Tables) -> Result<(), DiskError> {
    let file_bytes = io::Seek::seek(&mut &*file, io::SeekFrom::End(0));
    let walked = file_bytes.map_err(Fault::File).and_then(|file_bytes| Walk { file, file_bytes, tables, used: Used::default() }.all());
    walked.map_err(|fault| match fault {
        Fault::Content(what) => {
            let reason = format!("its qcow2 {what}; look at it with qemu-img check, which repairs some of it with -r all");
            DiskError::NotWhatItSays { name: name.to_owned(), reason }
        }
        Fault::File(source) => DiskError::File { name: name.to_owned(), operation: "read its tables", source },
    })
}

struct Walk<'a> {
    file: &'a File,
    file_bytes: u64,
    tables: &'a Tables,
    used: Used,
}

impl Walk<'_> {
    fn all(mut self) -> Result<(), Fault> {
        let Tables { l1_offset, l1_entries, refcounts_offset, refcounts_clusters, cluster_bits, refcount_order, .. } = *self.tables;
        let cluster_bytes = self.tables.cluster_bytes();
        let refcounts_bytes = refcounts_clusters << cluster_bits;
        self.claim("header", 0, cluster_bytes)?;
        self.claim("L1 table", l1_offset, l1_entries * 8)?;
        self.claim("refcount table", refcounts_offset, refcounts_bytes)?;
        // A block counts this many clusters; blocks for more than the file has would be searched for room one cluster at a time.
        let counted = (cluster_bytes * 8) >> refcount_order;
        let blocks_max = (self.file_bytes + BEHIND_END_BYTES_MAX) / cluster_bytes / counted + 2;
        self.each_entry(refcounts_offset, refcounts_bytes / 8, |walk, number, entry| {
            if number >= blocks_max {
                return Err(Fault::Content(format!("refcount table counts clusters that the file does not have (block {number})")));
            }
            walk.table("refcount block", number, entry, REFCOUNTS_RESERVED).map(drop)
        })?;
        self.each_entry(l1_offset, l1_entries, |walk, number, entry| {
            let at = walk.table("L2 table", number, entry, L1_RESERVED)?;
            walk.each_entry(at, cluster_bytes / 8, |walk, _, entry| walk.data(number, entry))
        })
    }

    /// Every entry of a table that is not zero, with its number.
    fn each_entry(
        &mut self,
        offset: u64,
        entries: u64,
        mut found: impl FnMut(&mut Self, u64, u64) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut number = 0;
        while number < entries {
            let bytes = ((entries - number) * 8).min(PIECE_BYTES as u64) as usize;
            let piece = read_up_to(self.file, offset + number * 8, bytes)?;
            for (at, entry) in piece.chunks_exact(8).enumerate() {
                let entry = be64(entry, 0);
                if entry != 0 {
                    found(self, number + at as u64, entry)?;
                }
            }
            // What is behind the end of the file is zeros.
            if piece.len() < bytes {
                break;
            }
            number += bytes as u64 / 8;
        }
        Ok(())
    }

    /// An entry that leads to a table of one cluster: where that is.
    fn table(&mut self, what: &str, number: u64, entry: u64, reserved: u64) -> Result<u64, Fault> {
        if entry & reserved != 0 {
            return Err(Fault::Content(format!("{what} {number} is where no cluster begins ({entry:#x})")));
        }
        let at = entry & OFFSET;
        if at > 0 {
            self.claim(&format!("{what} {number}"), at, self.tables.cluster_bytes())?;
        }
        Ok(at)
    }

    fn data(&mut self, table: u64, entry: u64) -> Result<(), Fault> {
        let what = || format!("cluster of L2 table {table}");
        if entry & L2_COMPRESSED != 0 {
            let shift = 62 - (self.tables.cluster_bits - 8);
            let at = entry & ((1 << shift) - 1);
            let sectors = (entry & (L2_COMPRESSED - 1)) >> shift;
            let end = at - at % SECTOR + (sectors + 1) * SECTOR;
            return self.claim_packed(&what(), at, end);
        }
        if entry & L2_RESERVED != 0 {
            return Err(Fault::Content(format!("{} is where no cluster begins ({entry:#x})", what())));
        }
        let at = entry & OFFSET;
        if at > 0 { self.claim(&what(), at, self.tables.cluster_bytes()) } else { Ok(()) }
    }

    /// These bytes are this and nothing else.
    fn claim(&mut self, what: &str, at: u64, bytes: u64) -> Result<(), Fault> {
        let clusters = self.clusters(what, at, at.saturating_add(bytes.max(1)))?;
        if !at.is_multiple_of(self.tables.cluster_bytes()) {
            return Err(Fault::Content(format!("{what} is where no cluster begins ({at:#x})")));
        }
        for cluster in clusters {
            if !self.used.insert(cluster, false) {
                return Err(Fault::Content(format!("{what} lies where something else is ({at:#x})")));
            }
        }
        Ok(())
    }

    /// These bytes are compressed data, beside which there may be more.
    fn claim_packed(&mut self, what: &str, at: u64, end: u64) -> Result<(), Fault> {
        for cluster in self.clusters(what, at, end)? {
            if !self.used.insert(cluster, true) {
                return Err(Fault::Content(format!("{what} lies where something else is ({at:#x})")));
            }
        }
        Ok(())
    }

    fn clusters(&self, what: &str, at: u64, end: u64) -> Result<std::ops::Range<u64>, Fault> {
        if end > self.file_bytes.next_multiple_of(self.tables.cluster_bytes()) + BEHIND_END_BYTES_MAX {
            return Err(Fault::Content(format!("{what} lies outside the file ({at:#x})")));
        }
        Ok(at >> self.tables.cluster_bits..end.div_ceil(self.tables.cluster_bytes()))
    }
}

/// Clusters that are in use, by pages of bits: an image names few of those that its file could have.
#[derive(Default)]
struct Used {
    alone: Bits,
    packed: Bits,
}

impl Used {
    /// False if somebody else has it.
    fn insert(&mut self, cluster: u64, packed: bool) -> bool {
        if !packed {
            return !self.packed.contains(cluster) && self.alone.insert(cluster);
        }
        self.packed.insert(cluster);
        !self.alone.contains(cluster)
    }
}

#[derive(Default)]
struct Bits(BTreeMap<u64, Box<[u64; Bits::WORDS]>>);

impl Bits {
    const WORDS: usize = 64;
    const PAGE: u64 = Self::WORDS as u64 * 64;

    fn place(number: u64) -> (u64, usize, u64) {
        let within = number % Self::PAGE;
        (number / Self::PAGE, (within / 64) as usize, 1 << (within % 64))
    }

    fn contains(&self, number: u64) -> bool {
        let (page, word, bit) = Self::place(number);
        self.0.get(&page).is_some_and(|page| page[word] & bit != 0)
    }

    /// Whether it was not there.
    fn insert(&mut self, number: u64) -> bool {
        let (page, word, bit) = Self::place(number);
        let word = &mut self.0.entry(page).or_insert_with(|| Box::new([0; Self::WORDS]))[word];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}
