//! Units: the 4 KiB pieces of memory and disks that travel, and the stream that carries each.
//!
//! Units of one space are numbered densely from 0. Thirty-two neighbours form a run, and a run always travels on stream
//! `run number mod streams`: two versions of one unit share a connection, so the older can never overtake the newer, and
//! neighbours still share a compressed batch.

use rebec_bits::BitSet;
use rebec_layout::{PAGE_BYTES, SLOTS};
use rebec_vmm_api::control::MigrateOptions;

/// Bytes of one unit: a page.
pub const UNIT_BYTES: usize = PAGE_BYTES as usize;
/// Neighbouring units that share a stream, and the most units of one batch: 128 KiB, a zstd block.
pub const RUN_UNITS: u64 = 32;
/// Bytes of the units of a full batch.
pub const BATCH_BYTES: usize = RUN_UNITS as usize * UNIT_BYTES;
/// Most data connections of one move.
pub const STREAMS_MAX: usize = MigrateOptions::STREAMS_MAX as usize;
/// Most disks of one machine: one for each virtio slot.
pub const DISKS_MAX: usize = SLOTS;

/// What a unit number counts in: the memory, or one of the disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Space(u16);

impl Space {
    /// Guest memory.
    pub const MEMORY: Self = Self(0);

    /// Disk `index`, in order of the `--disk` options.
    ///
    /// # Panics
    /// If `index` is not below [`DISKS_MAX`].
    pub fn disk(index: usize) -> Self {
        assert!(index < DISKS_MAX, "disk {index} of at most {DISKS_MAX}");
        Self(index as u16 + 1)
    }

    /// The space with this number on the wire, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        (usize::from(number) <= DISKS_MAX).then_some(Self(number))
    }

    /// Its number on the wire, and its place in a list of all spaces: 0 is memory, 1 is disk 0.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Which disk it is; `None` is memory.
    pub fn disk_index(self) -> Option<usize> {
        self.0.checked_sub(1).map(usize::from)
    }
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.disk_index() {
            None => f.write_str("memory"),
            Some(index) => write!(f, "disk {index}"),
        }
    }
}

/// The units that `bytes` fill; the last one may be partly filled and then ends in zeros.
pub fn units_of(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES)
}

/// The stream that carries `unit` when there are `streams`.
pub fn stream_of(unit: u64, streams: usize) -> usize {
    ((unit / RUN_UNITS) % streams as u64) as usize
}

/// Takes up to a batch of units that travel on `stream` out of `todo`, from run `cursor` on, and moves the cursor past what it saw.
pub fn take_batch(todo: &mut BitSet, stream: usize, streams: usize, cursor: &mut u64) -> Vec<u64> {
    let mut batch = Vec::new();
    let mut run = (*cursor).max(stream as u64);
    run += (stream as u64 + streams as u64 - run % streams as u64) % streams as u64;
    while run * RUN_UNITS < todo.size() {
        let first = run * RUN_UNITS;
        let bits = todo.word_at(first) & ((1 << RUN_UNITS) - 1);
        if bits != 0 {
            if batch.len() + bits.count_ones() as usize > RUN_UNITS as usize {
                break;
            }
            batch.extend((0..RUN_UNITS).filter(|at| bits & (1 << at) != 0).map(|at| first + at));
            todo.remove_range(first..first + RUN_UNITS);
        }
        run += streams as u64;
    }
    *cursor = run;
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_partition_a_set_by_stream() {
        for streams in [1, 2, 3, 16] {
            let mut set = BitSet::new(1000);
            for unit in (0..1000).filter(|unit| unit % 3 != 0 || unit / 32 == 4) {
                set.insert(unit);
            }
            let all: Vec<u64> = set.iter().collect();
            let mut taken = Vec::new();
            for stream in 0..streams {
                let mut cursor = 0;
                loop {
                    let batch = take_batch(&mut set, stream, streams, &mut cursor);
                    if batch.is_empty() {
                        break;
                    }
                    assert!(batch.len() <= RUN_UNITS as usize);
                    assert!(batch.iter().all(|&unit| stream_of(unit, streams) == stream));
                    taken.extend(batch);
                }
            }
            taken.sort_unstable();
            assert_eq!(taken, all);
            assert!(set.is_empty());
        }
    }
}
