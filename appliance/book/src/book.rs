//! The book: all records of a pool that a host knows. Merging is the same in any order: of two versions the higher stays, of
//! two contents of one version the one with the greater hash.
//!
//! Two books are made equal by an exchange: each side says which versions it has, and gets what it lacks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    key::{Digest, Id, Key, Name},
    lan,
    record::{Body, Kind, Record, RecordKey, Signed, Unbelievable, id_of_key},
};

/// Most records of a pool: a thousand hosts with a hundred VMs each.
pub const RECORDS_MAX: usize = 262_144;

/// One record, with what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// What is stored and sent.
    pub signed: Signed,
    hash: [u8; 32],
    stamp: Stamp,
}

/// All records that this host knows of its pool.
#[derive(Debug, Clone)]
pub struct Book {
    pool: Key,
    entries: BTreeMap<RecordKey, Entry>,
}

/// What one side of an exchange has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Of all of it: equal books have equal hashes.
    pub hash: Digest,
    /// Each record and how new it is; left out where only the hash is compared.
    pub stamps: Vec<(RecordKey, Stamp)>,
}

/// How new a record is: its version and, should a writer have used one twice, the beginning of its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp(u64, u64);

impl Book {
    /// An empty book of one pool.
    pub fn new(pool: Key) -> Self {
        Self { pool, entries: BTreeMap::new() }
    }

    /// The pool's key.
    pub fn pool(&self) -> Key {
        self.pool
    }

    /// Takes a record in if it is believable and new. Returns whether it was new.
    pub fn merge(&mut self, signed: Signed) -> Result<bool, Unbelievable> {
        let record = signed.open()?;
        let known = self.entries.get(&record.key);
        let hash = *blake3::hash(&signed.content).as_bytes();
        let mut mark = [0; 8];
        mark.copy_from_slice(&hash[..8]);
        let stamp = Stamp(record.version, u64::from_be_bytes(mark));
        if known.is_some_and(|known| known.stamp >= stamp) {
            return Ok(false);
        }
        if matches!(&record.body, Some(Body::Lan(lan)) if !lan::is_sound(lan)) {
            return Err(Unbelievable::Malformed);
        }
        if known.is_none() && self.entries.len() >= RECORDS_MAX || !self.may_write(&record) {
            return Err(Unbelievable::Writer(record.key.kind, record.key.writer));
        }
        self.entries.insert(record.key.clone(), Entry { record, signed, hash, stamp });
        Ok(true)
    }

    fn may_write(&self, record: &Record) -> bool {
        let RecordKey { kind, id, writer } = &record.key;
        match (kind, &record.body) {
            (Kind::Pool, _) => *writer == self.pool,
            (Kind::Domain, Some(Body::Domain(domain))) => *writer == self.pool && *id == id_of_key(&domain.key),
            (Kind::Domain, _) => *writer == self.pool,
            (Kind::Member, Some(Body::Member(member))) => self.is_domain(writer) && *id == id_of_key(&member.host),
            (Kind::Member, _) => self.is_domain(writer),
            (Kind::Host, _) => *id == id_of_key(writer) && self.is_member(writer),
            (Kind::Lan | Kind::Image | Kind::Vm | Kind::Seen, _) => self.is_member(writer),
        }
    }

    /// Whether the pool has this domain.
    pub fn is_domain(&self, key: &Key) -> bool {
        self.get(Kind::Domain, id_of_key(key), self.pool).is_some_and(|body| matches!(body, Body::Domain(domain) if domain.key == *key))
    }

    /// Whether a host belongs to some domain of the pool.
    pub fn is_member(&self, host: &Key) -> bool {
        self.membership(host).is_some()
    }

    /// The domain a host belongs to, and in what words.
    pub fn membership(&self, host: &Key) -> Option<(Key, &crate::record::MemberBody)> {
        self.about(Kind::Member, id_of_key(host)).find_map(|record| match &record.body {
            Some(Body::Member(member)) if member.host == *host && self.is_domain(&record.key.writer) => Some((record.key.writer, member)),
            _ => None,
        })
    }

    /// The records of one kind, also those that say that something is gone.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Record> {
        self.between(kind, Name([0; 16]), Name([0xff; 16]))
    }

    /// What all writers say of one thing.
    pub fn about(&self, kind: Kind, id: Id) -> impl Iterator<Item = &Record> {
        self.between(kind, id, id)
    }

    fn between(&self, kind: Kind, low: Id, high: Id) -> impl Iterator<Item = &Record> {
        let from = RecordKey { kind, id: low, writer: Name([0; 32]) };
        let to = RecordKey { kind, id: high, writer: Name([0xff; 32]) };
        self.entries.range(from..=to).map(|(_, entry)| &entry.record)
    }

    /// What one writer says of one thing; none when it is unknown or gone.
    pub fn get(&self, kind: Kind, id: Id, writer: Key) -> Option<&Body> {
        self.entries.get(&RecordKey { kind, id, writer }).and_then(|entry| entry.record.body.as_ref())
    }

    /// The version that a writer's next record must have.
    pub fn next_version(&self, key: &RecordKey) -> u64 {
        self.entries.get(key).map_or(1, |entry| entry.record.version + 1)
    }

    /// Every record, in the order of authority.
    pub fn all(&self) -> impl Iterator<Item = &Signed> {
        self.entries.values().map(|entry| &entry.signed)
    }

    /// What this side of an exchange has.
    pub fn summary(&self) -> Summary {
        let stamps = self.entries.values().map(|entry| (entry.record.key.clone(), entry.stamp)).collect();
        Summary { hash: self.hash(), stamps }
    }

    /// Of all of it: equal books have equal hashes.
    pub fn hash(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for entry in self.entries.values() {
            hasher.update(&entry.hash);
        }
        Name(*hasher.finalize().as_bytes())
    }

    /// What a side with that summary lacks, in the order of authority, at most `bytes_max` of it; and what it has newer.
    pub fn compare(&self, theirs: &[(RecordKey, Stamp)], bytes_max: usize) -> (Vec<Signed>, Vec<RecordKey>) {
        let stamps: BTreeMap<&RecordKey, Stamp> = theirs.iter().map(|(key, stamp)| (key, *stamp)).collect();
        let lacking = self.entries.values().filter(|own| stamps.get(&own.record.key).is_none_or(|stamp| *stamp < own.stamp));
        let lacking = within(lacking, bytes_max);
        let newer = stamps.into_iter().filter(|(key, stamp)| self.entries.get(*key).is_none_or(|own| own.stamp < *stamp));
        (lacking, newer.map(|(key, _)| key.clone()).collect())
    }

    /// The records that are wanted, in the order of authority, at most `bytes_max` of them.
    pub fn select(&self, wanted: impl Fn(&RecordKey) -> bool, bytes_max: usize) -> Vec<Signed> {
        within(self.entries.values().filter(|entry| wanted(&entry.record.key)), bytes_max)
    }

    /// The named records, at most `bytes_max` of them.
    pub fn pick(&self, keys: &[RecordKey], bytes_max: usize) -> Vec<Signed> {
        within(keys.iter().filter_map(|key| self.entries.get(key)), bytes_max)
    }
}

/// The first entries that fit, and at least one.
fn within<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: usize) -> Vec<Signed> {
    let mut bytes = 0;
    let fits = entries.enumerate().take_while(|(index, entry)| {
        bytes += entry.signed.content.len() + 80;
        *index == 0 || bytes <= bytes_max
    });
    fits.map(|(_, entry)| entry.signed.clone()).collect()
}

#[cfg(test)]
mod tests;
