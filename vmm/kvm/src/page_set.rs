//! A set of page numbers as a dense bitmap. It knows nothing of memory or KVM: dirty logs are merged into it and rounds of a
//! move are read out of it.

use std::ops::Range;

const BITS: u64 = u64::BITS as u64;

/// Page numbers out of `0..pages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// The empty set over `pages` pages.
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(BITS) as usize], pages }
    }

    /// How many numbers the set ranges over.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds a page; whether it was absent. Numbers outside the range are ignored.
    pub fn insert(&mut self, page: u64) -> bool {
        let Some((word, bit)) = self.place(page) else { return false };
        let absent = self.words[word] & bit == 0;
        self.words[word] |= bit;
        absent
    }

    /// Adds a range of pages, as far as it lies in the set's range.
    pub fn insert_range(&mut self, range: Range<u64>) {
        for (word, mask) in masks(range.start..range.end.min(self.pages)) {
            self.words[word] |= mask;
        }
    }

    /// Removes a page; whether it was there.
    pub fn remove(&mut self, page: u64) -> bool {
        let Some((word, bit)) = self.place(page) else { return false };
        let present = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        present
    }

    /// Whether the page is in the set.
    pub fn contains(&self, page: u64) -> bool {
        self.place(page).is_some_and(|(word, bit)| self.words[word] & bit != 0)
    }

    /// How many pages are in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The pages in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(index, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    index as u64 * BITS + u64::from(bit)
                })
            })
        })
    }

    /// Adds every page of the other set that this one ranges over.
    pub fn union(&mut self, other: &PageSet) {
        self.union_words(0, &other.words);
    }

    /// Keeps only pages that are in the other set too.
    pub fn intersect(&mut self, other: &PageSet) {
        for (index, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(index).copied().unwrap_or(0);
        }
    }

    /// Adds pages given as bitmap words, of which bit 0 of the first stands for page `first`.
    pub fn union_words(&mut self, first: u64, words: &[u64]) {
        let shift = first % BITS;
        for (at, word) in ((first / BITS) as usize..).zip(words) {
            if let Some(low) = self.words.get_mut(at) {
                *low |= word << shift;
            }
            if shift > 0
                && let Some(high) = self.words.get_mut(at + 1)
            {
                *high |= word >> (BITS - shift);
            }
        }
        self.trim();
    }

    /// Removes every page.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The bitmap: bit `n % 64` of word `n / 64` is page `n`; bits past the last page are zero.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn place(&self, page: u64) -> Option<(usize, u64)> {
        (page < self.pages).then(|| ((page / BITS) as usize, 1 << (page % BITS)))
    }

    fn trim(&mut self) {
        let used = self.pages % BITS;
        if used > 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }
}

/// The words that a range touches, each with the bits that are its.
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

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_outside_the_range_are_ignored() {
        let mut set = PageSet::new(70);
        assert!(!set.insert(70));
        set.insert_range(60..1000);
        set.union_words(64, &[u64::MAX, u64::MAX]);
        assert_eq!(set.iter().collect::<Vec<_>>(), (60..70).collect::<Vec<_>>());
        assert_eq!(set.words(), [0xf << 60, 0x3f]);
    }

    proptest! {
        #[test]
        fn it_is_a_set(pages in 1_u64..300, numbers in proptest::collection::vec(0_u64..320, 0..60), first in 0_u64..320, words in proptest::collection::vec(any::<u64>(), 0..4), from in 0_u64..320, length in 0_u64..200) {
            let mut set = PageSet::new(pages);
            let mut model = BTreeSet::new();
            for number in numbers {
                prop_assert_eq!(set.insert(number), number < pages && model.insert(number));
            }
            let mut other = PageSet::new(pages);
            other.union_words(first, &words);
            for (index, word) in words.iter().enumerate() {
                model.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| first + index as u64 * 64 + bit).filter(|n| *n < pages));
            }
            set.union(&other);
            set.insert_range(from..from + length);
            model.extend((from..from + length).filter(|n| *n < pages));
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            for number in 0..320 {
                prop_assert_eq!(set.contains(number), model.contains(&number));
            }
            let both: Vec<u64> = set.iter().filter(|n| other.contains(*n)).collect();
            let mut intersection = set.clone();
            intersection.intersect(&other);
            prop_assert_eq!(intersection.iter().collect::<Vec<_>>(), both);
            for number in &model {
                prop_assert!(set.remove(*number));
            }
            prop_assert!(set.is_empty());
        }
    }
}
