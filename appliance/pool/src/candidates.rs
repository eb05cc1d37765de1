//! The hosts of a pool as far as placing a VM goes, by what is known of them.

use std::collections::BTreeMap;

use rebec_book::{
    Book, Key,
    gossip::message::Vitals,
    key::Id,
    record::{ImageBody, SeenState},
    view,
};

use crate::place::Candidate;

/// How a host is by now: whether it answers, and what it says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Whether it answers.
    pub answers: bool,
    /// Its own word.
    pub vitals: Vitals,
}

/// Every host of the pool that was not declared dead.
pub fn candidates(book: &Book, now: impl Fn(&Key) -> Now) -> Vec<Candidate> {
    let (loads, own): (BTreeMap<Key, view::Load>, _) = (view::loads(book), book.own_domain());
    let hosts = view::hosts(book).into_iter().filter(|host| host.member.dead.is_none());
    let candidates = hosts.map(|host| {
        let (body, Now { answers, vitals }) = (host.body, now(&host.key));
        let load = loads.get(&host.key).copied().unwrap_or_default();
        let memory_used_bytes = if own == Some(host.domain) { load.memory_bytes } else { load.with(&vitals).memory_bytes };
        let parts = view::parts(book, &host.key).copied().collect();
        Candidate {
            key: host.key,
            name: host.name,
            domain: host.domain,
            answers,
            draining: body.draining,
            durable: body.durable,
            no_kvm: body.no_kvm.clone(),
            underlay: body.underlay.is_some(),
            memory_free_bytes: body.memory_bytes.saturating_sub(memory_used_bytes),
            disk_free_bytes: body.disk_bytes.saturating_sub(u64::from(vitals.disk_used_mib) << 20),
            parts,
            cpu: body.cpu.as_ref().and_then(|cpu| cpu.parse().ok()),
            closed: None,
        }
    });
    candidates.collect()
}

/// Hosts of running VMs of the same home and image, which lend to a VM that arrives beside them.
pub fn donors(book: &Book, home: &Key, moving: Id, image: &ImageBody) -> Vec<Key> {
    let vms = view::vms(book);
    let alike = vms.iter().filter(|vm| vm.home == *home && vm.id != moving && vm.body.image == *image);
    let seen = alike.filter_map(|vm| view::seen(book, vm.id)).filter(|seen| seen.body.state == SeenState::Running);
    seen.map(|seen| seen.holder).collect()
}

/// The domain that a VM stays in where nobody says otherwise: its home's, if that is this host's own.
pub fn stays_in(book: &Book, home: &Key) -> Option<Key> {
    book.own_domain().filter(|own| book.domain_of(home) == Some(*own))
}
