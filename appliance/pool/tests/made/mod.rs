//! Pools that are made up, as books: domains with hosts, VMs that run on them, and contracts. The laws of plans and the measurement of their speed use them.

#![allow(dead_code, reason = "each of the two uses a part of it")]

use ed25519_dalek::SigningKey;
use rebec_book::{
    Body, Book, Key, Record, Signed,
    book::Came,
    contract::{Contract, Reclaim, Terms},
    key::{Id, Name, bound_id, id_of_key, public},
    record::{
        Assigned, BrokerBody, DomainBody, HostBody, ImageBody, Kind, MemberBody, PartRef, Partner, PlacingBody, PoolBody, SeenBody,
        SeenState, VmBody,
    },
};

/// When it is.
pub const NOW: u64 = 1_800_000_000;
/// Of every host.
pub const HOST_MIB: u64 = 64 << 10;

/// How large a pool is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Domains.
    pub domains: usize,
    /// Hosts of all, as many in each.
    pub hosts: usize,
    /// VMs of all.
    pub vms: usize,
    /// Of so many hosts one is lent to the next domain.
    pub lent_of: usize,
    /// Memory of each VM.
    pub vm_mib: u64,
}

/// A pool.
pub struct Made {
    /// All that is known of it.
    pub book: Book,
    /// Its hosts, each with its domain.
    pub hosts: Vec<(Key, Key)>,
    /// Its VMs, each with its home's domain.
    pub vms: Vec<(Id, Key)>,
    keys: Vec<(SigningKey, u64)>,
    shape: Shape,
}

/// By chance, from a seed (splitmix64).
pub struct Chance(pub u64);

impl Chance {
    /// Below a number.
    pub fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % most.max(1) as u64) as usize
    }
}

fn secret(number: usize) -> SigningKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    SigningKey::from_bytes(&bytes)
}

fn nonce(number: usize) -> Name<16> {
    Name((number as u128).to_be_bytes())
}

impl Made {
    /// One of a shape. Every tenth VM is one of a group that stays apart, every twentieth one that goes near another.
    pub fn new(shape: Shape, seed: u64) -> Self {
        let (pool, mut chance) = (0, Chance(seed));
        let keys: Vec<(SigningKey, u64)> = (0..=shape.domains + shape.hosts).map(|number| (secret(number), 0)).collect();
        let book = Book::new(public(&keys[pool].0));
        let mut made = Self { book, hosts: vec![], vms: vec![], keys, shape };
        made.say(pool, Kind::POOL, Name([0; 16]), Body::Pool(PoolBody { name: "made".into() }));
        for domain in 0..shape.domains {
            let key = made.domain(domain);
            made.say(pool, Kind::DOMAIN, id_of_key(&key), Body::Domain(DomainBody { name: format!("d{domain}"), key }));
            let body =
                BrokerBody { domain: key, host: key, by_contract: true, machines: 1, price_milli: 20, reclaim: vec![Reclaim::Migrate] };
            made.say(1 + domain, Kind::BROKER, id_of_key(&key), Body::Broker(body));
        }
        for host in 0..shape.hosts {
            let (domain, writer) = (host % shape.domains, 1 + shape.domains + host);
            let (key, of) = (made.key(writer), made.domain(domain));
            made.hosts.push((key, of));
            let member = MemberBody { host: key, domain: of, name: format!("h{host}"), dead: None, role: None };
            made.say(1 + domain, Kind::MEMBER, id_of_key(&key), Body::Member(member));
            let labels = Some(vec![format!("rack=r{}", chance.below(4))]);
            let (memory_bytes, disk_bytes) = (HOST_MIB << 20, 1 << 40);
            let body = HostBody { cpus: 32, memory_bytes, disk_bytes, labels, underlay: Some([10, 0, 0, 1].into()), ..HostBody::bare(of) };
            made.say(writer, Kind::HOST, id_of_key(&key), Body::Host(body.into()));
        }
        let row = |host: &usize| host / shape.domains % shape.lent_of.max(1) + 1;
        let lent: Vec<usize> = (0..shape.hosts).filter(|host| row(host) == shape.lent_of).collect();
        lent.iter().for_each(|host| made.lend(*host));
        let free: Vec<usize> = (0..shape.hosts).filter(|host| !lent.contains(host)).collect();
        for vm in 0..shape.vms {
            let home = chance.below(shape.hosts);
            let of = home % shape.domains;
            let here: Vec<usize> = free.iter().copied().filter(|host| host % shape.domains == of).collect();
            let at = here.get(chance.below(here.len())).copied().unwrap_or(home);
            made.vm(vm, home, at);
        }
        made
    }

    /// A domain's key.
    pub fn domain(&self, number: usize) -> Key {
        self.key(1 + number)
    }

