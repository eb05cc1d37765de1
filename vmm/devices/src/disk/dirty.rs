//! Which units of a disk changed while it moves. Writers mark, the move takes; neither waits for the other.

use std::sync::{Arc, PoisonError, RwLock};

use rebec_bits::{AtomicBitSet, BitSet};
use rebec_layout::PAGE_BYTES;

/// One bit per unit of [`PAGE_BYTES`] while recording. The lock guards only the pointer: it is taken for nanoseconds and never across I/O.
#[derive(Debug, Default)]
pub(super) struct DirtyMap(RwLock<Option<Arc<AtomicBitSet>>>);

impl DirtyMap {
    pub(super) fn start(&self, disk_bytes: u64) {
        self.set(Some(Arc::new(AtomicBitSet::new(disk_bytes.div_ceil(PAGE_BYTES)))));
    }

    pub(super) fn stop(&self) {
        self.set(None);
    }

    pub(super) fn take(&self) -> BitSet {
        self.marks().map(|marks| marks.take()).unwrap_or_default()
    }

    /// Marks every unit that the range touches.
    pub(super) fn mark(&self, offset: u64, bytes: u64) {
        let Some(marks) = self.marks().filter(|_| bytes > 0) else { return };
        marks.insert_range(offset / PAGE_BYTES..(offset + bytes).div_ceil(PAGE_BYTES));
    }

    fn marks(&self) -> Option<Arc<AtomicBitSet>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, marks: Option<Arc<AtomicBitSet>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = marks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(map: &DirtyMap) -> Vec<u64> {
        map.take().iter().collect()
    }

    #[test]
    fn a_range_marks_the_units_it_touches_once() {
        let map = DirtyMap::default();
        map.mark(0, 4096);
        assert!(taken(&map).is_empty(), "nothing is recorded before start");
        map.start(200 * PAGE_BYTES);
        map.mark(4095, 2);
        map.mark(63 * PAGE_BYTES, 66 * PAGE_BYTES);
        map.mark(0, 0);
        assert_eq!(taken(&map), [vec![0, 1], (63..129).collect()].concat());
        assert!(taken(&map).is_empty());
        map.mark(199 * PAGE_BYTES, PAGE_BYTES);
        assert_eq!(taken(&map), [199]);
        map.stop();
        map.mark(0, 1);
        assert!(taken(&map).is_empty());
    }
}
