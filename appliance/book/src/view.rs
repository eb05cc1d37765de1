//! The book as people see it: hosts, LANs, images and VMs by the names that they have here ([`crate::names`]). Only what members of
//! the pool wrote is seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    book::{Book, Thing},
    gossip::message::Vitals,
    grant::{self, Grant},
    key::{Digest, Id, Key, id_of_key},
    record::{Assigned, Body, DomainBody, HostBody, ImageBody, Kind, LanBody, MemberBody, SeenBody, SeenState, VmBody},
};

/// A domain of the pool.
#[derive(Debug, Clone)]
pub struct DomainView<'a> {
    /// Its shown name.
    pub name: String,
    /// Its record.
    pub body: &'a DomainBody,
}

/// A host of the pool.
#[derive(Debug, Clone)]
pub struct HostView<'a> {
    /// Its key.
    pub key: Key,
    /// Its shown name.
    pub name: String,
    /// Its domain's root key.
    pub domain: Key,
    /// Its membership.
    pub member: &'a MemberBody,
    /// Its facts.
    pub body: &'a HostBody,
}

/// Something with an id, a home host and a name: a LAN, an image, a VM.
#[derive(Debug, Clone)]
pub struct Named<'a, B> {
    /// Its id.
    pub id: Id,
    /// The host that writes its record.
    pub home: Key,
    /// Its shown name.
    pub name: String,
    /// Its record.
    pub body: &'a B,
}

/// What is known of where a VM is.
#[derive(Debug, Clone, Copy)]
pub struct SeenView<'a> {
    /// The host that holds its epoch.
    pub holder: Key,
    /// What it says.
    pub body: &'a SeenBody,
}

/// The pool's name, once it is known.
pub fn pool_name(book: &Book) -> Option<&str> {
    book.of_kind(Kind::POOL).find_map(|record| match &record.body {
        Some(Body::Pool(pool)) if record.key.writer == book.pool() => Some(pool.name.as_str()),
        _ => None,
    })
}

/// The domains, by name.
pub fn domains(book: &Book) -> Vec<DomainView<'_>> {
    let bodies = book.of_kind(Kind::DOMAIN).filter_map(|record| match &record.body {
        Some(Body::Domain(body)) if book.is_domain(&body.key) => Some((record.key, body)),
        _ => None,
    });
    let named = bodies.map(|(key, body)| {
        let thing = Thing { id: key.id, home: key.writer, domain: Some(body.key) };
        DomainView { name: book.shown(Kind::DOMAIN, &body.name, &thing), body }
    });
    sorted(named.collect(), |domain| &domain.name)
}

/// The hosts, by name.
pub fn hosts(book: &Book) -> Vec<HostView<'_>> {
    sorted(book.speakers().filter_map(|key| host(book, &key)).collect(), |host| &host.name)
}

/// One host.
pub fn host<'a>(book: &'a Book, key: &Key) -> Option<HostView<'a>> {
    let (domain, member) = book.membership(key)?;
    let thing = Thing { id: id_of_key(key), home: *key, domain: Some(domain) };
    Some(HostView { key: *key, name: book.shown(Kind::MEMBER, &member.name, &thing), domain, member, body: book.host(key)? })
}

/// The parts in a host's depot.
pub fn parts<'a>(book: &'a Book, host: &Key) -> impl Iterator<Item = &'a Digest> {
    let host = *host;
    (0..)
        .map_while(move |number| match book.get(Kind::PARTS, parts_id(number), host) {
            Some(Body::Parts(parts)) => Some(&parts.digests),
            _ => None,
        })
        .flatten()
}

/// The id of one of the records in which a host says what is in its depot.
pub fn parts_id(number: u16) -> Id {
    let mut id = [0; 16];
    id[14..].copy_from_slice(&number.to_be_bytes());
    crate::key::Name(id)
}

/// The LANs, by name.
pub fn lans(book: &Book) -> Vec<Named<'_, LanBody>> {
    named(book, Kind::LAN, |body| if let Body::Lan(lan) = body { Some((&**lan, lan.name.as_str())) } else { None })
}

/// The images, by name.
pub fn images(book: &Book) -> Vec<Named<'_, ImageBody>> {
    named(book, Kind::IMAGE, |body| if let Body::Image(image) = body { Some((&**image, image.name.as_str())) } else { None })
}

/// The parts of all images, and of all VMs.
pub fn needed(book: &Book) -> BTreeSet<Digest> {
    let images = images(book).into_iter().flat_map(|image| image.body.parts());
    let vms = vms(book).into_iter().flat_map(|vm| vm.body.image.parts());
    images.chain(vms).map(|part| part.digest).collect()
}

/// The VMs, by name.
pub fn vms(book: &Book) -> Vec<Named<'_, VmBody>> {
    named(book, Kind::VM, |body| if let Body::Vm(vm) = body { Some((&**vm, vm.name.as_str())) } else { None })
}

/// One VM.
pub fn vm(book: &Book, id: Id) -> Option<Named<'_, VmBody>> {
    let thing = book.thing(Kind::VM, id)?;
    let Some(Body::Vm(body)) = book.get(Kind::VM, id, thing.home) else { return None };
    Some(Named { id, home: thing.home, name: book.shown(Kind::VM, &body.name, &thing), body })
}

