//! A set that many threads add to while one takes what is in it; nobody waits.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{BITS, BitSet, masks};

/// A set of numbers out of `0..size`, shared.
#[derive(Debug)]
pub struct AtomicBitSet {
    words: Box<[AtomicU64]>,
    size: u64,
}

impl AtomicBitSet {
    /// The empty set over `0..size`.
    pub fn new(size: u64) -> Self {
        Self { words: (0..size.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(), size }
    }

    /// Adds the numbers of a range, as far as the set ranges over them.
    pub fn insert_range(&self, range: Range<u64>) {
        for (word, mask) in masks(range.start..range.end.min(self.size)) {
            self.words[word].fetch_or(mask, Ordering::AcqRel);
        }
    }

    /// Takes everything out. Who takes a number sees what was written before it was added.
    pub fn take(&self) -> BitSet {
        // AcqRel pairs with `insert_range`.
        let words: Vec<u64> = self.words.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect();
        let len = words.iter().map(|word| u64::from(word.count_ones())).sum();
        BitSet { words, size: self.size, len }
    }
}
