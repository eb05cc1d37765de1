//! The room for memory that a guest takes in and gives back while it runs: which of its blocks the guest has, and what is done with the host's memory.
//!
//! ```text
//! room   = blocks of 2 MiB behind the RAM that the guest boots with
//! block  = taken in: RAM like any other       not taken in: no RAM to the guest's CPUs, nor to its devices, and nothing of the host's is held for it
//! ```
//! One device writes here (`mem`); every ring and every chain looks, so that a driver's buffer is never in memory that the guest does not have.

use std::{
    fmt::Debug,
    io,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use rebec_layout::ROOM_BLOCK_BYTES;

const BITS: u64 = u64::BITS as u64;

/// What devices that take memory from a guest do with the host's. Addresses are the guest's, in whole pages.
pub trait HostMemory: Send + Sync + Debug {
    /// From now on the guest reaches a part of the room, as it is.
    fn open(&self, addresses: Range<u64>) -> io::Result<()>;
    /// The guest reaches a part of the room no more, and what was held for it is the host's again.
    fn close(&self, addresses: Range<u64>) -> io::Result<()>;
    /// Makes a part of RAM zero; what was held for it is the host's again.
    fn discard(&self, addresses: Range<u64>) -> io::Result<()>;
}

/// Which blocks of the room the guest has taken in.
#[derive(Debug, Default)]
pub struct Blocks {
    addresses: Range<u64>,
    words: Vec<AtomicU64>,
    /// How many.
    taken: AtomicU64,
}

impl Blocks {
    /// Of a room at these addresses, in whole blocks; none is taken in.
    pub fn new(addresses: Range<u64>) -> Self {
        let words = (addresses.end - addresses.start).div_ceil(ROOM_BLOCK_BYTES).div_ceil(BITS);
        Self { addresses, words: (0..words).map(|_| AtomicU64::new(0)).collect(), taken: AtomicU64::new(0) }
    }

    /// Where the room is.
    pub fn addresses(&self) -> Range<u64> {
        self.addresses.clone()
    }

    /// How much is taken in, in bytes.
    pub fn taken_bytes(&self) -> u64 {
        self.taken.load(Ordering::Acquire) * ROOM_BLOCK_BYTES
    }

    /// Whether nothing of this memory is in a block that the guest does not have.
    pub fn have(&self, address: u64, bytes: u64) -> bool {
        let end = address.saturating_add(bytes);
        let Range { start, end: room_end } = self.addresses;
        if end <= start || address >= room_end || bytes == 0 {
            return true;
        }
        let (first, last) = (address.max(start) - start, end.min(room_end) - start);
        self.are(first / ROOM_BLOCK_BYTES..last.div_ceil(ROOM_BLOCK_BYTES), true)
    }

    /// The runs of blocks that are taken in, or are not, by their addresses.
    pub fn runs(&self, taken: bool) -> Vec<Range<u64>> {
        let (mut runs, mut at) = (vec![], 0);
        while at < self.count() {
            let end = (at..self.count()).find(|block| self.is_taken(*block) != taken).unwrap_or(self.count());
            if end > at {
                runs.push(self.address(at)..self.address(end));
            }
            at = end.max(at + 1);
        }
        runs
    }

    /// How many blocks there are.
    pub(crate) fn count(&self) -> u64 {
        (self.addresses.end - self.addresses.start) / ROOM_BLOCK_BYTES
    }

    /// Where a block begins.
    pub(crate) fn address(&self, block: u64) -> u64 {
        self.addresses.start + block * ROOM_BLOCK_BYTES
    }

    /// Whether all these blocks are taken in, or none of them is.
    pub(crate) fn are(&self, blocks: Range<u64>, taken: bool) -> bool {
        blocks.into_iter().all(|block| self.is_taken(block) == taken)
    }

    /// The device alone changes them. They were all otherwise.
    pub(crate) fn set(&self, blocks: Range<u64>, taken: bool) {
        let count = blocks.end - blocks.start;
        for block in blocks {
            let (word, bit) = (&self.words[(block / BITS) as usize], 1 << (block % BITS));
            if taken {
                word.fetch_or(bit, Ordering::AcqRel)
            } else {
                word.fetch_and(!bit, Ordering::AcqRel)
            };
        }
        if taken {
            self.taken.fetch_add(count, Ordering::AcqRel)
        } else {
            self.taken.fetch_sub(count, Ordering::AcqRel)
        };
    }

    /// One bit a block.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let words = self.words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes());
        words.take(self.count().div_ceil(8) as usize).collect()
    }

    /// The runs that such bits say, if they are of this room.
    pub(crate) fn runs_of(&self, bytes: &[u8]) -> Option<Vec<Range<u64>>> {
        let said = |block: u64| bytes.get((block / 8) as usize).is_some_and(|byte| byte >> (block % 8) & 1 == 1);
        let fits = bytes.len() as u64 == self.count().div_ceil(8) && !(self.count()..self.count().next_multiple_of(8)).any(said);
        let mut runs: Vec<Range<u64>> = vec![];
        for block in (0..self.count()).filter(|block| fits && said(*block)) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        fits.then_some(runs)
    }

    fn is_taken(&self, block: u64) -> bool {
        self.words.get((block / BITS) as usize).is_some_and(|word| word.load(Ordering::Acquire) >> (block % BITS) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 4 << 30;
    const BLOCK: u64 = ROOM_BLOCK_BYTES;

    #[test]
    fn memory_is_had_where_every_block_of_it_is_taken_in() {
        let blocks = Blocks::new(START..START + 100 * BLOCK);
        blocks.set(1..3, true);
        blocks.set(64..66, true);
        assert_eq!(blocks.taken_bytes(), 4 * BLOCK);
        for (address, bytes, had) in [
            (0, 1 << 20, true),
            (START - 8, 8, true),
            (START - 8, 9, false),
            (START + BLOCK, 2 * BLOCK, true),
            (START + BLOCK, 2 * BLOCK + 1, false),
            (START + BLOCK - 1, 2, false),
            (START + 65 * BLOCK + 5, 1, true),
            (START + 99 * BLOCK, BLOCK, false),
            (START + 100 * BLOCK, 1, true),
            (START - 1, u64::MAX, false),
            (START, 0, true),
        ] {
            assert_eq!(blocks.have(address, bytes), had, "{bytes} at {address:#x}");
        }
        assert!(Blocks::default().have(START, 1 << 40));
        assert_eq!(blocks.runs(true), [START + BLOCK..START + 3 * BLOCK, START + 64 * BLOCK..START + 66 * BLOCK]);
        assert_eq!(blocks.runs(false).len(), 3);
        blocks.set(2..3, false);
        assert_eq!((blocks.taken_bytes(), blocks.are(1..3, true), blocks.are(2..64, false)), (3 * BLOCK, false, true));
    }

    #[test]
    fn bits_are_read_as_they_were_written_and_others_refused() {
        let blocks = Blocks::new(START..START + 70 * BLOCK);
        blocks.set(0..9, true);
        blocks.set(69..70, true);
        let bytes = blocks.to_bytes();
        assert_eq!(bytes, [0xff, 1, 0, 0, 0, 0, 0, 0, 0x20]);
        assert_eq!(blocks.runs_of(&bytes), Some(vec![0..9, 69..70]));
        for wrong in [&[][..], &bytes[..8], &[0xff, 1, 0, 0, 0, 0, 0, 0, 0x40], &[0; 10]] {
            assert_eq!(blocks.runs_of(wrong), None, "{wrong:?}");
        }
        assert_eq!(Blocks::default().runs_of(&[]), Some(vec![]));
    }
}
