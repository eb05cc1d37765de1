//! The records of a pool, as its hosts would have written them: members, their facts and parts, LANs, images, VMs that run.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::Result;
use ed25519_dalek::SigningKey;
use rebec_book::{
    Body, Key, Record, Signed,
    key::{Id, Name, Nonce, bound_id, id_of_key, public},
    record::{
        Assigned, DiskRef, DomainBody, HostBody, ImageBody, Kind, LanBody, MemberBody, NicBody, PartRef, PartsBody, PoolBody, RangeLease,
        SeenBody, SeenState, VmBody,
    },
    view::parts_id,
};

use crate::Plan;

/// Parts in a host's depot, LANs and images of a domain.
const PARTS: usize = 16;
const LANS: usize = 4;
const CREATED: u64 = 1_800_000_000;

/// One host that writes.
pub struct Writer {
    /// Its secret key.
    pub secret: SigningKey,
    /// Its public one.
    pub key: Key,
    /// Which of the domains.
    pub domain: usize,
    /// Its last number.
    pub seq: u64,
    /// Its VMs.
    pub vms: Vec<Id>,
}

/// All that the pool knows in the beginning.
pub struct World {
    /// The pool's key.
    pub pool: Key,
    /// The hosts.
    pub hosts: Vec<Writer>,
    /// In the order of authority.
    pub records: Vec<Signed>,
}

/// A secret key that is always the same.
fn secret(of: &str, number: usize) -> SigningKey {
    SigningKey::from_bytes(&blake3_of(of, number))
}

fn blake3_of(of: &str, number: usize) -> [u8; 32] {
    let mut bytes = [0; 32];
    let mut chance = rebec_book::gossip::chance::Chance::new(number as u64);
    for (index, letter) in of.bytes().enumerate() {
        bytes[index % 8] ^= letter;
    }
    for chunk in bytes.chunks_mut(8) {
        for (byte, other) in chunk.iter_mut().zip(chance.any().to_be_bytes()) {
            *byte = byte.wrapping_add(other);
        }
    }
    bytes
}

fn nonce(of: &str, number: usize) -> Nonce {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3_of(of, number)[..16]);
    Name(half)
}

fn part(number: usize) -> PartRef {
    PartRef { digest: Name(blake3_of("part", number)), bytes: 30 << 20 }
}

impl Writer {
    fn new(number: usize, domain: usize) -> Self {
        let secret = secret("host", number);
        // As a host numbers that entered the pool then.
        Self { key: public(&secret), secret, domain, seq: CREATED << 20, vms: vec![] }
    }

    /// Signs its next record.
    pub fn write(&mut self, kind: Kind, id: Id, body: Option<&Body>) -> Result<Signed> {
        self.seq += 1;
        Ok(Record::sign(kind, id, self.seq, body, &self.secret)?)
    }

    /// What it says of one of its VMs.
    pub fn seen(&mut self, vm: Id, state: SeenState, pid: u32) -> Result<Signed> {
        let body = SeenBody {
            epoch: 1,
            state,
            reason: None,
            endpoints: vec![SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 1), 42_000)],
            memory_bytes: 640 << 20,
            pid,
            grants: vec![],
            to: None,
            keys: None,
            ahead: None,
        };
        self.write(Kind::SEEN, vm, Some(&Body::Seen(body.into())))
    }
}

/// Makes it.
pub fn make(plan: &Plan) -> Result<World> {
    let (pool, domains) = (secret("pool", 0), (0..plan.domains).map(|number| secret("domain", number)).collect::<Vec<_>>());
    let mut hosts: Vec<Writer> = (0..plan.hosts).map(|number| Writer::new(number, number % plan.domains)).collect();
    let mut records = vec![Record::sign(Kind::POOL, Name([0; 16]), 1, Some(&Body::Pool(PoolBody { name: "pool".into() })), &pool)?];
    for (number, domain) in domains.iter().enumerate() {
        let body = DomainBody { name: format!("domain-{number}"), key: public(domain) };
        records.push(Record::sign(Kind::DOMAIN, id_of_key(&body.key), number as u64 + 2, Some(&Body::Domain(body)), &pool)?);
    }
    for (number, host) in hosts.iter().enumerate() {
        let domain = &domains[host.domain];
        let body = MemberBody { host: host.key, domain: public(domain), name: format!("host-{number:04}"), dead: None, role: None };
        let seq = (number / plan.domains) as u64 + 1;
        records.push(Record::sign(Kind::MEMBER, id_of_key(&host.key), seq, Some(&Body::Member(body)), domain)?);
    }
    for number in 0..hosts.len() {
        let domain = public(&domains[hosts[number].domain]);
        facts(&mut hosts[number], number, domain, &mut records)?;
    }
    // The first host of each domain has its LANs and images.
    let mut lans = vec![];
    for host in &mut hosts[..plan.domains] {
        let domain = host.domain;
        for number in 0..LANS {
            // One of them with the next domain, whose hosts are told of the VMs on it.
            let shared = (number == 0).then(|| public(&domains[(domain + 1) % plan.domains]));
            lans.push(lan(host, domain * LANS + number, shared, &mut records)?);
            let body = image(domain * LANS + number);
            let id = bound_id(&host.key, &body.nonce);
            records.push(host.write(Kind::IMAGE, id, Some(&Body::Image(body.into())))?);
        }
    }
    for number in 0..hosts.len() {
        let keeper = hosts[(number + plan.domains) % hosts.len()].key;
        for vm in 0..plan.vms {
            let lan = &lans[hosts[number].domain * LANS + vm % LANS];
            one_vm(&mut hosts[number], number * plan.vms + vm, lan, keeper, &mut records)?;
        }
    }
    Ok(World { pool: public(&pool), hosts, records })
}

