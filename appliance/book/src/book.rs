//! The book: all records of a pool that a host knows, as a log for each writer. A writer numbers what it writes; of two records about
//! one thing the later stays. Books merge in any order.
//!
//! Two books are made equal by an exchange of [`ShortMark`]s, one for each writer: how far the log is known and what is in it. A side that
//! is behind gets what is above its mark; sides that are equally far and yet differ (somebody held records back, or a writer used a
//! number twice) get the whole log.
//!
//! Only writers of the pool have a log: its own key, the keys that it made domains, and hosts that a domain claims. Which of a
//! domain's claims count, and who holds a VM, is judged when the book is read ([`crate::view`]), by what is in it then.

mod entries;
mod groups;
mod parcel;
mod read;
mod scope;
mod shared;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use entries::Entries;
use groups::Group;
pub use groups::{GroupMark, ShortMark, Tag, tag_of};
pub use scope::{Concern, Lens};
use scope::{Scope, is_public};
use shared::Shared;

use crate::{
    key::{Id, Key, Name, id_of_key},
    record::{Body, DomainBody, HostBody, Kind, MemberBody, Record, RecordKey, Signed, Unbelievable, UserBody},
};

/// What one writer may have in everybody's book: records, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Records, also those that say that something is gone.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Of a host: a thousand VMs with their images and LANs, and what it has seen of as many others.
pub const HOST_QUOTA: Quota = Quota { records: 4096, bytes: 4 << 20 };
/// Of a domain's key and the pool's: their hosts and helpers.
pub const KEY_QUOTA: Quota = Quota { records: 4096, bytes: 2 << 20 };
/// Of all hosts that one domain claims, together.
pub const DOMAIN_QUOTA: Quota = Quota { records: 131_072, bytes: 96 << 20 };
/// Things gone that a writer has in its log before it makes room.
pub const GONE_MAX: usize = 512;

/// One record, with what proves it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The record.
    pub record: Record,
    /// What is stored and sent.
    pub signed: Signed,
    hash: u64,
}

impl Entry {
    /// Reads a record whose signature was proved before, or is to be.
    pub fn read(signed: Signed) -> Result<Self, Unbelievable> {
        Ok(Self { record: signed.read()?, hash: short_hash(&signed), signed })
    }
}

/// What one writer wrote.
#[derive(Debug, Clone)]
struct Log {
    /// With whose it is compared: those of its domain.
    group: Key,
    /// The domain that its writer belongs to, if it is a host and does.
    domain: Option<Key>,
    /// How far it is known. Later records may be here that came by themselves.
    head: u64,
    floor: u64,
    /// Of all records in it, in no order.
    mark: u64,
    /// The same two of what is everybody's.
    public_head: u64,
    public_mark: u64,
    bytes: usize,
    gone: usize,
    /// Records that are not everybody's.
    private: usize,
    /// In the order of their numbers.
    by_seq: Vec<Arc<Entry>>,
    /// Its writer wrote more than it may: it is not asked for again.
    is_over: bool,
}

impl Log {
    fn new(group: Key) -> Self {
        Self {
            group,
            domain: None,
            head: 0,
            floor: 0,
            mark: 0,
            public_head: 0,
            public_mark: 0,
            bytes: 0,
            gone: 0,
            private: 0,
            by_seq: vec![],
            is_over: false,
        }
    }

    /// The records from a number on.
    fn from(&self, seq: u64) -> &[Arc<Entry>] {
        &self.by_seq[self.by_seq.partition_point(|entry| entry.record.seq < seq)..]
    }

    /// Where a record is, or would be.
    fn place(&self, entry: &Entry) -> Result<usize, usize> {
        let order = |entry: &Entry| (entry.record.seq, entry.record.key.kind, entry.record.key.id);
        self.by_seq.binary_search_by(|other| order(other).cmp(&order(entry)))
    }

    fn records(&self) -> usize {
        self.by_seq.len()
    }
}

/// How a record came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// After those of its writer that come before it: the log is known as far as this.
    InTurn,
    /// By itself.
    Alone,
}

/// Something with a name that one host wrote: a LAN, an image, a VM; or a host itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thing {
    /// Its id.
    pub id: Id,
    /// The host that writes of it.
    pub home: Key,
    /// That host's domain; none where it belongs to none.
    pub domain: Option<Key>,
}

/// All records that this host knows of its pool.
#[derive(Debug, Clone)]
pub struct Book {
    pool: Key,
    own: Option<Key>,
    entries: Entries,
    logs: BTreeMap<Key, Log>,
    groups: BTreeMap<Key, Group>,
    /// By what their names hash to. A set for each name would take more room than the records.
    names: BTreeSet<(Kind, u64, Id)>,
    /// Which VMs are on which LAN, by some writer's word.
    on_lan: BTreeSet<(Id, Id)>,
    /// Whom it concerns.
    scope: Scope,
    /// What is shared with whom, of those of whom that was asked.
    shared: RefCell<BTreeMap<Key, Arc<Shared>>>,
    /// By what the digest of a group differs for a domain.
    differences: RefCell<BTreeMap<(Key, Key), u128>>,
    /// Grows when it may have changed who belongs to whom.
    authority: u64,
}

