//! Who is told of what: alpha's things, as hosts of alpha, of beta, which has a part in some of them, and of gamma, which has none, see them.

use std::net::Ipv4Addr;

use super::*;
use crate::{
    grant::Assigned,
    key::bound_id,
    lan::{NicBody, RangeLease, mac_of},
    record::{PartsBody, PoolBody, SeenBody, VmBody},
    samples::{self, key, secret},
    view,
};

const POOL: u8 = 1;
/// Each with its first host above it.
const ALPHA: u8 = 10;
const BETA: u8 = 20;
const GAMMA: u8 = 30;
const A1: u8 = 11;
const A2: u8 = 12;
const B1: u8 = 21;
const C1: u8 = 31;

fn id(by: u8, nonce: u8) -> Id {
    bound_id(&key(by), &Name([nonce; 16]))
}

/// Each host's book, and how many records each writer has written.
struct World {
    books: BTreeMap<u8, Book>,
    written: BTreeMap<u8, u64>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { books: BTreeMap::new(), written: BTreeMap::new() };
        let mut records = vec![world.sign(POOL, Kind::POOL, Name([0; 16]), Some(Body::Pool(PoolBody { name: "pool".into() })))];
        for (domain, name) in [(ALPHA, "alpha"), (BETA, "beta"), (GAMMA, "gamma")] {
            let body = Body::Domain(DomainBody { name: name.into(), key: key(domain) });
            records.push(world.sign(POOL, Kind::DOMAIN, id_of_key(&key(domain)), Some(body)));
        }
        for (host, domain) in [(A1, ALPHA), (A2, ALPHA), (B1, BETA), (C1, GAMMA)] {
            let member = MemberBody { host: key(host), domain: key(domain), name: format!("h{host}"), dead: None, role: None };
            records.push(world.sign(domain, Kind::MEMBER, id_of_key(&key(host)), Some(Body::Member(member))));
            let body = HostBody::bare(key(domain));
            records.push(world.sign(host, Kind::HOST, id_of_key(&key(host)), Some(Body::Host(body.into()))));
        }
        for host in [A1, A2, B1, C1] {
            let mut book = Book::new(key(POOL)).of_host(key(host));
            records.iter().for_each(|signed| assert_eq!(book.restore(signed.clone(), Came::InTurn), Ok(true)));
            world.books.insert(host, book);
        }
        world
    }

    fn sign(&mut self, by: u8, kind: Kind, id: Id, body: Option<Body>) -> Signed {
        let written = self.written.entry(by).or_default();
        *written += 1;
        Record::sign(kind, id, *written, body.as_ref(), &secret(by)).unwrap()
    }

    fn write(&mut self, by: u8, kind: Kind, id: Id, body: Option<Body>) {
        let signed = self.sign(by, kind, id, body);
        let book = self.books.get_mut(&by).unwrap();
        assert_eq!(book.restore(signed, Came::InTurn), Ok(true));
        assert!(book.shares_what_it_should());
    }

    fn vm(&mut self, home: u8, nonce: u8, assigned: (u8, u64), nics: Vec<NicBody>) -> Id {
        let assigned = Assigned { host: key(assigned.0), epoch: assigned.1 };
        let body = VmBody { nics, ..samples::vm(Name([nonce; 16]), &format!("vm{nonce}"), assigned) };
        self.write(home, Kind::VM, id(home, nonce), Some(Body::Vm(body.into())));
        id(home, nonce)
    }

    fn lan(&mut self, home: u8, nonce: u8, domains: &[u8]) -> Id {
        let body = LanBody {
            nonce: Name([nonce; 16]),
            name: format!("lan{nonce}"),
            vni: nonce.into(),
            network: Ipv4Addr::new(10, nonce, 0, 0),
            prefix: 16,
            mtu: 1400,
            leases: vec![RangeLease { host: key(home), first: Ipv4Addr::new(10, nonce, 0, 8), count: 16, tag: None }],
            created: 0,
            domains: domains.iter().map(|domain| key(*domain)).collect(),
            sealed: None,
            port_bits: None,
        };
        self.write(home, Kind::LAN, id(home, nonce), Some(Body::Lan(body.into())));
        id(home, nonce)
    }

    fn seen(&mut self, by: u8, vm: Id, epoch: u64, grants: Vec<Grant>, to: Option<u8>) {
        let seen = SeenBody { epoch, grants, to: to.map(key), ..samples::seen() };
        self.write(by, Kind::SEEN, vm, Some(Body::Seen(seen.into())));
    }

    /// Every two hosts compare their books, often enough; then none finds a difference.
    fn gossip(&mut self) {
        let hosts: Vec<u8> = self.books.keys().copied().collect();
        let mut last = 0;
        for round in 0..12 {
            last = 0;
            for (to, from) in hosts.iter().flat_map(|to| hosts.iter().map(move |from| (*to, *from))).filter(|(to, from)| to != from) {
                last += self.compare(to, from, round);
            }
            for book in self.books.values_mut() {
                let stale = book.unconcerned();
                book.forget(&stale);
            }
        }
        assert_eq!(last, 0, "hosts go on sending what mends nothing");
    }

    /// What one lacks of another is sent to it; how many records that were.
    fn compare(&mut self, to: u8, from: u8, chance: u64) -> usize {
        let domain = |host: u8| Some(key(host / 10 * 10));
        let (theirs, ours) = (&self.books[&to], &self.books[&from]);
        let (lens_to, lens_from) = (theirs.lens(domain(from)), ours.lens(domain(to)));
        let (before, now) = (theirs.groups(7, &lens_to), ours.groups(7, &lens_from));
        let mut sent = vec![];
        for mark in now.iter().filter(|mark| !before.contains(mark)) {
            let marks = theirs.marks_in(mark.group, &lens_to);
            let (in_turn, alone) = ours.above_in(mark.group, &marks, &lens_from, 1 << 20, chance, |_, _| true);
            sent.extend(in_turn.into_iter().map(|signed| (signed, Came::InTurn)));
            sent.extend(alone.into_iter().map(|signed| (signed, Came::Alone)));
        }
        let count = sent.len();
        let book = self.books.get_mut(&to).unwrap();
        for (signed, came) in sent {
            assert!(book.restore(signed, came).is_ok());
            assert!(book.shares_what_it_should());
            assert_eq!(book.groups(7, &book.lens(domain(from))), book.clone().looked_at_anew().groups(7, &book.lens(domain(from))));
        }
        count
    }

    /// Which hosts have something of a thing.
    fn know(&self, kind: Kind, id: Id) -> Vec<u8> {
        let knows = |book: &Book| book.about(kind, id).any(|record| record.body.is_some());
        self.books.iter().filter(|(_, book)| knows(book)).map(|(host, _)| *host).collect()
    }
}

