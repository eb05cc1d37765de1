//! Scope: a record travels to whom it concerns, and no further. Decided here and nowhere else.
//!
//! | record | concerns, beside the domain of its writer |
//! |---|---|
//! | who belongs to the pool and where it is (kinds up to Host), and that something is gone | everybody |
//! | a VM, and what is said of it | its home; domains whose hosts have it, had it on its way since its home assigned it, or are to have it; whose hosts say something of it; that have a part in a LAN that it is on |
//! | a LAN | domains that it is shared with; of VMs that its home lets be on it the homes', and those whose hosts have such a VM, had it on its way, or are to have it |
//! | an image | domains that it is shared with |
//! | a contract | the two domains, once both have signed it |
//! | the rest, also what this version does not know | nobody |
//!
//! Who has a VM is what is proved. Who only says something of it is told of that VM and of nothing beside it: it knows the id, which nobody
//! guesses, and so hears until it has withdrawn its word how the VM went on. Both sides decide by what both have: hosts of one domain
//! compare all that concerns it, hosts of two what each shares with the other, and of third domains what is everybody's ([`Lens`]). What
//! concerned a domain once and does no more is not compared, and goes ([`Book::unconcerned`]).

use super::*;
use crate::grant::{self, Grant};
use crate::lan;
use crate::record::{LanBody, VmBody};

/// Which other domains have a part in what. What only its own domain has a part in is not here.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    /// By proof, each with its home's domain.
    lent: BTreeMap<Id, BTreeSet<Key>>,
    /// The same, and those that say something of it.
    pub(super) vms: BTreeMap<Id, BTreeSet<Key>>,
    pub(super) lans: BTreeMap<Id, BTreeSet<Key>>,
    pub(super) images: BTreeMap<Id, BTreeSet<Key>>,
    pub(super) contracts: BTreeMap<Id, BTreeSet<Key>>,
}

/// Whom a record concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concern {
    /// Every host of the pool.
    Everybody,
    /// Hosts of these domains.
    Domains(BTreeSet<Key>),
}

impl Concern {
    /// Whether a domain is among them.
    pub fn has(&self, domain: &Key) -> bool {
        match self {
            Self::Everybody => true,
            Self::Domains(domains) => domains.contains(domain),
        }
    }
}

/// What a book is to another host with which it is compared.
#[derive(Debug, Clone)]
pub struct Lens {
    own: Option<Key>,
    other: Option<Key>,
    /// With the own domain, of others.
    with_own: Arc<Shared>,
    /// With the other host's domain, of others.
    with_other: Arc<Shared>,
}

/// What of one group.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sight<'a> {
    All,
    Public,
    Shared(&'a Arc<Shared>),
}

impl Lens {
    pub(super) fn sight(&self, book: &Book, group: &Key) -> Sight<'_> {
        let (is_own, is_other) = (self.own == Some(*group), self.other == Some(*group));
        match () {
            // A book that nobody reads is compared whole.
            () if book.own.is_none() || *group == book.pool || is_own && is_other => Sight::All,
            () if is_own => Sight::Shared(&self.with_other),
            () if is_other || self.own.is_some() && self.own == self.other => Sight::Shared(&self.with_own),
            () => Sight::Public,
        }
    }
}

impl Sight<'_> {
    pub(super) fn shows(&self, entry: &Entry) -> bool {
        let Record { key, seq, .. } = &entry.record;
        match self {
            Self::All => true,
            Self::Public => is_public(&entry.record),
            Self::Shared(shared) => is_public(&entry.record) || shared.of(&key.writer).is_some_and(|of| of.has(*seq)),
        }
    }

    /// How far a log is known, and what is in it.
    pub(super) fn of(&self, writer: &Key, log: &Log) -> (u64, u64) {
        let shared = match self {
            Self::All => return (log.head, log.mark),
            Self::Public => None,
            Self::Shared(shared) => shared.of(writer),
        };
        let Some(shared) = shared else { return (log.public_head, log.public_mark) };
        (shared.head(log.head).max(log.public_head), log.public_mark ^ shared.mark)
    }
}

/// Whether a record is everybody's: who there is, and that something is gone, of which no more than the id is told.
pub(super) fn is_public(record: &Record) -> bool {
    record.key.kind <= Kind::HOST || record.body.is_none()
}

impl Book {
    /// Whom a record concerns.
    pub fn concern(&self, record: &Record) -> Concern {
        if is_public(record) {
            return Concern::Everybody;
        }
        let id = record.key.id;
        let mut domains = match record.key.kind {
            Kind::VM | Kind::SEEN => self.vm_concerns(id),
            Kind::LAN => self.scope.lans.get(&id).cloned().unwrap_or_default(),
            Kind::IMAGE => self.scope.images.get(&id).cloned().unwrap_or_default(),
            Kind::CONTRACT => self.scope.contracts.get(&id).cloned().unwrap_or_default(),
            _ => BTreeSet::new(),
        };
        domains.extend(self.domain_of(&record.key.writer));
        Concern::Domains(domains)
    }

