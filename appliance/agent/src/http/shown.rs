//! The book in the words of the API.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rebec_api::{
    audit::AuditMark,
    host::{HostInfo, HostState, Processor, Protocols},
    image::{ImageInfo, Part},
    lan::{LanInfo, PortInfo, RangeInfo},
    pool::DomainInfo,
    vm::{LeaseState, NicInfo, OnHostLoss, VmInfo, VmState},
};
use rebec_book::{
    Body as Record, Book, Key,
    key::{Digest, Id},
    record::{Kind, LanBody, PartRef, RangeLease, SeenState, VmBody},
    view,
};
use rebec_cpu::{Features, Level};
use rebec_vmm_api::{MacAddr, Versions};

use crate::{
    agent::Agent,
    orders::{disks, limits, placing, returns},
    roles,
};

/// Names of keys and ids, looked up once for a whole list.
struct Names {
    hosts: BTreeMap<Key, String>,
    domains: BTreeMap<Key, String>,
    lans: BTreeMap<Id, String>,
}

impl Names {
    fn new(book: &Book) -> Self {
        let hosts = view::hosts(book).into_iter().map(|host| (host.key, host.name)).collect();
        let domains = view::domains(book).into_iter().map(|domain| (domain.body.key, domain.name)).collect();
        let lans = view::lans(book).into_iter().map(|lan| (lan.id, lan.name)).collect();
        Self { hosts, domains, lans }
    }

    /// The same for one VM and a few hosts.
    fn of(book: &Book, vm: &VmBody, hosts: &[Option<Key>]) -> Self {
        let hosts = hosts.iter().flatten().filter_map(|key| view::host(book, key)).map(|host| (host.key, host.name)).collect();
        let domains = view::domains(book).into_iter().map(|domain| (domain.body.key, domain.name)).collect();
        let lan = |id: Id| {
            let thing = book.thing(Kind::LAN, id)?;
            let Some(Record::Lan(lan)) = book.get(Kind::LAN, id, thing.home) else { return None };
            Some((id, book.shown(Kind::LAN, &lan.name, &thing)))
        };
        let lans = vm.nics.iter().filter_map(|nic| lan(nic.lan)).collect();
        Self { hosts, domains, lans }
    }

    fn host(&self, key: &Key) -> String {
        self.hosts.get(key).cloned().unwrap_or_else(|| key.short())
    }

    fn domain_of(&self, book: &Book, host: &Key) -> String {
        let domain = book.domain_of(host);
        domain.and_then(|key| self.domains.get(&key).cloned()).unwrap_or_default()
    }
}

/// The domains.
pub fn domains(book: &Book) -> Vec<DomainInfo> {
    let own = book.own_domain();
    let hosts = view::hosts(book);
    let shown = view::domains(book).into_iter().map(|domain| DomainInfo {
        key: domain.body.key.to_string(),
        hosts: hosts.iter().filter(|host| host.domain == domain.body.key).count() as u32,
        own: own == Some(domain.body.key),
        name: domain.name,
    });
    shown.collect()
}

/// The hosts.
pub fn hosts(agent: &Agent, book: &Book) -> Vec<HostInfo> {
    let names = Names::new(book);
    let (loads, own) = (view::loads(book), book.own_domain());
    let shown = view::hosts(book).into_iter().map(|host| {
        let silence = if host.key == agent.knowledge.key() { None } else { agent.peers.silence(&host.key) };
        let body = host.body;
        let (load, vitals) = (loads.get(&host.key).copied().unwrap_or_default(), agent.peers.vitals(&host.key));
        let load = if own == Some(host.domain) { load } else { load.with(&vitals) };
        HostInfo {
            domain: names.domains.get(&host.domain).cloned().unwrap_or_default(),
            key: host.key.to_string(),
            role: roles::said_of_host(host.member.role),
            state: match (&host.member.dead, silence, body.draining) {
                (Some(_), _, _) => HostState::Dead,
                (None, Some(_), _) => HostState::Silent,
                (None, None, true) => HostState::Draining,
                (None, None, false) => HostState::Ready,
            },
            silent_s: silence.unwrap_or(Duration::ZERO).as_secs(),
            addresses: body.addresses.iter().map(ToString::to_string).collect(),
            clock: if host.key == agent.knowledge.key() { agent.clock.borrow().clone() } else { None },
            no_kvm: body.no_kvm.clone(),
            cpus: body.cpus,
            memory_bytes: body.memory_bytes,
            memory_used_bytes: load.memory_bytes,
            disk_bytes: body.disk_bytes,
            disk_used_bytes: u64::from(vitals.disk_used_mib) << 20,
            vms: load.vms,
            durable: body.durable,
            version: body.version.clone(),
            labels: body.labels().to_vec(),
            protocols: body.speaks.map(|speaks| {
                let text = |(lowest, highest)| Versions::new(lowest, highest).to_string();
                Protocols { peer: text(speaks.peer), moves: text(speaks.moves), control: text(speaks.control) }
            }),
            cpu: body.cpu.as_deref().and_then(processor),
            audit: body.audit.map(|head| AuditMark { seq: head.seq, hash: head.hash.to_string() }),
            this: host.key == agent.knowledge.key(),
            name: host.name,
        }
    });
    shown.collect()
}

