//! All records of a book by their names. A record has its name in it, so the order is kept of pointers alone: names beside them took
//! as much room as an eighth of all.

use std::{borrow::Borrow, cmp::Ordering, collections::BTreeSet, sync::Arc};

use super::Entry;
use crate::{
    key::{Id, Name},
    record::{Kind, RecordKey},
};

/// One for each name.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries(BTreeSet<Named>);

/// Shared with copies of the book: a record is decoded and kept once.
#[derive(Debug, Clone)]
struct Named(Arc<Entry>);

impl Entries {
    pub fn get(&self, key: &RecordKey) -> Option<&Arc<Entry>> {
        self.0.get(key).map(|Named(entry)| entry)
    }

    /// The record that has this one's name goes.
    pub fn insert(&mut self, entry: Arc<Entry>) {
        self.0.replace(Named(entry));
    }

    pub fn remove(&mut self, key: &RecordKey) -> Option<Arc<Entry>> {
        self.0.take(key).map(|Named(entry)| entry)
    }

    /// Those of a kind whose ids are among these.
    pub fn between(&self, kind: Kind, low: Id, high: Id) -> impl Iterator<Item = &Arc<Entry>> {
        let from = RecordKey { kind, id: low, writer: Name([0; 32]) };
        let to = RecordKey { kind, id: high, writer: Name([0xff; 32]) };
        self.0.range(from..=to).map(|Named(entry)| entry)
    }

    /// All, in the order of authority.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.iter().map(|Named(entry)| entry)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Borrow<RecordKey> for Named {
    fn borrow(&self) -> &RecordKey {
        &self.0.record.key
    }
}

impl Ord for Named {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.record.key.cmp(&other.0.record.key)
    }
}

impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Named {}
