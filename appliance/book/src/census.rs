//! Where all VMs are, in one pass over the book: of each what [`view::holder`](crate::view::holder) and [`view::seen`](crate::view::seen) say of
//! one. Who decides about many VMs or many hosts asks here, once.

use std::iter::Peekable;

use crate::{
    book::Book,
    grant::{self, Grant},
    key::{Id, Key},
    record::{Assigned, Body, Kind, Record, SeenBody, SeenState, VmBody},
    view::SeenView,
};

/// A VM and where it is.
#[derive(Debug, Clone)]
pub struct Whereabouts<'a> {
    /// The VM.
    pub id: Id,
    /// The host that writes its record.
    pub home: Key,
    /// That host's domain.
    pub domain: Key,
    /// Its record.
    pub body: &'a VmBody,
    /// Who holds it, by proof.
    pub at: Assigned,
    /// What its holder says of it.
    pub seen: Option<SeenView<'a>>,
}

impl Whereabouts<'_> {
    /// Hosts that have it or are to have it, each with the memory that it takes there: its holder where it does not stand still for good, whoever
    /// it was granted or assigned to and has said nothing yet, and the host that it is on its way to.
    pub fn takes_room(&self) -> impl Iterator<Item = (Key, u64)> {
        let lives = self.seen.is_none_or(|seen| is_there(seen.body.state));
        let said = self.seen.filter(|_| lives).map(|seen| (seen.holder, seen.body.memory_bytes));
        let held = Some(self.at.host).filter(|host| lives && said.is_none_or(|(holder, _)| holder != *host));
        let to = self.seen.and_then(|seen| seen.body.to).filter(|to| said.is_none_or(|(holder, _)| holder != *to) && held != Some(*to));
        said.into_iter().chain(held.into_iter().chain(to).map(|host| (host, self.body.memory_bytes)))
    }

    /// The same without what its holder says it takes: hosts on which it counts, by a contract too.
    pub fn is_on(&self) -> impl Iterator<Item = Key> {
        let lives = self.seen.is_none_or(|seen| is_there(seen.body.state));
        let held = Some(self.at.host).filter(|_| lives);
        let to = self.seen.and_then(|seen| seen.body.to).filter(|to| held != Some(*to));
        held.into_iter().chain(to)
    }
}

/// Whether a VM in this state takes a machine's room.
pub fn is_there(state: SeenState) -> bool {
    !matches!(state, SeenState::Stopped | SeenState::Failed | SeenState::Left)
}

/// All VMs of members, by id.
pub fn all(book: &Book) -> impl Iterator<Item = Whereabouts<'_>> {
    let mut seen = book.of_kind(Kind::SEEN).peekable();
    let mut before = None;
    book.of_kind(Kind::VM).filter_map(move |record| {
        let Some(Body::Vm(body)) = &record.body else { return None };
        let (id, home) = (record.key.id, record.key.writer);
        let domain = book.domain_of(&home).filter(|_| before != Some(id))?;
        before = Some(id);
        let said = said_of(&mut seen, id);
        let grants: Vec<&Grant> = said.iter().flat_map(|(_, seen)| &seen.grants).collect();
        let (at, way) = grant::way(body.assigned, body.keeper, &grants);
        let says = |host: Key, epoch: u64| {
            let body = said.iter().find(|(writer, _)| *writer == host).map(|(_, body)| *body)?;
            (body.epoch >= epoch).then_some(SeenView { holder: host, body })
        };
        let places = way.iter().rev().map(|grant| (grant.to, grant.epoch)).chain([(body.assigned.host, body.assigned.epoch)]);
        let seen = places.filter_map(|(host, epoch)| says(host, epoch)).next();
        Some(Whereabouts { id, home, domain, body, at, seen })
    })
}

/// What hosts say of a VM; what is said of those before it is passed over. Both are in the order of ids.
fn said_of<'a>(seen: &mut Peekable<impl Iterator<Item = &'a Record>>, id: Id) -> Vec<(Key, &'a SeenBody)> {
    while seen.next_if(|record| record.key.id < id).is_some() {}
    let mut said = vec![];
    while let Some(record) = seen.next_if(|record| record.key.id == id) {
        if let Some(Body::Seen(body)) = &record.body {
            said.push((record.key.writer, &**body));
        }
    }
    said
}