impl Book {
    /// An empty book of one pool.
    pub fn new(pool: Key) -> Self {
        let (entries, logs, groups, names, on_lan, scope, shared, differences) = Default::default();
        Self { pool, own: None, entries, logs, groups, names, on_lan, scope, shared, differences, authority: 0 }
    }

    /// The same, as a host reads it: its own domain's things have their plain names.
    pub fn of_host(self, host: Key) -> Self {
        Self { own: Some(host), ..self }
    }

    /// The pool's key.
    pub fn pool(&self) -> Key {
        self.pool
    }

    /// Takes a record in if it is believable and new. Returns whether it was new.
    pub fn merge(&mut self, signed: Signed) -> Result<bool, Unbelievable> {
        if self.wants(&signed) {
            signed.open()?;
        }
        self.restore(signed, Came::Alone)
    }

    /// The same for a record whose signature was proved before.
    pub fn restore(&mut self, signed: Signed, came: Came) -> Result<bool, Unbelievable> {
        self.restore_read(Arc::new(Entry::read(signed)?), came)
    }

    /// The same for one that is read already, and may be in other books too.
    pub fn restore_read(&mut self, entry: Arc<Entry>, came: Came) -> Result<bool, Unbelievable> {
        let (writer, seq) = (entry.record.key.writer, entry.record.seq);
        let is_news = self.is_news(&entry.record, entry.hash);
        if is_news {
            self.enter(entry)?;
        }
        let Some(head) = self.logs.get(&writer).map(|log| log.head) else { return Ok(is_news) };
        let follows = came == Came::InTurn || seq == head + 1 || head == 0;
        if follows && seq > head {
            self.change(&writer, |log| log.head = seq);
        }
        Ok(is_news)
    }

    /// Whether a record would be news, if it is what it says.
    pub fn wants(&self, signed: &Signed) -> bool {
        signed.read().is_ok_and(|record| self.is_news(&record, short_hash(signed)))
    }

    /// The same of one that is read.
    pub fn wants_read(&self, entry: &Entry) -> bool {
        self.is_news(&entry.record, entry.hash)
    }

    fn is_news(&self, record: &Record, hash: u64) -> bool {
        let floor = self.logs.get(&record.key.writer).map_or(0, |log| log.floor);
        let known = self.entries.get(&record.key).map(|entry| (entry.record.seq, entry.hash));
        record.seq > floor && known.is_none_or(|known| known < (record.seq, hash))
    }

    fn enter(&mut self, entry: Arc<Entry>) -> Result<(), Unbelievable> {
        let key = entry.record.key;
        if !self.admits(&key.writer) {
            return Err(Unbelievable::Writer(key.kind, key.writer));
        }
        let before = self.entries.get(&key).map_or(0, |entry| entry.signed.bytes());
        let is_new = usize::from(before == 0);
        if let Some(quota) = self.over(&key.writer, is_new, entry.signed.bytes().saturating_sub(before)) {
            self.change(&key.writer, |log| log.is_over = true);
            return Err(Unbelievable::Quota(key.kind, key.writer, quota.records, quota.bytes));
        }
        let before = self.remove(&key);
        self.insert(entry);
        let now = self.entries.get(&key).map(|entry| &entry.record);
        let (mut voids, mut voids_authority) = (false, false);
        if let Some(Record { body: Some(Body::Floor(floor)), seq, .. }) = now {
            let floor = floor.floor.min(seq.saturating_sub(1));
            (voids, voids_authority) = self.raise_floor(key.writer, floor);
        }
        // Whom a domain or a member's record lets in no more has no log.
        let was_authority = matches!(key.kind, Kind::DOMAIN | Kind::MEMBER | Kind::HELPER) && before.is_some();
        let has_dropped = (was_authority || voids_authority) && self.drop_strangers();
        if has_dropped || voids_authority {
            self.group_all_anew();
        } else {
            self.group_anew(&key, before.as_deref());
        }
        if voids {
            self.rescope_all()
        } else {
            self.rescope(&key, before.as_deref().map(|entry| &entry.record))
        }
        Ok(())
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        let Record { key, body, .. } = &entry.record;
        self.change(&key.writer, |log| {
            log.mark ^= entry.hash;
            log.public_mark ^= if is_public(&entry.record) { entry.hash } else { 0 };
            log.bytes += entry.signed.bytes();
            log.gone += usize::from(body.is_none());
            log.private += usize::from(!is_public(&entry.record));
            if let Err(place) = log.place(&entry) {
                log.by_seq.insert(place, entry.clone());
            }
        });
        self.names.extend(body.as_ref().and_then(name_of).map(|name| named(key, name)));
        self.on_lan.extend(lans_of(&entry.record).map(|lan| (lan, key.id)));
        self.entries.insert(entry.clone());
        self.share(&entry);
    }

