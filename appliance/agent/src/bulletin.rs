//! What this host tells the pool of itself: the one writer of its Host record and of those about its parts.

use std::{net::SocketAddr, sync::Arc};

use rebec_book::{
    Body,
    gossip::message::Vitals,
    key::Id,
    record::{AuditHead, HostBody, Kind, LABELS_MAX, PARTS_MAX, PartsBody, Speaks, id_of_key},
    view::parts_id,
};
use rebec_host::Host;
use rebec_vmm_api::{Versions, control::PROTOCOL};

use crate::{
    audit::Audit,
    facts,
    knowledge::Knowledge,
    later::{self, Later},
    peers::Peers,
    store::Store,
    vm::{Vms, room},
};

/// Disk and memory are told in steps, so that every block written is no news.
const STEP_MIB: u64 = 64;
/// Whether this host takes no VMs.
const DRAINING: &str = "draining";
/// Labels of this host.
const LABELS: &str = "labels";

/// What the user says that others are told.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// The API's TCP port; 0 where it is only on the Unix socket.
    pub api_port: u16,
    /// Whether the state folder survives a reboot.
    pub durable: bool,
    /// What is otherwise in the version that the lab plays.
    pub later: Option<Later>,
}

/// What is told, and of what.
pub struct Bulletin {
    given: Given,
    knowledge: Arc<Knowledge>,
    peers: Arc<Peers>,
    host: Arc<Host>,
    vms: Arc<Vms>,
    store: Arc<Store>,
    audit: Arc<Audit>,
}

impl Bulletin {
    /// Nothing has been told yet.
    pub fn new(
        given: Given,
        knowledge: Arc<Knowledge>,
        peers: Arc<Peers>,
        host: Arc<Host>,
        vms: Arc<Vms>,
        store: Arc<Store>,
        audit: Arc<Audit>,
    ) -> Self {
        Self { given, knowledge, peers, host, vms, store, audit }
    }

    /// Whether the state folder survives a reboot.
    pub fn is_durable(&self) -> bool {
        self.given.durable
    }

    /// Where the mesh endpoint is reached.
    pub fn mesh_addresses(&self) -> Vec<SocketAddr> {
        let port = self.peers.mesh.port();
        self.host.addresses().into_iter().map(|address| SocketAddr::from((address, port))).collect()
    }

    /// Where others reach the API; none where it is off or the host has no address.
    pub fn api(&self) -> Option<SocketAddr> {
        let port = Some(self.given.api_port).filter(|port| *port > 0)?;
        Some((self.host.addresses().first().copied()?, port).into())
    }

    /// From now on this host takes no VMs, or takes them again.
    pub fn set_draining(&self, is_so: bool) -> anyhow::Result<()> {
        self.store.set_fact(DRAINING, &is_so)?;
        self.publish();
        Ok(())
    }

    fn labels(&self) -> Vec<String> {
        self.store.fact(LABELS).ok().flatten().unwrap_or_default()
    }

    /// Gives this host labels, and takes others from it: those with these keys. Of one key it has one.
    pub fn set_labels(&self, give: &[String], take: &[String]) -> anyhow::Result<()> {
        let key = |label: &str| label.split_once('=').map_or_else(|| label.to_owned(), |(key, _)| key.to_owned());
        let old: Vec<String> = give.iter().map(|label| key(label)).chain(take.iter().cloned()).collect();
        let mut labels: Vec<String> = self.labels().into_iter().filter(|label| !old.contains(&key(label))).collect();
        labels.extend_from_slice(give);
        labels.sort_unstable();
        labels.dedup();
        anyhow::ensure!(labels.len() <= LABELS_MAX, "{} labels: at most {LABELS_MAX}", labels.len());
        self.store.set_fact(LABELS, &labels)?;
        self.publish();
        Ok(())
    }

    /// Tells the pool what this host is, if that is news.
    pub fn publish(&self) {
        let Some(body) = self.host_body() else { return };
        self.peers.feel(self.vitals());
        self.say(Kind::HOST, id_of_key(&self.knowledge.key()), Some(Body::Host(body.into())));
        let parts = self.parts_bodies();
        let told = (0..).take_while(|number| {
            self.knowledge.read(|book| book.get(Kind::PARTS, parts_id(*number), self.knowledge.key()).is_some()) == Some(true)
        });
        for number in 0..u16::try_from(told.count().max(parts.len())).unwrap_or(u16::MAX) {
            self.say(Kind::PARTS, parts_id(number), parts.get(usize::from(number)).cloned().map(Body::Parts));
        }
    }

    /// Writes a record if it says something else than the last.
    fn say(&self, kind: Kind, id: Id, body: Option<Body>) {
        let news = self.knowledge.read(|book| book.get(kind, id, self.knowledge.key()) != body.as_ref());
        if news == Some(true)
            && let Err(error) = self.knowledge.publish(kind, id, body)
        {
            log::error!("{error}");
        }
    }

    /// What this host is like by now: no record tells it.
    fn vitals(&self) -> Vitals {
        let (disk, free) = self.host.disk_bytes();
        let in_steps = |bytes: u64| u32::try_from((bytes >> 20) / STEP_MIB * STEP_MIB).unwrap_or(u32::MAX);
        Vitals {
            for_s: 0,
            disk_used_mib: in_steps(disk.saturating_sub(free)),
            memory_used_mib: u32::try_from(room::promised_bytes(&self.vms) >> 20).unwrap_or(u32::MAX),
            vms: u32::try_from(self.vms.all().len()).unwrap_or(u32::MAX),
        }
    }

    /// The facts of this host, as the pool is told; none where it belongs to none.
    fn host_body(&self) -> Option<HostBody> {
        let (disk_bytes, _) = self.host.disk_bytes();
        // In steps: what a file system says of itself changes a little as it is used.
        let step = 64 << 20;
        Some(HostBody {
            domain: self.store.domain().ok().flatten()?,
            addresses: self.mesh_addresses(),
            underlay: self.host.underlay(),
            api: self.api(),
            no_kvm: facts::no_kvm(),
            cpus: facts::cpus(),
            memory_bytes: self.host.memory_bytes(),
            disk_bytes: disk_bytes / step * step,
            draining: self.store.fact(DRAINING).ok().flatten().unwrap_or(false),
            durable: self.given.durable,
            version: self.knowledge.rebec().to_owned(),
            audit: self.audit.told().map(|head| AuditHead { seq: head.seq, hash: head.hash }),
            speaks: Some(Speaks {
                peer: pair(self.peers.mesh.speaks()),
                moves: pair(later::moves(self.given.later)),
                control: pair(PROTOCOL),
            }),
            cpu: self.host.cpu().map(str::to_owned),
            labels: Some(self.labels()).filter(|labels| !labels.is_empty()),
        })
    }

    /// The parts of this host, as the pool is told: as many records as they need.
    fn parts_bodies(&self) -> Vec<PartsBody> {
        self.host.depot.list().chunks(PARTS_MAX).map(|digests| PartsBody { digests: digests.to_vec() }).collect()
    }
}

fn pair(versions: Versions) -> (u16, u16) {
    (versions.lowest, versions.highest)
}