    fn key(&self, writer: usize) -> Key {
        public(&self.keys[writer].0)
    }

    /// Writes what somebody says.
    pub fn say(&mut self, writer: usize, kind: Kind, id: Id, body: Body) {
        let (secret, seq) = &mut self.keys[writer];
        *seq += 1;
        let signed: Signed = Record::sign(kind, id, *seq, Some(&body), secret).expect("a record of this size is signed");
        assert_eq!(self.book.restore(signed, Came::InTurn), Ok(true), "{body:?}");
    }

    /// A host says of itself what it said before.
    pub fn repeat_host(&mut self, host: usize) {
        let key = self.hosts[host].0;
        let body = self.book.host(&key).expect("a host").clone();
        self.say(1 + self.shape.domains + host, Kind::HOST, id_of_key(&key), Body::Host(body.into()));
    }

    /// A VM's home assigns it anew.
    pub fn assign(&mut self, vm: usize, epoch: u64) {
        let (id, _) = self.vms[vm];
        let home = self.book.thing(Kind::VM, id).expect("a VM").home;
        let mut body = rebec_book::view::vm_body(&self.book, id).expect("a VM").clone();
        body.assigned.epoch = epoch;
        let writer = self.keys.iter().position(|(secret, _)| public(secret) == home).expect("a writer");
        self.say(writer, Kind::VM, id, Body::Vm(body.into()));
    }

    /// The host's domain lends it to the next one.
    fn lend(&mut self, host: usize) {
        let domain = host % self.shape.domains;
        let next = (domain + 1) % self.shape.domains;
        if next == domain {
            return;
        }
        let mut contract = Contract::draft(Terms {
            nonce: nonce(host),
            lender: self.domain(domain),
            borrower: self.domain(next),
            host: self.hosts[host].0,
            vcpus: 16,
            memory_bytes: (HOST_MIB / 2) << 20,
            disk_bytes: 1 << 40,
            price_milli: 20,
            from: NOW,
            until: None,
            notice_s: 600,
            reclaim: Reclaim::Migrate,
            lans: vec![],
            vms: vec![],
            answer_by: NOW + 60,
        });
        contract.sign(&self.keys[1 + domain].0);
        contract.sign(&self.keys[1 + next].0);
        self.say(1 + self.shape.domains + host, Kind::CONTRACT, contract.id(), Body::Contract(contract.into()));
    }

    fn vm(&mut self, number: usize, home: usize, at: usize) {
        let domain = self.hosts[home].1;
        let group = |of: usize| Some(vec![format!("group=g{}", number / of % 50)]);
        let placing = match number % 20 {
            0 | 10 => Some(PlacingBody {
                labels: group(20).unwrap_or_default(),
                apart: group(20).into_iter().flatten().map(|label| Partner::label(&label)).collect(),
                ..PlacingBody::default()
            }),
            5 => self
                .vms
                .iter()
                .rev()
                .find(|(_, of)| *of == domain)
                .map(|(vm, _)| PlacingBody { near: vec![Partner::vm(*vm)], ..PlacingBody::default() }),
            7 => Some(PlacingBody { hosts: vec!["rack=r1".into()], ..PlacingBody::default() }),
            _ => None,
        };
        self.put(number, home, at, self.shape.vm_mib << 20, placing);
    }

    fn put(&mut self, number: usize, home: usize, at: usize, memory_bytes: u64, placing: Option<PlacingBody>) {
        let (nonce, domain) = (nonce(number), self.hosts[home].1);
        let id = bound_id(&self.hosts[home].0, &nonce);
        let image = ImageBody::bare(self::nonce(home), "image", PartRef { digest: Name([7; 32]), bytes: 1 });
        let body = VmBody {
            nonce,
            name: format!("vm{number}"),
            assigned: Assigned { host: self.hosts[at].0, epoch: 1 },
            image_name: "image".into(),
            image,
            memory_bytes,
            vcpus: 1,
            private: Name([0; 32]),
            nics: vec![],
            keeper: None,
            created: NOW,
            must: None,
            disks: None,
            cpu: None,
            limits: None,
            placing: placing.map(Box::new),
        };
        let writer = |host: usize| 1 + self.shape.domains + host;
        let (home, at) = (writer(home), writer(at));
        self.say(home, Kind::VM, id, Body::Vm(body.into()));
        let seen = SeenBody {
            epoch: 1,
            state: SeenState::Running,
            reason: None,
            endpoints: vec![],
            memory_bytes,
            pid: 1,
            grants: vec![],
            to: None,
            keys: None,
            ahead: None,
        };
        self.say(at, Kind::SEEN, id, Body::Seen(seen.into()));
        self.vms.push((id, domain));
    }
}
