//! Sets of small numbers, one bit each: pages of memory, units of a disk. What a number stands for is its user's business; nothing
//! here knows memory, KVM, disks or moves.
//!
//! [`BitSet`] has one owner; [`AtomicBitSet`] is marked by several threads and taken by one. Both are words of 64 bits, in which bit
//! `n % 64` of word `n / 64` is number `n`, as KVM's dirty log has it, and every change of many numbers is made by words.

mod atomic;

use std::ops::Range;

pub use atomic::AtomicBitSet;

const BITS: u64 = u64::BITS as u64;

/// A set of numbers out of `0..size`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BitSet {
    /// Bits from `size` on are zero.
    words: Vec<u64>,
    size: u64,
    /// How many bits are set.
    len: u64,
}

impl BitSet {
    /// The empty set over `0..size`.
    pub fn new(size: u64) -> Self {
        Self { words: vec![0; size.div_ceil(BITS) as usize], size, len: 0 }
    }

    /// How many numbers the set ranges over.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many numbers are in the set.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a number is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.words.get((number / BITS) as usize).is_some_and(|word| word >> (number % BITS) & 1 == 1)
    }

    /// Adds a number; whether it was absent. One outside of the range is ignored.
    pub fn insert(&mut self, number: u64) -> bool {
        number < self.size && self.set((number / BITS) as usize, 1 << (number % BITS)) == 1
    }

    /// Adds the numbers of a range, as far as the set ranges over them.
    pub fn insert_range(&mut self, range: Range<u64>) {
        for (word, mask) in masks(range.start..range.end.min(self.size)) {
            self.set(word, mask);
        }
    }

    /// Removes a number; whether it was there.
    pub fn remove(&mut self, number: u64) -> bool {
        number < self.size && self.unset((number / BITS) as usize, 1 << (number % BITS)) == 1
    }

    /// Removes the numbers of a range.
    pub fn remove_range(&mut self, range: Range<u64>) {
        for (word, mask) in masks(range.start..range.end.min(self.size)) {
            self.unset(word, mask);
        }
    }

    /// Removes every number.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.len = 0;
    }

    /// Adds every number of another set that this one ranges over.
    pub fn union(&mut self, other: &Self) {
        self.union_words(0, &other.words);
    }

    /// Adds numbers given as words, of which bit 0 of the first stands for `first`; those outside of the range are ignored.
    pub fn union_words(&mut self, first: u64, words: &[u64]) {
        let (at, shift) = ((first / BITS) as usize, first % BITS);
        let mut carried = 0;
        // One word more than was given: what the last one is shifted into.
        for (at, word) in (at..self.words.len()).zip(words.iter().copied().chain(std::iter::once(0))) {
            self.set(at, (word << shift | carried) & self.mask(at));
            carried = if shift > 0 { word >> (BITS - shift) } else { 0 };
        }
    }

    /// The numbers in the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().zip(0..).flat_map(|(word, at)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    at * BITS + u64::from(bit)
                })
            })
        })
    }

    /// The next range of numbers that are in the set, from `from` on.
    pub fn next_range(&self, from: u64) -> Option<Range<u64>> {
        let start = self.seek(from, 0)?;
        Some(start..self.seek(start, u64::MAX).unwrap_or(self.size))
    }

    /// Which of the numbers from `first` on are in the set: bit `n` is number `first + n`.
    pub fn word_at(&self, first: u64) -> u64 {
        let (at, shift) = ((first / BITS) as usize, first % BITS);
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        word(at) >> shift | if shift > 0 { word(at + 1) << (BITS - shift) } else { 0 }
    }

    /// The first number from `from` on that is in the set, or with every bit flipped, that is not.
    fn seek(&self, from: u64, flip: u64) -> Option<u64> {
        let mut number = from;
        while number < self.size {
            let wanted = (self.words[(number / BITS) as usize] ^ flip) >> (number % BITS);
            if wanted != 0 {
                return Some(number + u64::from(wanted.trailing_zeros())).filter(|found| *found < self.size);
            }
            number = (number / BITS + 1) * BITS;
        }
        None
    }

    /// Sets bits of a word; how many of them were not.
    fn set(&mut self, at: usize, mask: u64) -> u64 {
        let word = &mut self.words[at];
        let new = u64::from((mask & !*word).count_ones());
        *word |= mask;
        self.len += new;
        new
    }

    /// Unsets bits of a word; how many of them were set.
    fn unset(&mut self, at: usize, mask: u64) -> u64 {
        let word = &mut self.words[at];
        let gone = u64::from((mask & *word).count_ones());
        *word &= !mask;
        self.len -= gone;
        gone
    }

    /// The bits of a word that stand for numbers.
    fn mask(&self, at: usize) -> u64 {
        let used = self.size - at as u64 * BITS;
        if used < BITS { (1 << used) - 1 } else { u64::MAX }
    }
}

