//! The desk of a broker: all that its decisions stand on, as the book and this host know it.

use std::{collections::BTreeMap, time::Instant};

use rebec_api::ApiError;
use rebec_book::{
    Book, Key,
    contract::{Contract, Side, State, What},
    contracts,
    key::Id,
    record::SeenState,
    view,
};
use rebec_host::{disks, failed, lock};
use rebec_pool::{
    candidates,
    place::{Want, choose},
    trade::{
        broker::{Advert, Desk, Guest, Held, Machine},
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
            let held = held(book, &self.peers, &mut seen, &wasted, me, now);
            let names = view::domains(book).into_iter().map(|domain| (domain.body.key, domain.name)).collect();
            (Desk { now, me, policy, told, machines: machines(book, &self.peers, me), held, names }, adverts(book, &self.peers, me))
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
    for vm in view::vms(book) {
        let at = view::holder(book, vm.id).map(|at| at.host);
        let to = view::seen(book, vm.id).and_then(|seen| if is_there(seen.body.state) { seen.body.to } else { None });
        let runs_there = view::seen(book, vm.id).is_none_or(|seen| is_there(seen.body.state));
        for host in at.into_iter().filter(|_| runs_there).chain(to) {
            let counts = runs.entry(host).or_default();
            let count = if book.domain_of(&vm.home) == Some(me) { &mut counts.0 } else { &mut counts.1 };
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

fn is_there(state: SeenState) -> bool {
    !matches!(state, SeenState::Stopped | SeenState::Failed | SeenState::Left)
}

/// Contracts of the domain about which there is something to do.
fn held(book: &Book, peers: &Peers, seen: &mut Seen, wasted: &BTreeMap<Id, u64>, me: Key, now: u64) -> Vec<Held> {
    let mut all = vec![];
    for (id, contract) in contracts::all(book) {
        let (terms, standing) = (contract.terms(), contract.standing(now));
        let Some(side) = terms.side(&me) else { continue };
        if standing.state == State::Lapsed {
            continue;
        }
        let there = contracts::guests(book, &terms.host, &terms.borrower);
        let is_over = standing.state == State::Ended && contract.word(side, What::Ended).is_some();
        if is_over && there.is_empty() {
            continue;
        }
        // What is under a contract that came later is not under this one.
        let binds = contracts::binding(book, &terms.host, now).is_none_or(|(binding, _)| binding == id);
        let guests = if binds { there.into_iter().filter_map(|vm| guest(book, peers, side, &contract, vm, now)).collect() } else { vec![] };
        let called_back = contract.recall().is_some();
        let recalled_s = if called_back { seen.recalled.entry(id).or_insert_with(Instant::now).elapsed().as_secs() } else { 0 };
        all.push(Held { id, guests, recalled_s, wasted_s: wasted.get(&id).copied().unwrap_or(0), contract });
    }
    seen.recalled.retain(|id, _| all.iter().any(|held| held.id == *id));
    all
}

/// A VM that runs under a contract; where it would go, if its owner asks.
fn guest(book: &Book, peers: &Peers, side: Side, contract: &Contract, id: Id, now: u64) -> Option<Guest> {
    let vm = view::vm(book, id)?;
    let name = vm.name.clone();
    if side == Side::Lender {
        return Some(Guest { id, name, place: Err("that is for its owner to say".into()) });
    }
    if let Some(to) = view::seen(book, id).and_then(|seen| seen.body.to) {
        return Some(Guest { id, name, place: Err(format!("it is on its way to host {}", to.short())) });
    }
    let mut hosts = plan::candidates(peers, book);
    plan::close(book, &mut hosts, &vm.home, Some(id), vm.body, now);
    let home_domain = book.domain_of(&vm.home);
    let want = Want {
        memory_bytes: vm.body.memory_bytes,
        disk_bytes: disks::promised_bytes(vm.body),
        lans: !vm.body.nics.is_empty(),
        leaves: Some(contract.terms().host),
        parts: vm.body.image.parts().map(|part| part.digest).collect(),
        home_domain,
        donors: candidates::donors(book, &vm.home, id, &vm.body.image),
        ..Want::default()
    };
    // Home before a third place; there only by a contract of its own.
    let by_contract = |host: &rebec_pool::place::Candidate| {
        Some(host.domain) == home_domain || contracts::broker(book, &host.domain).is_some_and(|broker| broker.by_contract)
    };
    hosts.retain(by_contract);
    let place = choose(&want, &hosts).map(|choice| (choice.key, format!("host {}, {}", choice.name, choice.reason)));
    Some(Guest { id, name, place: place.map_err(|refusals| refusals.join("; ")) })
}
