//! What a VM needs of the host that it goes to.

use rebec_book::{
    Key,
    key::{Digest, Id},
    record::{Partner, VmBody},
};
use rebec_cpu::Model;

/// What a VM needs.
#[derive(Debug, Clone, Default)]
pub struct Want {
    /// The VM; none of one that has no record yet.
    pub vm: Option<Id>,
    /// The domain that it is at home in, which is preferred; without one nothing is.
    pub home_domain: Option<Key>,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Room on the host's disk that it may come to take.
    pub disk_bytes: u64,
    /// LANs that it is on.
    pub lans: Vec<Id>,
    /// Only this host.
    pub host: Option<Key>,
    /// Only this domain.
    pub domain: Option<Key>,
    /// Not this host: the one it leaves.
    pub leaves: Option<Key>,
    /// In another domain than its home's and the one that it leaves only where a contract lets it come.
    pub by_contract: bool,
    /// Parts that need not be fetched where they are.
    pub parts: Vec<Digest>,
    /// Hosts that run a VM of the same image and trust, of whose content the one that moves need not be sent what both hold.
    pub donors: Vec<Key>,
    /// What its guest is shown of a processor; of one that runs, all that it may use.
    pub cpu: Model,
    /// Its own labels.
    pub labels: Vec<String>,
    /// Labels that its host must have.
    pub hosts: Vec<String>,
    /// Each of these must be on its host.
    pub near: Vec<Partner>,
    /// None of these may be on its host.
    pub apart: Vec<Partner>,
}

impl Want {
    /// What a record says that a VM needs. `disk_bytes` is what its disks may come to take.
    pub fn of(vm: Option<Id>, home_domain: Option<Key>, body: &VmBody, disk_bytes: u64) -> Self {
        let placing = body.placing.as_deref().cloned().unwrap_or_default();
        Self {
            vm,
            home_domain,
            memory_bytes: body.granted_bytes(),
            vcpus: body.vcpus.into(),
            disk_bytes,
            lans: body.nics.iter().map(|nic| nic.lan).collect(),
            parts: body.image.parts().map(|part| part.digest).collect(),
            cpu: body.cpu.as_ref().and_then(|cpu| cpu.model.parse().ok()).unwrap_or_default(),
            labels: placing.labels,
            hosts: placing.hosts,
            near: placing.near,
            apart: placing.apart,
            ..Self::default()
        }
    }
}
