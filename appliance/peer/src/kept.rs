//! The connections that are kept, by key: so many for each key, so many in all. What a newer one replaces is told to whoever adds it.

use std::collections::{BTreeMap, VecDeque};

use rebec_book::Key;

/// Of a host that is known: both sides may dial at once, and one that lost its power dials anew before its old connections have ended.
pub const PER_KEY: usize = 4;
/// Of a stranger.
pub const PER_STRANGER: usize = 1;
/// In all: a connection costs some 100 KiB, and a host speaks with those of its own domain and few others.
pub const IN_ALL: usize = 1024;

/// Something that ends by itself.
pub trait Link: Clone {
    /// Whether it has not ended.
    fn is_open(&self) -> bool;
}

/// What is kept.
pub struct Kept<L> {
    in_all: usize,
    by_key: BTreeMap<Key, VecDeque<L>>,
}

impl<L: Link> Kept<L> {
    /// Nothing yet, and at most `in_all`.
    pub fn new(in_all: usize) -> Self {
        Self { in_all, by_key: BTreeMap::new() }
    }

    /// The newest that is open.
    pub fn newest(&self, key: &Key) -> Option<&L> {
        self.by_key.get(key)?.iter().rev().find(|link| link.is_open())
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &L> {
        self.by_key.values().flatten()
    }

    /// Those of a key that are open.
    #[cfg(test)]
    pub fn open(&self, key: &Key) -> Vec<L> {
        self.by_key.get(key).into_iter().flatten().filter(|link| link.is_open()).cloned().collect()
    }

    /// Keeps one more, with at most `per_key` of its key. Returns what it replaces: the oldest of the key, or where everything is full the
    /// oldest of whoever has most.
    ///
    /// # Errors
    /// Where everything is full and nobody has two.
    pub fn add(&mut self, key: Key, link: L, per_key: usize) -> Result<Vec<L>, Full> {
        self.by_key.retain(|_, links| {
            links.retain(L::is_open);
            !links.is_empty()
        });
        let mut replaced = vec![];
        if let Some(links) = self.by_key.get_mut(&key) {
            let surplus = (links.len() + 1).saturating_sub(per_key);
            replaced.extend(links.drain(..surplus));
        }
        if self.by_key.values().map(VecDeque::len).sum::<usize>() >= self.in_all {
            let most = self.by_key.values_mut().max_by_key(|links| links.len()).filter(|links| links.len() > 1).ok_or(Full)?;
            replaced.extend(most.pop_front());
        }
        self.by_key.entry(key).or_default().push_back(link);
        Ok(replaced)
    }
}

/// There is no place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{IN_ALL} connections are open already")]
pub struct Full;

#[cfg(test)]
mod tests {
    use rebec_book::key::Name;

    use super::*;

    /// A number; 0 has ended.
    impl Link for u32 {
        fn is_open(&self) -> bool {
            *self != 0
        }
    }

    fn key(number: u8) -> Key {
        Name([number; 32])
    }

    #[test]
    fn the_oldest_of_a_key_is_replaced() {
        let mut kept = Kept::new(100);
        for number in 1..=4 {
            assert_eq!(kept.add(key(1), number, PER_KEY), Ok(vec![]));
        }
        assert_eq!(kept.add(key(1), 5, PER_KEY), Ok(vec![1]));
        assert_eq!(kept.add(key(2), 6, PER_KEY), Ok(vec![]));
        assert_eq!((kept.newest(&key(1)), kept.newest(&key(2)), kept.newest(&key(3))), (Some(&5), Some(&6), None));
        // One that was a member and is a stranger now.
        assert_eq!(kept.add(key(1), 7, PER_STRANGER), Ok(vec![2, 3, 4, 5]));
    }

    #[test]
    fn what_has_ended_takes_no_place() {
        let mut kept = Kept::new(2);
        assert_eq!((kept.add(key(1), 1, 1), kept.add(key(2), 0, 1)), (Ok(vec![]), Ok(vec![])));
        assert_eq!(kept.newest(&key(2)), None);
        assert_eq!(kept.add(key(3), 3, 1), Ok(vec![]));
    }

    #[test]
    fn where_all_is_full_whoever_has_most_gives_one() {
        let mut kept = Kept::new(4);
        for (owner, number) in [(1, 1), (2, 2), (2, 3), (3, 4)] {
            assert_eq!(kept.add(key(owner), number, PER_KEY), Ok(vec![]));
        }
        assert_eq!(kept.add(key(4), 5, PER_KEY), Ok(vec![2]));
        assert_eq!(kept.add(key(5), 6, PER_KEY), Err(Full));
        assert_eq!((kept.newest(&key(5)), kept.newest(&key(4))), (None, Some(&5)));
    }
}