/// The words that a range touches, each with the bits that are the range's.
fn masks(range: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let word = at / BITS;
            let end = range.end.min((word + 1) * BITS);
            let mask = (u64::MAX >> (BITS - (end - at))) << (at % BITS);
            at = end;
            (word as usize, mask)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn numbers_outside_of_the_range_are_ignored() {
        let mut set = BitSet::new(70);
        assert!(!set.insert(70) && !set.remove(70));
        set.insert_range(60..1000);
        set.union_words(64, &[u64::MAX, u64::MAX]);
        set.union_words(u64::MAX, &[u64::MAX]);
        assert_eq!(set.iter().collect::<Vec<_>>(), (60..70).collect::<Vec<_>>());
        assert_eq!((set.words.clone(), set.len()), (vec![0xf << 60, 0x3f], 10));
        let mut larger = BitSet::new(200);
        larger.insert_range(69..200);
        set.union(&larger);
        assert_eq!(set.len(), 10);
        assert!(!set.contains(70) && !set.contains(u64::MAX));
        assert_eq!((set.word_at(69), set.word_at(70), set.word_at(u64::MAX)), (1, 0, 0));
    }

    #[test]
    fn ranges_are_what_is_in_the_set() {
        let mut set = BitSet::new(200);
        set.insert_range(10..70);
        set.insert(199);
        assert_eq!(set.next_range(0), Some(10..70));
        assert_eq!(set.next_range(30), Some(30..70));
        assert_eq!(set.next_range(70), Some(199..200));
        assert_eq!(set.next_range(200), None);
        assert_eq!(BitSet::new(5).next_range(0), None);
    }

    /// Numbers on both sides of the largest set, and ranges of them.
    const NUMBERS: Range<u64> = 0..320;

    proptest! {
        #[test]
        fn it_is_a_set(
            size in 0_u64..300,
            numbers in vec(NUMBERS, 0..60),
            first in NUMBERS,
            words in vec(any::<u64>(), 0..4),
            from in NUMBERS,
            length in 0_u64..200,
            gone in NUMBERS,
        ) {
            let mut set = BitSet::new(size);
            let mut model = BTreeSet::new();
            for number in numbers {
                prop_assert_eq!(set.insert(number), number < size && model.insert(number));
            }
            let mut other = BitSet::new(size);
            other.union_words(first, &words);
            for (index, word) in words.iter().enumerate() {
                model.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| first + index as u64 * 64 + bit).filter(|n| *n < size));
            }
            set.union(&other);
            set.insert_range(from..from + length);
            model.extend((from..from + length).filter(|n| *n < size));
            set.remove_range(gone..gone + length);
            model.retain(|number| !(gone..gone + length).contains(number));
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((set.len(), set.is_empty()), (model.len() as u64, model.is_empty()));
            let ranges = std::iter::successors(set.next_range(0), |range| set.next_range(range.end));
            prop_assert_eq!(ranges.flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            for number in NUMBERS {
                prop_assert_eq!(set.contains(number), model.contains(&number));
                let word = set.word_at(number);
                prop_assert!((0..64).all(|bit| (word >> bit & 1 == 1) == model.contains(&(number + bit))));
            }
            for number in &model {
                prop_assert!(set.remove(*number) && !set.remove(*number));
            }
            prop_assert_eq!(set, BitSet::new(size));
        }

        #[test]
        fn what_was_marked_is_taken_once(size in 0_u64..300, ranges in vec((NUMBERS, 0_u64..150), 0..4)) {
            let marks = AtomicBitSet::new(size);
            let mut set = BitSet::new(size);
            for (from, length) in ranges {
                marks.insert_range(from..from + length);
                set.insert_range(from..from + length);
            }
            prop_assert_eq!(marks.take(), set);
            prop_assert_eq!(marks.take(), BitSet::new(size));
        }
    }
}
