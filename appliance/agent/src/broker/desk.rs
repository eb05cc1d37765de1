//! The desk of a broker: all that its decisions stand on, as the book and this host know it.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use rebec_api::ApiError;
use rebec_book::{
    Book, Key,
    census::{self, Whereabouts},
    contract::{Side, State, What},
    contracts::{self, Standings},
    key::Id,
    view,
};
use rebec_host::{failed, lock};
use rebec_pool::{
    place::{self, Step, Want},
    trade::{
        broker::{Advert, Desk, Guest, Held, Machine, Place, leaves},
        policy::Policy,
    },
};

use super::{Broker, Seen, WASTED};
use crate::{chance::now_s, orders::plan, peers::Peers};

impl Broker {
    /// Lays the desk of the domain whose broker is here.
    pub(super) fn desk<'a>(&self, me: Key, policy: &'a Policy) -> Result<(Desk<'a>, Vec<Advert>), ApiError> {
        let (now, told) = (now_s(), self.demand()?);
        let wasted: BTreeMap<Id, u64> = self.store.fact(WASTED).map_err(|error| failed(&error))?.unwrap_or_default();
        self.knowledge.pool(|book| {
            let mut seen = lock(&self.seen);
            let mut held = held(book, &mut seen, &wasted, me, now);
            retreats(book, &self.peers, &mut held, me, now);
            let rates = seen.rates(book);
            let names = view::domains(book).into_iter().map(|domain| (domain.body.key, domain.name)).collect();
            (Desk { now, me, policy, told, machines: machines(book, &self.peers, me), held, names, rates }, adverts(book, &self.peers, me))
        })
    }
}

fn adverts(book: &Book, peers: &Peers, me: Key) -> Vec<Advert> {
    let others = view::domains(book).into_iter().map(|domain| domain.body.key).filter(|domain| *domain != me);
    let brokers = others.filter_map(|domain| contracts::broker(book, &domain)).filter(|broker| peers.answers(&broker.host));
    brokers.map(|broker| Advert { lender: broker.domain, machines: broker.machines, reclaim: broker.reclaim.clone() }).collect()
}

/// The machines of the domain, with how many VMs run on each.
fn machines(book: &Book, peers: &Peers, me: Key) -> Vec<Machine> {
    let mut runs: BTreeMap<Key, (u32, u32)> = BTreeMap::new();
    for vm in census::all(book) {
        for host in vm.is_on() {
            let counts = runs.entry(host).or_default();
            let count = if vm.domain == me { &mut counts.0 } else { &mut counts.1 };
            *count += 1;
        }
    }
    let hosts = view::hosts(book).into_iter().filter(|host| host.domain == me && host.member.dead.is_none());
    let machine = |host: view::HostView<'_>| {
        let (own_vms, other_vms) = runs.get(&host.key).copied().unwrap_or_default();
        let no_kvm = || host.body.no_kvm.as_ref().map(|why| format!("cannot run VMs: {why}"));
        let out = match () {
            () if !peers.answers(&host.key) => Some("does not answer".to_owned()),
            () if host.body.draining => Some("is being drained".to_owned()),
            () => no_kvm(),
        };
        let (vcpus, memory_bytes, disk_bytes) = (host.body.cpus, host.body.memory_bytes, host.body.disk_bytes);
        Machine { key: host.key, name: host.name, vcpus, memory_bytes, disk_bytes, out, own_vms, other_vms }
    };
    hosts.map(machine).collect()
}

