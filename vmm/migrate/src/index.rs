//! Which contents the target's host already holds: an index from wire digest to place, bounded, and the filter over it
//! that the source asks before it sends a digest instead of bytes. Neither is believed: what a place holds is copied and
//! verified, and a wrong guess costs one more round trip.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::page::Digest;

/// Most contents of donors and disks that are indexed: 4 GiB of content, about 50 MiB of index.
pub const HELD_ENTRIES_MAX: usize = 1 << 20;
/// Most contents that the move itself adds (pages received, so that equal pages travel once).
pub const MOVED_ENTRIES_MAX: usize = 1 << 20;
/// Largest filter: sixteen bits for each of the most entries.
pub const FILTER_BYTES_MAX: usize = HELD_ENTRIES_MAX * 2;
const FILTER_BITS_PER_ENTRY: usize = 12;
const FILTER_PROBES: usize = 4;

/// Who holds contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// The memory of another VM, by its place in the list of `--donor` options.
    Donor(u16),
    /// A disk of this VM as it was found at the target.
    Disk(u16),
    /// Memory that this move has already brought.
    Memory,
}

/// Where a content was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Who holds it.
    pub holder: Holder,
    /// Which unit of it.
    pub unit: u64,
}

/// Digests are uniform already: their first bytes are the hash.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_le_bytes(word);
        }
    }
}

type DigestMap<V> = HashMap<Digest, V, BuildHasherDefault<DigestHasher>>;

/// Wire digest to place. Never iterated, so its order is never seen.
#[derive(Default)]
pub struct Index {
    places: DigestMap<Place>,
}

impl Index {
    /// How many contents are known.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Remembers where a content is, while fewer than `max` are known; the first place seen stays.
    pub fn insert(&mut self, digest: Digest, place: Place, max: usize) {
        if self.places.len() < max {
            self.places.entry(digest).or_insert(place);
        }
    }

    /// Where a content was seen.
    pub fn find(&self, digest: &Digest) -> Option<Place> {
        self.places.get(digest).copied()
    }

    /// The filter over all digests.
    pub fn filter(&self) -> Filter {
        let mut filter = Filter::sized(self.places.len());
        self.places.keys().for_each(|digest| filter.insert(digest));
        filter
    }
}

/// A Bloom filter of wire digests, twelve bits or more an entry and four probes: at most one guess in 150 is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    bytes: Vec<u8>,
}

impl Filter {
    fn sized(entries: usize) -> Self {
        let bytes = if entries == 0 { 0 } else { (entries * FILTER_BITS_PER_ENTRY / 8).next_power_of_two().min(FILTER_BYTES_MAX) };
        Self { bytes: vec![0; bytes] }
    }

    /// A filter whose bytes arrived from the target.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Whether `bytes` may be the size of a filter.
    pub fn is_size(bytes: usize) -> bool {
        bytes == 0 || bytes.is_power_of_two() && bytes <= FILTER_BYTES_MAX
    }

    /// The bytes that travel.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn insert(&mut self, digest: &Digest) {
        for bit in probes(digest, self.bytes.len()) {
            self.bytes[bit / 8] |= 1 << (bit % 8);
        }
    }

    /// Whether the content is probably held.
    pub fn contains(&self, digest: &Digest) -> bool {
        !self.bytes.is_empty() && probes(digest, self.bytes.len()).all(|bit| self.bytes[bit / 8] & 1 << (bit % 8) != 0)
    }
}

fn probes(digest: &Digest, filter_bytes: usize) -> impl Iterator<Item = usize> {
    let bits = filter_bytes * 8;
    let words: [u32; FILTER_PROBES] = std::array::from_fn(|at| u32::from_le_bytes(crate::bytes::array(&digest.0, at * 4)));
    words.into_iter().map(move |word| word as usize & (bits - 1))
}

/// Contents that the source has sent and the target has applied: bounded, and never iterated.
#[derive(Default)]
pub struct Moved {
    digests: DigestMap<()>,
}

impl Moved {
    /// Remembers a content, while there is room.
    pub fn insert(&mut self, digest: Digest) {
        if self.digests.len() < MOVED_ENTRIES_MAX {
            self.digests.insert(digest, ());
        }
    }

    /// Whether it was sent and applied.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.digests.contains_key(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(number: u64) -> Digest {
        let hash = blake3::hash(&number.to_le_bytes());
        Digest(crate::bytes::array(hash.as_bytes(), 0))
    }

    #[test]
    fn the_filter_never_misses_and_rarely_lies() {
        let mut index = Index::default();
        for unit in 0..10_000 {
            index.insert(numbered(unit), Place { holder: Holder::Donor(0), unit }, HELD_ENTRIES_MAX);
        }
        let filter = Filter::from_bytes(index.filter().bytes().to_vec());
        assert!(Filter::is_size(filter.bytes().len()));
        assert!((0..10_000).all(|unit| filter.contains(&numbered(unit))));
        let lies = (10_000..20_000).filter(|&unit| filter.contains(&numbered(unit))).count();
        assert!(lies < 100, "{lies} of 10000");
        assert!(!Filter::default().contains(&numbered(1)));
    }

    #[test]
    fn the_index_is_bounded_and_keeps_the_first_place() {
        let mut index = Index::default();
        for unit in 0..20 {
            index.insert(numbered(unit), Place { holder: Holder::Disk(0), unit }, 10);
            index.insert(numbered(unit), Place { holder: Holder::Memory, unit }, 10);
        }
        assert_eq!(index.len(), 10);
        assert_eq!(index.find(&numbered(3)), Some(Place { holder: Holder::Disk(0), unit: 3 }));
        assert_eq!(index.find(&numbered(15)), None);
    }
}
