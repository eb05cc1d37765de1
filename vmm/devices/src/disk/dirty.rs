//! Which units of a disk changed while it moves. Writers mark, the move takes; neither waits for the other.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

/// The unit of dirty tracking, and of what a move sends.
pub const UNIT_BYTES: u64 = 4096;

/// One bit per unit while recording. The lock guards only the pointer: it is taken for nanoseconds and never across I/O.
#[derive(Debug, Default)]
pub(super) struct DirtyMap(RwLock<Option<Arc<[AtomicU64]>>>);

impl DirtyMap {
    pub(super) fn start(&self, disk_bytes: u64) {
        let words = disk_bytes.div_ceil(UNIT_BYTES).div_ceil(64);
        self.set(Some((0..words).map(|_| AtomicU64::new(0)).collect()));
    }

    pub(super) fn stop(&self) {
        self.set(None);
    }

    pub(super) fn take(&self) -> Vec<u64> {
        // AcqRel pairs with `mark`: who takes a bit sees the data written before it was set.
        self.words().map(|words| words.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()).unwrap_or_default()
    }

    /// Marks every unit that the range touches.
    pub(super) fn mark(&self, offset: u64, bytes: u64) {
        let Some(words) = self.words().filter(|_| bytes > 0) else { return };
        let (first, last) = (offset / UNIT_BYTES, (offset + bytes - 1) / UNIT_BYTES);
        for word in first / 64..=last / 64 {
            let from = if word == first / 64 { first % 64 } else { 0 };
            let to = if word == last / 64 { last % 64 } else { 63 };
            words[word as usize].fetch_or(u64::MAX << from & u64::MAX >> (63 - to), Ordering::AcqRel);
        }
    }

    fn words(&self) -> Option<Arc<[AtomicU64]>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, words: Option<Arc<[AtomicU64]>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = words;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(words: &[u64]) -> Vec<u64> {
        (0..words.len() as u64 * 64).filter(|unit| words[(unit / 64) as usize] >> (unit % 64) & 1 == 1).collect()
    }

    #[test]
    fn a_range_marks_the_units_it_touches_once() {
        let map = DirtyMap::default();
        map.mark(0, 4096);
        assert_eq!(map.take(), Vec::<u64>::new(), "nothing is recorded before start");
        map.start(200 * UNIT_BYTES);
        map.mark(4095, 2);
        map.mark(63 * UNIT_BYTES, 66 * UNIT_BYTES);
        map.mark(0, 0);
        assert_eq!(units(&map.take()), [vec![0, 1], (63..129).collect()].concat());
        assert_eq!(units(&map.take()), Vec::<u64>::new());
        map.mark(199 * UNIT_BYTES, UNIT_BYTES);
        assert_eq!(units(&map.take()), [199]);
        map.stop();
        map.mark(0, 1);
        assert_eq!(map.take(), Vec::<u64>::new());
    }
}