/// Contracts of the domain about which there is something to do.
fn held(book: &Book, seen: &mut Seen, wasted: &BTreeMap<Id, u64>, me: Key, now: u64) -> Vec<Held> {
    let standings = Standings::of(book, now);
    let mut there: BTreeMap<(Key, Key), Vec<Whereabouts<'_>>> = BTreeMap::new();
    for vm in census::all(book) {
        for host in vm.is_on() {
            there.entry((host, vm.domain)).or_default().push(vm.clone());
        }
    }
    let mut all = vec![];
    for (id, contract) in contracts::all(book) {
        let (terms, standing) = (contract.terms(), contract.standing(now));
        let Some(side) = terms.side(&me) else { continue };
        if standing.state == State::Lapsed {
            continue;
        }
        let there = there.get(&(terms.host, terms.borrower)).map_or(&[][..], Vec::as_slice);
        let is_over = standing.state == State::Ended && contract.word(side, What::Ended).is_some();
        if is_over && there.is_empty() {
            continue;
        }
        // What is under a contract that came later is not under this one.
        let binds = standings.binding(&terms.host).is_none_or(|(binding, _)| binding == id);
        let guests = if binds { there.iter().map(|vm| guest(book, side, vm)).collect() } else { vec![] };
        let called_back = contract.recall().is_some();
        let recalled_s = if called_back { seen.recalled.entry(id).or_insert_with(Instant::now).elapsed().as_secs() } else { 0 };
        all.push(Held { id, guests, recalled_s, wasted_s: wasted.get(&id).copied().unwrap_or(0), contract });
    }
    seen.recalled.retain(|id, _| all.iter().any(|held| held.id == *id));
    all
}

/// A VM that runs under a contract. Where it would go is found where it has to.
fn guest(book: &Book, side: Side, vm: &Whereabouts<'_>) -> Guest {
    let to = vm.seen.and_then(|seen| seen.body.to);
    let places = match (side, to) {
        (Side::Lender, _) => Err("that is for its owner to say".into()),
        (Side::Borrower, Some(to)) => {
            Err(format!("it is on its way to host {}", view::host(book, &to).map_or_else(|| to.short(), |host| host.name)))
        }
        (Side::Borrower, None) => Ok(vec![]),
    };
    let name = view::vm(book, vm.id).map_or_else(|| vm.id.short(), |vm| vm.name);
    Guest { id: vm.id, name, memory_bytes: vm.body.memory_bytes, places }
}

fn told(why: &[Arc<str>]) -> String {
    why.join("; ")
}

/// Finds where VMs go whose machines are wanted back: of each domain that would take them one host. Of one domain no room is promised twice; which domain it
/// is, the broker decides.
fn retreats(book: &Book, peers: &Peers, held: &mut [Held], me: Key, now: u64) {
    let is_borrowed = |held: &Held| held.contract.terms().side(&me) == Some(Side::Borrower) && leaves(&held.contract, now).is_some();
    let mut going: Vec<(&mut Guest, Key)> = vec![];
    for held in held.iter_mut().filter(|held| is_borrowed(held)) {
        let from = held.contract.terms().host;
        going.extend(held.guests.iter_mut().filter(|guest| guest.places.is_ok()).map(|guest| (guest, from)));
    }
    if going.is_empty() {
        return;
    }
    let world = plan::world(peers, book);
    let wants = |domain: Option<Key>| -> Vec<Want> {
        let want = |(guest, from): &(&mut Guest, Key)| Want {
            leaves: Some(*from),
            domain,
            by_contract: true,
            ..world.want_of(guest.id).unwrap_or_default()
        };
        going.iter().map(want).collect()
    };
    let mut found: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
    for domain in view::domains(book).into_iter().map(|domain| domain.body.key) {
        for step in place::plan(&world, &wants(Some(domain)), 0).steps {
            let Step { want, choice, .. } = step;
            found.entry(want).or_default().push(Place { host: choice.key, name: choice.name, domain, reason: choice.reason });
        }
    }
    let refusals: BTreeMap<usize, String> =
        place::plan(&world, &wants(None), 0).refusals.into_iter().map(|no| (no.want, told(&no.why))).collect();
    for (number, (guest, _)) in going.into_iter().enumerate() {
        guest.places = match found.remove(&number) {
            Some(places) => Ok(places),
            None => Err(refusals.get(&number).cloned().unwrap_or_else(|| "no host takes it".to_owned())),
        };
    }
}
