//! What a plan is made from: the hosts and what is where, laid once.

use std::collections::BTreeMap;

use rebec_book::{
    Book, Key,
    census::{self, Whereabouts},
    contracts::Standings,
    gossip::message::Vitals,
    key::{Digest, Id},
    record::{ImageBody, Kind, SeenState, VmBody, id_of_key},
    view,
};
use rebec_cpu::Features;

use super::Want;

/// A host, as far as placing goes.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its key.
    pub key: Key,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: Key,
    /// The number of the record that it wrote of itself.
    pub seq: u64,
    /// Whether it answers.
    pub answers: bool,
    /// Whether it is being emptied.
    pub draining: bool,
    /// Whether its state survives a reboot.
    pub durable: bool,
    /// Why no VM can run there.
    pub no_kvm: Option<String>,
    /// Whether it has an address for ports of LANs.
    pub underlay: bool,
    /// Memory that is left.
    pub memory_free_bytes: u64,
    /// Room that is left.
    pub disk_free_bytes: u64,
    /// Parts in its depot.
    pub parts: Vec<Digest>,
    /// What it gives guests of its processor, where it says so.
    pub cpu: Option<Features>,
    /// Its labels.
    pub labels: Vec<String>,
}

/// How a host is by now: whether it answers, and what it says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Whether it answers.
    pub answers: bool,
    /// Its own word.
    pub vitals: Vitals,
}

/// All that a plan stands on.
#[derive(Debug, Clone)]
pub struct World<'a> {
    pub(super) book: &'a Book,
    pub(super) hosts: Vec<Candidate>,
    pub(super) by_key: BTreeMap<Key, usize>,
    /// Hosts of each domain.
    pub(super) domains: BTreeMap<Key, Vec<usize>>,
    /// Hosts that are lent to a domain.
    pub(super) lent_to: BTreeMap<Key, Vec<usize>>,
    /// Hosts of domains that lend without contracts.
    pub(super) open: Vec<usize>,
    /// Whether a contract binds a host.
    pub(super) bound: Vec<bool>,
    /// Whether its domain lends by contract alone.
    pub(super) by_contract: Vec<bool>,
    pub(super) contracts: Standings<'a>,
    /// In the order of their ids.
    pub(super) vms: Vec<There<'a>>,
    /// Within their home's domain.
    by_label: BTreeMap<Key, BTreeMap<&'a str, Vec<usize>>>,
    /// Those that stay apart from others, by host.
    pub(super) shy: Vec<Vec<usize>>,
    /// Memory that hosts say is taken.
    told: Vec<u64>,
    /// What disks of a VM are promised on a host, as hosts reckon.
    promises: fn(&VmBody) -> u64,
    /// In which domains members of a LAN are.
    lans: BTreeMap<Id, BTreeMap<Key, u32>>,
}

/// A VM that is somewhere.
#[derive(Debug, Clone)]
pub(super) struct There<'a> {
    pub vm: Whereabouts<'a>,
    /// Where it is or is to be, by place among the hosts.
    pub on: Vec<usize>,
}

impl<'a> World<'a> {
    /// What the book says, and who answers. `promises` is what disks of a VM are promised on a host, as hosts reckon.
    pub fn of(book: &'a Book, now_s: u64, promises: fn(&VmBody) -> u64, soft: impl Fn(&Key) -> Now) -> Self {
        let mut world = Self { promises, ..Self::empty(book, now_s) };
        let own = book.own_domain();
        for host in view::hosts(book).into_iter().filter(|host| host.member.dead.is_none()) {
            let (body, Now { answers, vitals }) = (host.body, soft(&host.key));
            // Of the VMs of another domain's host few are known here: it says itself what they take.
            let told = if own == Some(host.domain) { 0 } else { u64::from(vitals.memory_used_mib) << 20 };
            world.told.push(told);
            world.add(Candidate {
                key: host.key,
                name: host.name,
                domain: host.domain,
                seq: book.seq(Kind::HOST, id_of_key(&host.key), host.key).unwrap_or_default(),
                answers,
                draining: body.draining,
                durable: body.durable,
                no_kvm: body.no_kvm.clone(),
                underlay: body.underlay.is_some(),
                memory_free_bytes: body.memory_bytes,
                disk_free_bytes: body.disk_bytes.saturating_sub(u64::from(vitals.disk_used_mib) << 20),
                parts: view::parts(book, &host.key).copied().collect(),
                cpu: body.cpu.as_ref().and_then(|cpu| cpu.parse().ok()),
                labels: body.labels().to_vec(),
            });
        }
        let mut used = vec![0u64; world.hosts.len()];
        for vm in census::all(book) {
            for (host, bytes) in vm.takes_room() {
                if let Some(place) = world.by_key.get(&host) {
                    used[*place] = used[*place].saturating_add(bytes);
                }
            }
            world.put(vm);
        }
        for ((host, used), told) in world.hosts.iter_mut().zip(used).zip(&world.told) {
            host.memory_free_bytes = host.memory_free_bytes.saturating_sub(used.max(*told));
        }
        world
    }