/// The host that has a VM started elsewhere when its host is lost: one of its home's domain, whatever the record says.
pub fn keeper(book: &Book, vm: Id) -> Option<Key> {
    let home = book.thing(Kind::VM, vm)?.domain?;
    vm_body(book, vm)?.keeper.filter(|keeper| book.domain_of(keeper) == Some(home))
}

/// One VM's record.
pub fn vm_body(book: &Book, id: Id) -> Option<&VmBody> {
    book.about(Kind::VM, id).find_map(|record| match &record.body {
        Some(Body::Vm(body)) if book.is_member(&record.key.writer) => Some(&**body),
        _ => None,
    })
}

/// Who holds a VM, by proof: where nobody has started it yet, whom its home assigned it to.
pub fn holder(book: &Book, vm: Id) -> Option<Assigned> {
    way(book, vm, |_| true).map(|(at, _)| at)
}

/// The way of a VM to who holds it, by what the wanted hosts say.
pub fn way(book: &Book, vm: Id, wanted: impl Fn(&Key) -> bool) -> Option<(Assigned, Vec<&Grant>)> {
    Some(way_of(book, vm, vm_body(book, vm)?, wanted))
}

fn way_of<'a>(book: &'a Book, vm: Id, body: &VmBody, wanted: impl Fn(&Key) -> bool) -> (Assigned, Vec<&'a Grant>) {
    let grants: Vec<&Grant> = claims(book, vm).filter(|(host, _)| wanted(host)).flat_map(|(_, seen)| &seen.grants).collect();
    grant::way(body.assigned, body.keeper, &grants)
}

/// What hosts say of a VM.
pub fn claims(book: &Book, vm: Id) -> impl Iterator<Item = (Key, &SeenBody)> {
    book.about(Kind::SEEN, vm).filter_map(|record| match &record.body {
        Some(Body::Seen(body)) => Some((record.key.writer, &**body)),
        _ => None,
    })
}

/// What the host that holds a VM says of it. Before it has said anything, what the one says that granted it; none before anybody has.
pub fn seen(book: &Book, vm: Id) -> Option<SeenView<'_>> {
    let body = vm_body(book, vm)?;
    let (assigned, (_, way)) = (body.assigned, way_of(book, vm, body, |_| true));
    let places = way.iter().rev().map(|grant| (grant.to, grant.epoch)).chain([(assigned.host, assigned.epoch)]);
    places.filter_map(|(host, epoch)| said(book, vm, host, epoch)).next()
}

/// What a host says of a VM that it has at this epoch, or had at it.
fn said(book: &Book, vm: Id, host: Key, epoch: u64) -> Option<SeenView<'_>> {
    match book.get(Kind::SEEN, vm, host) {
        Some(Body::Seen(body)) if body.epoch >= epoch => Some(SeenView { holder: host, body }),
        _ => None,
    }
}

/// What the VMs of a host come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// How many it holds, also those that do not run.
    pub vms: u32,
    /// Memory of those that run or are about to.
    pub memory_bytes: u64,
}

impl Load {
    /// Of a host of another domain, of whose VMs few are known here: what it says itself, where that is more.
    pub fn with(self, vitals: &Vitals) -> Self {
        Self { vms: self.vms.max(vitals.vms), memory_bytes: self.memory_bytes.max(u64::from(vitals.memory_used_mib) << 20) }
    }
}

/// What each host that holds VMs bears.
pub fn loads(book: &Book) -> BTreeMap<Key, Load> {
    let mut loads: BTreeMap<Key, Load> = BTreeMap::new();
    // Once, however many write of it. That of a later version takes room too.
    let mut vms: Vec<Id> = book.of_kind(Kind::VM).filter(|record| record.body.is_some()).map(|record| record.key.id).collect();
    vms.dedup();
    for vm in vms {
        let Some(seen) = seen(book, vm) else { continue };
        let load = loads.entry(seen.holder).or_default();
        load.vms += 1;
        if !matches!(seen.body.state, SeenState::Stopped | SeenState::Failed | SeenState::Left) {
            load.memory_bytes = load.memory_bytes.saturating_add(seen.body.memory_bytes);
        }
    }
    loads
}

fn named<'a, B>(book: &'a Book, kind: Kind, take: impl Fn(&'a Body) -> Option<(&'a B, &'a str)>) -> Vec<Named<'a, B>> {
    let found = book.of_kind(kind).filter_map(|record| {
        let (body, name) = record.body.as_ref().and_then(&take)?;
        let thing = Thing { id: record.key.id, home: record.key.writer, domain: Some(book.domain_of(&record.key.writer)?) };
        Some(Named { id: thing.id, home: thing.home, name: book.shown(kind, name, &thing), body })
    });
    sorted(found.collect(), |one| &one.name)
}

fn sorted<T>(mut all: Vec<T>, name: impl Fn(&T) -> &String) -> Vec<T> {
    all.sort_by(|a, b| name(a).cmp(name(b)));
    all
}