fn nic(lan: Id, nonce: u8, last: u8) -> NicBody {
    let address = Ipv4Addr::new(10, nonce, 0, last);
    NicBody { lan, vni: nonce.into(), mac: mac_of(address, 0), address, prefix: 16, sealed: None, mtu: None, trunk: None }
}

fn grant(vm: Id, by: u8, to: u8, epoch: u64) -> Grant {
    Grant::sign(&vm, key(to), epoch, &secret(by))
}

#[test]
fn what_is_not_shared_stays_in_its_domain() {
    let mut world = World::new();
    let (lan, shared) = (world.lan(A1, 1, &[]), world.lan(A1, 2, &[BETA]));
    let (vm, on_shared) = (world.vm(A1, 3, (A2, 1), vec![nic(lan, 1, 8)]), world.vm(A1, 4, (A1, 1), vec![nic(shared, 2, 8)]));
    world.seen(A2, vm, 1, vec![], None);
    world.seen(A1, on_shared, 1, vec![], None);
    world.write(A1, Kind::PARTS, Name([0; 16]), Some(Body::Parts(PartsBody { digests: vec![Name([7; 32])] })));
    world.gossip();
    for (kind, id) in [(Kind::LAN, lan), (Kind::VM, vm), (Kind::SEEN, vm), (Kind::PARTS, Name([0; 16]))] {
        assert_eq!(world.know(kind, id), [A1, A2], "{kind:?}");
    }
    for (kind, id) in [(Kind::LAN, shared), (Kind::VM, on_shared), (Kind::SEEN, on_shared)] {
        assert_eq!(world.know(kind, id), [A1, A2, B1], "{kind:?}");
    }
    // That it is gone is everybody's.
    world.write(A1, Kind::VM, on_shared, None);
    world.gossip();
    assert_eq!(world.know(Kind::VM, on_shared), []);
}