    /// A world without hosts.
    pub fn empty(book: &'a Book, now_s: u64) -> Self {
        let contracts = Standings::of(book, now_s);
        let (hosts, by_key, domains, lent_to, open, bound, by_contract, vms, by_label, shy, told, lans) = Default::default();
        let promises = |_: &VmBody| 0;
        Self { book, hosts, by_key, domains, lent_to, open, bound, by_contract, contracts, vms, by_label, shy, told, promises, lans }
    }

    /// One host more.
    pub fn add(&mut self, mut host: Candidate) {
        host.parts.sort_unstable();
        let place = self.hosts.len();
        self.by_key.insert(host.key, place);
        self.domains.entry(host.domain).or_default().push(place);
        self.by_contract.push(self.contracts.by_contract(&host.domain));
        self.bound.push(self.contracts.binding(&host.key).is_some());
        match self.contracts.binding(&host.key) {
            Some((_, contract)) => self.lent_to.entry(contract.terms().borrower).or_default().push(place),
            None if !self.contracts.by_contract(&host.domain) => self.open.push(place),
            None => {}
        }
        self.hosts.push(host);
        self.shy.push(vec![]);
    }

    /// One VM more, whose room is taken already.
    fn put(&mut self, vm: Whereabouts<'a>) {
        self.contracts.count_vm(&vm);
        let place = self.vms.len();
        let on: Vec<usize> = vm.is_on().filter_map(|host| self.by_key.get(&host).copied()).collect();
        for label in vm.body.labels() {
            self.by_label.entry(vm.domain).or_default().entry(label).or_default().push(place);
        }
        if vm.body.placing.as_ref().is_some_and(|placing| !placing.apart.is_empty()) {
            on.iter().for_each(|host| self.shy[*host].push(place));
        }
        for nic in &vm.body.nics {
            let domains = self.lans.entry(nic.lan).or_default();
            for host in &on {
                *domains.entry(self.hosts[*host].domain).or_default() += 1;
            }
        }
        self.vms.push(There { vm, on });
    }

    /// The domain of a host.
    pub fn domain_of(&self, host: &Key) -> Option<Key> {
        self.book.domain_of(host)
    }

    /// What a VM that is somewhere needs.
    pub fn want_of(&self, vm: Id) -> Option<Want> {
        let there = &self.there(vm)?.vm;
        Some(Want::of(Some(vm), Some(there.domain), there.body, (self.promises)(there.body)))
    }

    /// What a VM of this record would need.
    pub fn want(&self, vm: Option<Id>, home_domain: Option<Key>, body: &VmBody) -> Want {
        Want::of(vm, home_domain, body, (self.promises)(body))
    }

    /// A VM's ownership counter.
    pub(super) fn epoch(&self, vm: Id) -> Option<u64> {
        self.there(vm).map(|there| there.vm.at.epoch)
    }

    fn there(&self, vm: Id) -> Option<&There<'a>> {
        self.vms.binary_search_by_key(&vm, |there| there.vm.id).ok().map(|place| &self.vms[place])
    }

    /// Its hosts.
    pub fn hosts(&self) -> &[Candidate] {
        &self.hosts
    }

    /// Whether anything of a LAN is in a domain.
    pub(super) fn has_members(&self, lan: &Id, domain: &Key) -> bool {
        self.lans.get(lan).is_some_and(|domains| domains.contains_key(domain))
    }

    /// VMs of a domain that a wish means.
    pub(super) fn meant(&self, domain: Option<Key>, vm: Option<Id>, label: Option<&str>) -> impl Iterator<Item = &There<'a>> {
        let one = vm.and_then(|vm| self.there(vm));
        let all = label.zip(domain).and_then(|(label, domain)| self.by_label.get(&domain)?.get(label));
        one.into_iter().chain(all.into_iter().flatten().map(|place| &self.vms[*place]))
    }

    /// Hosts of running VMs of the same home and image, which lend to a VM that arrives beside them.
    pub fn donors(&self, home: &Key, moving: Id, image: &ImageBody) -> Vec<Key> {
        let alike = self.vms.iter().map(|there| &there.vm).filter(|vm| vm.home == *home && vm.id != moving && vm.body.image == *image);
        let running = alike.filter_map(|vm| vm.seen.filter(|seen| seen.body.state == SeenState::Running));
        running.map(|seen| seen.holder).collect()
    }
}
