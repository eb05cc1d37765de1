//! The book as people see it: hosts, LANs, images and VMs by name. Where two things of one kind chose one name, each shows
//! the first digits of its key or id behind it, so that a name means one thing.

use std::collections::BTreeMap;

use crate::{
    book::Book,
    key::{Id, Key},
    record::{Body, DomainBody, HostBody, ImageBody, Kind, LanBody, MemberBody, SeenBody, SeenState, VmBody, id_of_key},
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
    /// Its facts; none before it has told them.
    pub body: Option<&'a HostBody>,
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
    book.of_kind(Kind::Pool).find_map(|record| match &record.body {
        Some(Body::Pool(pool)) => Some(pool.name.as_str()),
        _ => None,
    })
}

/// The domains, by name.
pub fn domains(book: &Book) -> Vec<DomainView<'_>> {
    let bodies = book.of_kind(Kind::Domain).filter_map(|record| match &record.body {
        Some(Body::Domain(body)) => Some(body),
        _ => None,
    });
    let found: Vec<_> = bodies.collect();
    let names = shown(found.iter().map(|body| (body.name.as_str(), body.key.short())));
    sorted(found.into_iter().zip(names).map(|(body, name)| DomainView { name, body }).collect(), |domain| &domain.name)
}

/// The hosts, by name.
pub fn hosts(book: &Book) -> Vec<HostView<'_>> {
    let members = book.of_kind(Kind::Member).filter_map(|record| match &record.body {
        Some(Body::Member(member)) if book.is_domain(&record.key.writer) => Some((record.key.writer, member)),
        _ => None,
    });
    let found: Vec<_> = members.collect();
    let names = shown(found.iter().map(|(_, member)| (member.name.as_str(), member.host.short())));
    let hosts = found.into_iter().zip(names).map(|((domain, member), name)| {
        let body = match book.get(Kind::Host, id_of_key(&member.host), member.host) {
            Some(Body::Host(body)) => Some(body),
            _ => None,
        };
        HostView { key: member.host, name, domain, member, body }
    });
    sorted(hosts.collect(), |host| &host.name)
}

/// The LANs, by name.
pub fn lans(book: &Book) -> Vec<Named<'_, LanBody>> {
    named(book, Kind::Lan, |body| if let Body::Lan(lan) = body { Some((lan, lan.name.as_str())) } else { None })
}

/// The images, by name.
pub fn images(book: &Book) -> Vec<Named<'_, ImageBody>> {
    named(book, Kind::Image, |body| if let Body::Image(image) = body { Some((image, image.name.as_str())) } else { None })
}

/// The VMs, by name.
pub fn vms(book: &Book) -> Vec<Named<'_, VmBody>> {
    named(book, Kind::Vm, |body| if let Body::Vm(vm) = body { Some((vm, vm.name.as_str())) } else { None })
}

/// Where a VM is: by the highest epoch that anybody claims.
pub fn seen(book: &Book, vm: Id) -> Option<SeenView<'_>> {
    let claims = book.about(Kind::Seen, vm).filter_map(|record| match &record.body {
        Some(Body::Seen(body)) => Some(SeenView { holder: record.key.writer, body }),
        _ => None,
    });
    claims.max_by_key(|seen| (seen.body.epoch, seen.holder))
}

/// What the VMs of a host come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// How many it holds, also those that do not run.
    pub vms: u32,
    /// Memory of those that run or are about to.
    pub memory_bytes: u64,
}

/// What each host that holds VMs bears.
pub fn loads(book: &Book) -> BTreeMap<Key, Load> {
    let mut loads: BTreeMap<Key, Load> = BTreeMap::new();
    for seen in vms(book).iter().filter_map(|vm| seen(book, vm.id)) {
        let load = loads.entry(seen.holder).or_default();
        load.vms += 1;
        if !matches!(seen.body.state, SeenState::Stopped | SeenState::Failed) {
            load.memory_bytes = load.memory_bytes.saturating_add(seen.body.memory_bytes);
        }
    }
    loads
}

fn named<'a, B>(book: &'a Book, kind: Kind, take: impl Fn(&'a Body) -> Option<(&'a B, &'a str)>) -> Vec<Named<'a, B>> {
    let found: Vec<_> = book
        .of_kind(kind)
        .filter_map(|record| record.body.as_ref().and_then(&take).map(|(body, name)| (record.key.id, record.key.writer, body, name)))
        .collect();
    let names = shown(found.iter().map(|(id, _, _, name)| (*name, id.short())));
    let all = found.into_iter().zip(names).map(|((id, home, body, _), name)| Named { id, home, name, body });
    sorted(all.collect(), |one| &one.name)
}

/// A name that several have gets each one's digits.
fn shown<'a>(names: impl Iterator<Item = (&'a str, String)> + Clone) -> Vec<String> {
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    names.clone().for_each(|(name, _)| *times.entry(name).or_default() += 1);
    names.map(|(name, digits)| if times[name] > 1 { format!("{name}-{digits}") } else { name.to_owned() }).collect()
}

fn sorted<T>(mut all: Vec<T>, name: impl Fn(&T) -> &String) -> Vec<T> {
    all.sort_by(|a, b| name(a).cmp(name(b)));
    all
}