    fn remove(&mut self, key: &RecordKey) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(key)?;
        self.unshare_one(&entry);
        if self.logs.contains_key(&key.writer) {
            self.change(&key.writer, |log| {
                log.mark ^= entry.hash;
                log.public_mark ^= if is_public(&entry.record) { entry.hash } else { 0 };
                log.bytes -= entry.signed.bytes();
                log.gone -= usize::from(entry.record.body.is_none());
                log.private -= usize::from(!is_public(&entry.record));
                if let Ok(place) = log.place(&entry) {
                    log.by_seq.remove(place);
                }
            });
        }
        // Another writer's record of the same id may still be called so.
        let others: Vec<Arc<Entry>> = self.entries_about(key.kind, key.id).cloned().collect();
        if let Some(name) = entry.record.body.as_ref().and_then(name_of)
            && !others.iter().any(|other| other.record.body.as_ref().and_then(name_of) == Some(name))
        {
            self.names.remove(&named(key, name));
        }
        for lan in lans_of(&entry.record) {
            if !others.iter().any(|other| lans_of(&other.record).any(|of| of == lan)) {
                self.on_lan.remove(&(lan, key.id));
            }
        }
        Some(entry)
    }

    /// Whether that took anything along, and whether somebody's right.
    fn raise_floor(&mut self, writer: Key, floor: u64) -> (bool, bool) {
        self.change(&writer, |log| log.floor = log.floor.max(floor));
        let Some(log) = self.logs.get(&writer) else { return (false, false) };
        let void: Vec<RecordKey> =
            log.by_seq.iter().take_while(|entry| entry.record.seq <= log.floor).map(|entry| entry.record.key).collect();
        for key in &void {
            self.remove(key);
        }
        (!void.is_empty(), void.iter().any(|key| key.kind <= Kind::HOST && key.kind != Kind::FLOOR))
    }

    /// Drops the logs of those who have no right to one; whether there were any.
    fn drop_strangers(&mut self) -> bool {
        let strangers: Vec<Key> = self.logs.keys().filter(|writer| !self.admits(writer)).copied().collect();
        if strangers.is_empty() {
            return false;
        }
        for writer in strangers {
            for entry in self.drop_log(&writer) {
                self.remove(&entry.record.key);
            }
        }
        // A helper's hosts go with it.
        self.drop_strangers();
        true
    }

    /// Whether a writer may have a log here.
    fn admits(&self, writer: &Key) -> bool {
        *writer == self.pool || self.is_domain(writer) || self.claims(writer).next().is_some()
    }

    fn over(&self, writer: &Key, records: usize, bytes: usize) -> Option<Quota> {
        let within = |quota: Quota, used: (usize, usize)| used.0 + records <= quota.records && used.1 + bytes <= quota.bytes;
        let quota = if *writer == self.pool || self.is_domain(writer) { KEY_QUOTA } else { HOST_QUOTA };
        if !within(quota, self.logs.get(writer).map_or((0, 0), |log| (log.records(), log.bytes))) {
            return Some(quota);
        }
        if quota == KEY_QUOTA {
            return None;
        }
        let group = self.logs.get(writer).map_or_else(|| self.group_of(writer), |log| log.group);
        let used = self.groups.get(&group).map_or((0, 0), |group| (group.records, group.bytes));
        (!within(DOMAIN_QUOTA, used)).then_some(DOMAIN_QUOTA)
    }
}

fn short_hash(signed: &Signed) -> u64 {
    let mut short = [0; 8];
    short.copy_from_slice(&signed.hash()[..8]);
    u64::from_be_bytes(short)
}

fn name_of(body: &Body) -> Option<&str> {
    match body {
        Body::Domain(domain) => Some(&domain.name),
        Body::Member(member) => Some(&member.name),
        Body::Lan(lan) => Some(&lan.name),
        Body::Image(image) => Some(&image.name),
        Body::Vm(vm) => Some(&vm.name),
        _ => None,
    }
}

fn named(key: &RecordKey, name: &str) -> (Kind, u64, Id) {
    (key.kind, hash_of_name(name), key.id)
}

fn hash_of_name(name: &str) -> u64 {
    let mut short = [0; 8];
    short.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    u64::from_be_bytes(short)
}

fn lans_of(record: &Record) -> impl Iterator<Item = Id> {
    let nics = if let Some(Body::Vm(vm)) = &record.body { &vm.nics[..] } else { &[] };
    nics.iter().map(|nic| nic.lan)
}

#[cfg(test)]
mod tests;