#[test]
fn a_vm_that_is_lent_is_known_there_with_its_lan_and_its_neighbours_until_its_home_has_it_again() {
    let mut world = World::new();
    let lan = world.lan(A1, 1, &[]);
    let (web, near, far) =
        (world.vm(A1, 3, (A1, 1), vec![nic(lan, 1, 8)]), world.vm(A1, 4, (A2, 1), vec![nic(lan, 1, 9)]), world.vm(A1, 5, (A2, 1), vec![]));
    world.seen(A1, web, 1, vec![], None);
    world.seen(A2, near, 1, vec![], None);
    world.gossip();
    assert_eq!(world.know(Kind::VM, web), [A1, A2]);
    // On its way, and there.
    world.seen(A1, web, 1, vec![], Some(B1));
    world.gossip();
    assert_eq!(world.know(Kind::VM, web), [A1, A2, B1]);
    let way = vec![grant(web, A1, B1, 2)];
    world.seen(A1, web, 1, way.clone(), None);
    world.seen(B1, web, 2, way.clone(), None);
    world.gossip();
    for (kind, id) in [(Kind::LAN, lan), (Kind::VM, near), (Kind::SEEN, near), (Kind::SEEN, web)] {
        assert_eq!(world.know(kind, id), [A1, A2, B1], "{kind:?}");
    }
    assert_eq!(world.know(Kind::VM, far), [A1, A2]);
    assert_eq!(world.books[&A2].about(Kind::SEEN, web).count(), 2, "alpha hears how it is in beta");
    // Back, and assigned anew by its home: beta hears that too, withdraws its word, and forgets.
    let way = [way, vec![grant(web, B1, A1, 3)]].concat();
    world.seen(A1, web, 3, way.clone(), None);
    world.seen(B1, web, 2, way, None);
    world.gossip();
    world.vm(A1, 3, (A1, 4), vec![nic(lan, 1, 8)]);
    world.gossip();
    assert!(view::vm_body(&world.books[&B1], web).is_some_and(|body| body.assigned.epoch == 4));
    world.write(B1, Kind::SEEN, web, None);
    world.gossip();
    for (kind, id) in [(Kind::LAN, lan), (Kind::VM, near), (Kind::SEEN, near), (Kind::VM, web), (Kind::SEEN, web)] {
        assert_eq!(world.know(kind, id), [A1, A2], "{kind:?}");
    }
}

/// Who knows a VM's id, and no more, learns of that VM and of nothing beside it.
#[test]
fn a_claim_draws_nothing_but_the_vm_that_it_names() {
    let mut world = World::new();
    let lan = world.lan(A1, 1, &[]);
    let (web, near) = (world.vm(A1, 3, (A1, 1), vec![nic(lan, 1, 8)]), world.vm(A1, 4, (A1, 1), vec![nic(lan, 1, 9)]));
    world.seen(C1, web, u64::MAX, vec![grant(web, C1, C1, u64::MAX)], None);
    // It tells alpha itself: others would not, of a VM that they do not know.
    let claim = world.books[&C1].log_of(&key(C1)).pop().unwrap();
    world.books.get_mut(&A1).unwrap().restore(claim, Came::InTurn).unwrap();
    // A VM of gamma's own that says it is on alpha's LAN.
    world.vm(C1, 5, (C1, 1), vec![nic(lan, 1, 10)]);
    world.gossip();
    assert_eq!(world.know(Kind::VM, web), [A1, A2, C1]);
    for (kind, id) in [(Kind::LAN, lan), (Kind::VM, near)] {
        assert_eq!(world.know(kind, id), [A1, A2], "{kind:?}");
    }
}
