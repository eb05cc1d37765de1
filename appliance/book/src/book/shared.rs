//! What is shared with each other domain: the records of others in which it has a part, and what they come to. Found out once for a
//! domain and then kept true with every record that comes or goes: it is asked for with every message, and most records change nothing of it.

use super::*;

/// What is shared with one domain, by writers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shared {
    logs: BTreeMap<Key, Part>,
}

/// Of one log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// Numbers and hashes.
    hashes: BTreeMap<u64, u64>,
    /// All hashes, in no order.
    pub(super) mark: u64,
}

impl Part {
    pub(super) fn has(&self, seq: u64) -> bool {
        self.hashes.contains_key(&seq)
    }

    /// The last number up to this one; 0 where there is none.
    pub(super) fn head(&self, end: u64) -> u64 {
        self.hashes.range(..=end).next_back().map_or(0, |(seq, _)| *seq)
    }
}

impl Shared {
    pub(super) fn of(&self, writer: &Key) -> Option<&Part> {
        self.logs.get(writer)
    }

    pub(super) fn writers(&self) -> impl Iterator<Item = &Key> {
        self.logs.keys()
    }

    fn put(&mut self, entry: &Entry) {
        let part = self.logs.entry(entry.record.key.writer).or_default();
        if part.hashes.insert(entry.record.seq, entry.hash).is_none() {
            part.mark ^= entry.hash;
        }
    }

    fn take(&mut self, writer: &Key, seq: u64) {
        let Some(part) = self.logs.get_mut(writer) else { return };
        part.mark ^= part.hashes.remove(&seq).unwrap_or_default();
        if part.hashes.is_empty() {
            self.logs.remove(writer);
        }
    }
}

impl Book {
    pub(super) fn known_shared_with(&self, domain: &Key) -> Arc<Shared> {
        self.shared.borrow_mut().entry(*domain).or_insert_with(|| self.shared_with(domain).into()).clone()
    }

    /// By what a group's digest for one domain differs from everybody's, as it was found out since the group changed last.
    pub(super) fn known_difference(&self, group: &Key, shared: &Arc<Shared>, find: impl FnOnce() -> u128) -> u128 {
        let kept = self.shared.borrow();
        // Of a lens that is older than this book nothing is kept.
        let Some((domain, _)) = kept.iter().find(|(_, kept)| Arc::ptr_eq(kept, shared)) else { return find() };
        *self.differences.borrow_mut().entry((*group, *domain)).or_insert_with(find)
    }

    /// A group's logs have changed.
    pub(super) fn forget_differences(&mut self, group: &Key) {
        self.differences.get_mut().retain(|(of, _), _| of != group);
    }

    /// Everything of other domains that one has a part in.
    pub(super) fn shared_with(&self, domain: &Key) -> Shared {
        let has = |(id, domains): (&Id, &BTreeSet<Key>)| domains.contains(domain).then_some(*id);
        let lans: Vec<Id> = self.scope.lans.iter().filter_map(has).collect();
        let mut vms: BTreeSet<Id> = self.scope.vms.iter().filter_map(has).collect();
        vms.extend(lans.iter().flat_map(|lan| self.on_lan(*lan)).map(|record| record.key.id));
        let things = lans.into_iter().map(|lan| (Kind::LAN, lan));
        let things = things.chain(self.scope.images.iter().filter_map(has).map(|image| (Kind::IMAGE, image)));
        let things = things.chain(self.scope.contracts.iter().filter_map(has).map(|contract| (Kind::CONTRACT, contract)));
        let things = things.chain(vms.into_iter().flat_map(|vm| [(Kind::VM, vm), (Kind::SEEN, vm)]));
        let mut shared = Shared::default();
        for entry in things.flat_map(|(kind, id)| self.entries_about(kind, id)) {
            if !is_public(&entry.record) && self.domain_of(&entry.record.key.writer) != Some(*domain) {
                shared.put(entry);
            }
        }
        shared
    }

    /// A record has come: it is shared with the domains that have a part in it.
    pub(super) fn share(&mut self, entry: &Entry) {
        let key = entry.record.key;
        if self.shared.get_mut().is_empty() || is_public(&entry.record) {
            return;
        }
        let domains = self.have_a_part(&key, &entry.record);
        if key.kind == Kind::VM {
            // With it what is said of it.
            return self.unshare(&domains);
        }
        let home = self.domain_of(&key.writer);
        for domain in domains.iter().filter(|domain| home != Some(**domain)) {
            if let Some(shared) = self.shared.get_mut().get_mut(domain) {
                Arc::make_mut(shared).put(entry);
            }
        }
    }

    /// A record goes.
    pub(super) fn unshare_one(&mut self, entry: &Entry) {
        let Record { key, seq, .. } = entry.record;
        if self.shared.get_mut().is_empty() || is_public(&entry.record) {
            return;
        }
        if key.kind == Kind::VM {
            let domains = self.have_a_part(&key, &entry.record);
            self.unshare(&domains);
        }
        for shared in self.shared.get_mut().values_mut().filter(|shared| shared.of(&key.writer).is_some_and(|of| of.has(seq))) {
            Arc::make_mut(shared).take(&key.writer, seq);
        }
    }

    /// What is shared with these is found out anew when it is asked for.
    pub(super) fn unshare(&mut self, domains: &[Key]) {
        for domain in domains {
            if self.shared.get_mut().remove(domain).is_some() {
                self.differences.get_mut().retain(|(_, with), _| with != domain);
            }
        }
    }

    /// The same of all.
    pub(super) fn unshare_all(&mut self) {
        self.shared.get_mut().clear();
        self.differences.get_mut().clear();
    }

    fn have_a_part(&self, key: &RecordKey, record: &Record) -> Vec<Key> {
        let by_lan = |record: &Record| lans_of(record).filter_map(|lan| self.scope.lans.get(&lan)).flatten().copied().collect::<Vec<Key>>();
        let own = match key.kind {
            Kind::VM | Kind::SEEN => &self.scope.vms,
            Kind::LAN => &self.scope.lans,
            Kind::IMAGE => &self.scope.images,
            Kind::CONTRACT => &self.scope.contracts,
            _ => return vec![],
        };
        let mut domains: BTreeSet<Key> = own.get(&key.id).into_iter().flatten().copied().collect();
        match key.kind {
            Kind::VM => domains.extend(by_lan(record)),
            Kind::SEEN => domains.extend(self.about(Kind::VM, key.id).flat_map(by_lan)),
            _ => {}
        }
        domains.into_iter().collect()
    }

    /// Whether what is kept is what would be found out.
    #[cfg(test)]
    pub(super) fn shares_what_it_should(&self) -> bool {
        let is_one = |record: &Record, domain: &Key| self.concerns(record, domain) == self.concern(record).has(domain);
        let kept = self.shared.borrow();
        kept.iter().all(|(domain, kept)| **kept == self.shared_with(domain))
            && self.entries.all().all(|entry| kept.keys().all(|domain| is_one(&entry.record, domain)))
    }

    #[cfg(test)]
    pub(super) fn looked_at_anew(mut self) -> Self {
        self.unshare_all();
        self
    }
}