    /// Whether a domain is among those whom a record concerns.
    pub fn concerns(&self, record: &Record, domain: &Key) -> bool {
        let id = record.key.id;
        let has = |of: &BTreeMap<Id, BTreeSet<Key>>, id: Id| of.get(&id).is_some_and(|domains| domains.contains(domain));
        let by_lan = || {
            let (_, body) = self.vm_body(id)?;
            body.nics.iter().find(|nic| has(&self.scope.lans, nic.lan))
        };
        let is_told = || match record.key.kind {
            Kind::VM | Kind::SEEN => has(&self.scope.vms, id) || !self.scope.lans.is_empty() && by_lan().is_some(),
            Kind::LAN => has(&self.scope.lans, id),
            Kind::IMAGE => has(&self.scope.images, id),
            Kind::CONTRACT => has(&self.scope.contracts, id),
            _ => false,
        };
        is_public(record) || self.domain_of(&record.key.writer) == Some(*domain) || is_told()
    }

    /// The concern of a writer's record of this number, if it is here.
    pub fn concern_of(&self, writer: &Key, seq: u64) -> Option<Concern> {
        let log = self.logs.get(writer)?;
        log.from(seq).first().filter(|entry| entry.record.seq == seq).map(|entry| self.concern(&entry.record))
    }

    /// What is compared with a host of that domain; none where it has not said to which it belongs.
    pub fn lens(&self, other: Option<Key>) -> Lens {
        let own = self.own_domain();
        let with = |domain: Option<Key>| domain.map(|domain| self.known_shared_with(&domain)).unwrap_or_default();
        let with_other = if other == own { Arc::default() } else { with(other) };
        Lens { own, other, with_own: with(own), with_other }
    }

    /// Whether a host with that lens may be told a writer's record of this number.
    pub fn shows(&self, lens: &Lens, writer: &Key, seq: u64) -> bool {
        let Some(log) = self.logs.get(writer) else { return false };
        let sight = lens.sight(self, &log.group);
        log.from(seq).first().is_some_and(|entry| entry.record.seq == seq && sight.shows(entry))
    }

    /// Records of other domains that do not concern this one: they did, or somebody sent them.
    pub fn unconcerned(&self) -> Vec<RecordKey> {
        let Some(own) = self.own_domain() else { return vec![] };
        let others = self.logs.values().filter(|log| log.private > 0 && log.domain.is_some_and(|domain| domain != own));
        let private = others.flat_map(|log| &log.by_seq).map(|entry| &entry.record).filter(|record| !is_public(record));
        private.filter(|record| !self.concerns(record, &own)).map(|record| record.key).collect()
    }

    /// Drops records, as if they had never come.
    pub fn forget(&mut self, keys: &[RecordKey]) {
        for key in keys {
            let before = self.remove(key);
            self.rescope(key, before.as_deref().map(|entry| &entry.record));
        }
    }

    fn vm_concerns(&self, vm: Id) -> BTreeSet<Key> {
        let mut domains = self.scope.vms.get(&vm).cloned().unwrap_or_default();
        if !self.scope.lans.is_empty()
            && let Some((_, body)) = self.vm_body(vm)
        {
            domains.extend(body.nics.iter().filter_map(|nic| self.scope.lans.get(&nic.lan)).flatten());
        }
        domains
    }

    fn vm_body(&self, vm: Id) -> Option<(Key, &VmBody)> {
        self.about(Kind::VM, vm).find_map(|record| match &record.body {
            Some(Body::Vm(body)) if self.is_member(&record.key.writer) => Some((record.key.writer, &**body)),
            _ => None,
        })
    }

    /// Finds out anew who has a part in what a record is about.
    pub(super) fn rescope(&mut self, key: &RecordKey, before: Option<&Record>) {
        match key.kind {
            Kind::VM | Kind::SEEN => self.rescope_vm(key, before.into_iter().flat_map(lans_of).collect()),
            Kind::LAN => self.rescope_lan(key.id),
            Kind::IMAGE => self.rescope_image(key.id),
            Kind::CONTRACT => self.rescope_contract(key.id),
            _ => {}
        }
    }

    /// The same of everything: hosts may belong to other domains now.
    pub(super) fn rescope_all(&mut self) {
        self.scope = Scope::default();
        self.unshare_all();
        let ids = |book: &Self, kind| book.of_kind(kind).map(|record| record.key.id).collect::<BTreeSet<Id>>();
        for vm in ids(self, Kind::VM) {
            let (parties, claimants) = self.parties(vm);
            self.set(|scope| &mut scope.vms, vm, parties.union(&claimants).copied().collect());
            self.set(|scope| &mut scope.lent, vm, parties);
        }
        for lan in ids(self, Kind::LAN) {
            self.rescope_lan(lan);
        }
        for image in ids(self, Kind::IMAGE) {
            self.rescope_image(image);
        }
        for contract in ids(self, Kind::CONTRACT) {
            self.rescope_contract(contract);
        }
    }