/// What a host's set of features says to people.
fn processor(set: &str) -> Option<Processor> {
    let features: Features = set.parse().ok()?;
    let level = Level::of(&features).map(|level| level.name().to_owned());
    Some(Processor { level, features: features.names(), set: set.to_owned() })
}

/// Where hosts are of several versions: which there are, and which hosts are to be upgraded.
pub fn versions(book: &Book) -> Option<String> {
    let mut of: BTreeMap<(Vec<u64>, String), Vec<String>> = BTreeMap::new();
    for host in view::hosts(book).into_iter().filter(|host| host.member.dead.is_none()) {
        let numbers = host.body.version.split(['.', '-', '+']).map_while(|number| number.parse().ok()).collect();
        of.entry((numbers, host.body.version.clone())).or_default().push(host.name);
    }
    let ((_, newest), hosts) = of.pop_last()?;
    let behind: Vec<String> = of.into_iter().map(|((_, version), hosts)| format!("{version} on {}", some(&hosts))).collect();
    if behind.is_empty() {
        return None;
    }
    Some(format!("{newest} on {}; to be upgraded: {}", some(&hosts), behind.join(", ")))
}

/// The first of some names, and how many more there are.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len().min(SHOWN)].join(" ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// The images.
pub fn images(book: &Book) -> Vec<ImageInfo> {
    let vms = view::vms(book);
    let hosts: Vec<(String, BTreeSet<&Digest>)> =
        view::hosts(book).into_iter().map(|host| (host.name, view::parts(book, &host.key).collect())).collect();
    let shown = view::images(book).into_iter().map(|image| {
        let held = hosts.iter().filter(|(_, parts)| image.body.parts().all(|part| parts.contains(&part.digest)));
        ImageInfo {
            kernel: image.body.kernel.as_ref().map(part),
            starts: image.body.starts.clone(),
            initramfs: image.body.initramfs.as_ref().map(part),
            cmdline: image.body.cmdline.clone(),
            disk: image.body.disk.as_ref().map(|disk| part(&disk.part)),
            disk_bytes: image.body.disk.map_or(0, |disk| disk.virtual_bytes),
            held_by: held.map(|(name, _)| name.clone()).collect(),
            vms: vms.iter().filter(|vm| vm.body.image == *image.body).count() as u32,
            domains: image.body.domains.iter().map(|domain| book.domain_name(domain)).collect(),
            name: image.name,
        }
    });
    shown.collect()
}

fn part(part: &PartRef) -> Part {
    Part { digest: part.digest.to_string(), bytes: part.bytes }
}

/// The LANs.
pub fn lans(book: &Book) -> Vec<LanInfo> {
    let names = Names::new(book);
    let shown = view::lans(book).into_iter().map(|lan| {
        let mut ports = vec![];
        for vm in book.on_lan(lan.id).filter_map(|record| view::vm(book, record.key.id)) {
            let seen = view::seen(book, vm.id);
            for (index, nic) in vm.body.nics.iter().enumerate().filter(|(_, nic)| nic.lan == lan.id) {
                let endpoint = seen.and_then(|seen| seen.body.endpoints.get(index).copied());
                ports.push(PortInfo {
                    vm: vm.name.clone(),
                    host: seen.map(|seen| names.host(&seen.holder)).unwrap_or_default(),
                    mac: MacAddr(nic.mac).to_string(),
                    address: nic.address,
                    endpoint: endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default(),
                });
            }
        }
        LanInfo {
            id: lan.id.to_string(),
            vni: lan.body.vni,
            range: format!("{}/{}", lan.body.network, lan.body.prefix),
            mtu: lan.body.mtu,
            sealed: lan.body.sealed == Some(true),
            port_bits: lan.body.port_bits,
            home: names.host(&lan.home),
            parts: parts(book, &names, &lan),
            ports,
            domains: lan.body.domains.iter().map(|domain| book.domain_name(domain)).collect(),
            // Told by who asks about one of them.
            narrow: vec![],
            name: lan.name,
        }
    });
    shown.collect()
}