fn facts(host: &mut Writer, number: usize, domain: Key, records: &mut Vec<Signed>) -> Result<()> {
    let address = Ipv4Addr::new(10, 0, (number / 250) as u8, (number % 250) as u8 + 1);
    let body = HostBody {
        domain,
        addresses: vec![SocketAddr::from((address, 7070)); 2],
        underlay: Some(address),
        api: Some(SocketAddr::from((address, 7443))),
        no_kvm: None,
        cpus: 16,
        memory_bytes: 64 << 30,
        disk_bytes: 1 << 40,
        draining: false,
        durable: true,
        version: "0.1.0".into(),
        audit: None,
        speaks: None,
        cpu: None,
        labels: None,
    };
    records.push(host.write(Kind::HOST, id_of_key(&host.key), Some(&Body::Host(body.into())))?);
    let parts = PartsBody { digests: (0..PARTS).map(|part_number| part(number + part_number).digest).collect() };
    records.push(host.write(Kind::PARTS, parts_id(0), Some(&Body::Parts(parts)))?);
    Ok(())
}

fn lan(host: &mut Writer, number: usize, shared: Option<Key>, records: &mut Vec<Signed>) -> Result<Id> {
    let body = LanBody {
        nonce: nonce("lan", number),
        name: format!("lan-{number}"),
        vni: 4096 + number as u32,
        network: Ipv4Addr::new(10, 64, 0, 0),
        prefix: 16,
        mtu: 1400,
        leases: (0..16).map(|count| RangeLease { host: host.key, first: Ipv4Addr::new(10, 64, count, 1), count: 16, tag: None }).collect(),
        created: CREATED,
        domains: shared.into_iter().collect(),
        sealed: None,
        port_bits: None,
    };
    let id = bound_id(&host.key, &body.nonce);
    records.push(host.write(Kind::LAN, id, Some(&Body::Lan(body.into())))?);
    Ok(id)
}

fn image(number: usize) -> ImageBody {
    ImageBody {
        nonce: nonce("image", number),
        name: format!("debian-13-{number}"),
        kernel: Some(part(3 * number)),
        initramfs: Some(part(3 * number + 1)),
        cmdline: "console=ttyS0 root=/dev/vda1 ro".into(),
        disk: Some(DiskRef { part: part(3 * number + 2), qcow2: true, virtual_bytes: 4 << 30 }),
        created: CREATED,
        domains: vec![],
        starts: None,
    }
}

fn one_vm(host: &mut Writer, number: usize, lan: &Id, keeper: Key, records: &mut Vec<Signed>) -> Result<()> {
    let image = image(host.domain * LANS + number % LANS);
    let body = VmBody {
        nonce: nonce("vm", number),
        name: format!("vm-{number:05}"),
        assigned: Assigned { host: host.key, epoch: 1 },
        image_name: image.name.clone(),
        image,
        memory_bytes: 512 << 20,
        vcpus: 2,
        private: Name(blake3_of("private", number)),
        nics: vec![NicBody {
            lan: *lan,
            vni: 4096,
            mac: [2, 0, 0, (number >> 16) as u8, (number >> 8) as u8, number as u8],
            address: Ipv4Addr::from(0x0a40_0000 + number as u32 % 0xffff),
            prefix: 16,
            sealed: None,
            mtu: None,
            trunk: None,
        }],
        keeper: number.is_multiple_of(2).then_some(keeper),
        created: CREATED + number as u64,
        must: None,
        disks: None,
        cpu: None,
        limits: None,
        placing: None,
    };
    let id = bound_id(&host.key, &body.nonce);
    records.push(host.write(Kind::VM, id, Some(&Body::Vm(body.into())))?);
    records.push(host.seen(id, SeenState::Running, 1000 + number as u32)?);
    host.vms.push(id);
    Ok(())
}