    /// `lans`: those that the VM was on.
    fn rescope_vm(&mut self, key: &RecordKey, mut lans: BTreeSet<Id>) {
        let (parties, claimants) = self.parties(key.id);
        let before = self.scope.lent.get(&key.id).cloned().unwrap_or_default();
        let has_shrunk = !before.is_subset(&parties) || !lans.is_empty();
        lans.extend(self.vm_body(key.id).into_iter().flat_map(|(_, body)| body.nics.iter().map(|nic| nic.lan)));
        self.set(|scope| &mut scope.vms, key.id, parties.union(&claimants).copied().collect());
        self.set(|scope| &mut scope.lent, key.id, parties.clone());
        if key.kind == Kind::VM || before != parties && (has_shrunk || parties.len() > 1) {
            for lan in lans {
                let known = self.scope.lans.get(&lan);
                let home = || self.thing(Kind::LAN, lan).and_then(|thing| thing.domain);
                let is_known = known.map_or_else(|| parties.iter().eq(home().iter()), |known| parties.is_subset(known));
                if has_shrunk || !is_known {
                    self.rescope_lan(lan);
                }
            }
        }
    }

    fn rescope_lan(&mut self, lan: Id) {
        let mut domains = BTreeSet::new();
        if let Some(thing) = self.thing(Kind::LAN, lan)
            && let Some(Body::Lan(body)) = self.get(Kind::LAN, lan, thing.home)
        {
            domains.extend(thing.domain.into_iter().chain(body.domains.iter().copied()));
            domains.extend(self.on_lan(lan).filter(|record| has_a_place(lan, body, record)).flat_map(|record| {
                let lent = self.scope.lent.get(&record.key.id);
                lent.into_iter().flatten().copied().chain(self.domain_of(&record.key.writer))
            }));
        }
        self.set(|scope| &mut scope.lans, lan, domains);
    }

    fn rescope_image(&mut self, image: Id) {
        let mut domains = BTreeSet::new();
        if let Some(thing) = self.thing(Kind::IMAGE, image)
            && let Some(Body::Image(body)) = self.get(Kind::IMAGE, image, thing.home)
        {
            domains.extend(thing.domain.into_iter().chain(body.domains.iter().copied()));
        }
        self.set(|scope| &mut scope.images, image, domains);
    }

    /// Both have signed what one record says: a proposal is told by who makes it, and to nobody by the gossip.
    fn rescope_contract(&mut self, contract: Id) {
        let signed = self.about(Kind::CONTRACT, contract).find_map(|record| match &record.body {
            Some(Body::Contract(contract)) if contract.is_signed() => Some([contract.terms().lender, contract.terms().borrower]),
            _ => None,
        });
        self.set(|scope| &mut scope.contracts, contract, signed.into_iter().flatten().collect());
    }

    /// What only one domain has a part in is not kept.
    fn set(&mut self, which: impl Fn(&mut Scope) -> &mut BTreeMap<Id, BTreeSet<Key>>, id: Id, domains: BTreeSet<Key>) {
        let of = which(&mut self.scope);
        let domains = if domains.len() > 1 { domains } else { BTreeSet::new() };
        let before = of.remove(&id).unwrap_or_default();
        let changed: Vec<Key> = before.symmetric_difference(&domains).copied().collect();
        if !domains.is_empty() {
            of.insert(id, domains);
        }
        self.unshare(&changed);
    }

    /// Domains that have a part in a VM: its home's, and those of hosts on its way, as far as that is proved. And those whose hosts say
    /// something of it.
    fn parties(&self, vm: Id) -> (BTreeSet<Key>, BTreeSet<Key>) {
        let Some((home, body)) = self.vm_body(vm) else { return Default::default() };
        let claims = || {
            self.about(Kind::SEEN, vm).filter_map(|record| match &record.body {
                Some(Body::Seen(seen)) => Some((record.key.writer, &**seen)),
                _ => None,
            })
        };
        let grants: Vec<&Grant> = claims().flat_map(|(_, seen)| &seen.grants).collect();
        let (at, way) = grant::way(body.assigned, body.keeper, &grants);
        let to = claims().find(|(host, _)| *host == at.host).and_then(|(_, seen)| seen.to);
        let hosts = way.into_iter().map(|grant| grant.to).chain([home, body.assigned.host]).chain(to);
        let claimants = claims().filter_map(|(host, _)| self.domain_of(&host)).collect();
        (hosts.filter_map(|host| self.domain_of(&host)).collect(), claimants)
    }
}

/// Whether a VM's home may have it on a LAN.
fn has_a_place(id: Id, lan: &LanBody, vm: &Record) -> bool {
    let nics = if let Some(Body::Vm(body)) = &vm.body { &body.nics[..] } else { &[] };
    nics.iter().any(|nic| nic.lan == id && lan::admits(lan, &vm.key.writer, nic))
}

#[cfg(test)]
mod tests;