fn parts(book: &Book, names: &Names, lan: &view::Named<'_, LanBody>) -> Vec<RangeInfo> {
    let part = |lease: &RangeLease| RangeInfo {
        host: names.host(&lease.host),
        first: lease.first,
        last: (u32::from(lease.first) + lease.count.saturating_sub(1)).into(),
        used: returns::used(book, lan.id, lease.host).filter(|address| lease.has(*address)).count().try_into().unwrap_or(u32::MAX),
    };
    let mut parts: Vec<RangeInfo> = lan.body.leases.iter().map(part).collect();
    parts.sort_by_key(|part| part.first);
    parts
}

/// The VMs.
pub fn vms(agent: &Agent, book: &Book) -> Vec<VmInfo> {
    let names = Names::new(book);
    view::vms(book).into_iter().map(|vm| named_vm(agent, book, &names, vm)).collect()
}

/// One VM.
pub fn vm(agent: &Agent, book: &Book, vm: view::Named<'_, VmBody>) -> VmInfo {
    let seen = view::seen(book, vm.id).map(|seen| seen.holder);
    named_vm(agent, book, &Names::of(book, vm.body, &[Some(vm.home), seen, vm.body.keeper]), vm)
}

fn named_vm(agent: &Agent, book: &Book, names: &Names, vm: view::Named<'_, VmBody>) -> VmInfo {
    let seen = view::seen(book, vm.id);
    let holder = seen.map_or(vm.home, |seen| seen.holder);
    let lost = !agent.peers.answers(&holder);
    let (state, reason) = match seen {
        Some(seen) if lost => {
            let silence = || format!("has not been heard for {} s", agent.peers.silence(&holder).unwrap_or_default().as_secs());
            let what = book.dead(&holder).map_or_else(silence, |why| format!("was declared dead: {why}"));
            let reason = format!("host {} {what}; it was {:?}", names.host(&holder), seen.body.state);
            (VmState::Lost, Some(reason))
        }
        Some(seen) => (state_of(seen.body.state), seen.body.reason.clone()),
        None => (VmState::Stopped, Some("it has not been started yet".into())),
    };
    let [labels, host_labels, affinity, anti_affinity] = placing::shown(book, vm.body);
    VmInfo {
        id: vm.id.to_string(),
        state,
        reason,
        host: seen.map(|seen| names.host(&seen.holder)).unwrap_or_default(),
        domain: names.domain_of(book, &holder),
        epoch: seen.map_or(0, |seen| seen.body.epoch),
        image: vm.body.image_name.clone(),
        memory_bytes: vm.body.memory_bytes,
        vcpus: vm.body.vcpus,
        cpu: vm.body.cpu.as_ref().map_or_else(|| "host".to_owned(), |cpu| cpu.asked.clone()),
        limits: limits::shown(vm.body),
        labels,
        host_labels,
        affinity,
        anti_affinity,
        disks: disks::shown(vm.body),
        nics: nics(names, vm.body),
        home: names.host(&vm.home),
        on_host_loss: if vm.body.keeper.is_some() { OnHostLoss::Restart } else { OnHostLoss::Hold },
        keeper: vm.body.keeper.map(|keeper| names.host(&keeper)),
        lease: seen.filter(|_| !lost && vm.body.keeper.is_some()).and_then(|seen| lease_of(seen.body.state)),
        created: vm.body.created,
        pid: seen.map_or(0, |seen| seen.body.pid),
        name: vm.name,
    }
}

fn nics(names: &Names, body: &VmBody) -> Vec<NicInfo> {
    let nics = body.nics.iter().map(|nic| NicInfo {
        lan: names.lans.get(&nic.lan).cloned().unwrap_or_else(|| nic.lan.short()),
        mac: MacAddr(nic.mac).to_string(),
        address: nic.address,
    });
    nics.collect()
}

/// What a holder's word on a VM tells of its lease.
fn lease_of(state: SeenState) -> Option<LeaseState> {
    match state {
        SeenState::Running | SeenState::Moving | SeenState::Paused => Some(LeaseState::Held),
        SeenState::Unleased => Some(LeaseState::RanOut),
        SeenState::Starting | SeenState::Waiting | SeenState::Stopped | SeenState::Failed | SeenState::Left | SeenState::Other => None,
    }
}

/// What users are told that a VM does.
pub fn state_of(state: SeenState) -> VmState {
    match state {
        SeenState::Starting => VmState::Starting,
        SeenState::Running => VmState::Running,
        SeenState::Paused | SeenState::Unleased => VmState::Paused,
        SeenState::Moving => VmState::Moving,
        // Its new host has not said yet that it is there.
        SeenState::Waiting | SeenState::Left => VmState::Waiting,
        SeenState::Stopped => VmState::Stopped,
        SeenState::Failed => VmState::Failed,
        SeenState::Other => VmState::Paused,
    }
}
