//! What a host says of itself.

use std::net::{Ipv4Addr, SocketAddr};

use minicbor::{Decode, Encode};

use super::{machine::CPU_BYTES_MAX, placing::are_labels};
use crate::key::{Digest, Key};

/// What a host is and where. What changes by itself (room taken, load) is in no record: [`crate::gossip::message::Vitals`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct HostBody {
    /// The domain that it says it belongs to.
    #[n(0)]
    pub domain: Key,
    /// Where its mesh endpoint is reached.
    #[n(1)]
    pub addresses: Vec<SocketAddr>,
    /// The address its ports have.
    #[n(2)]
    pub underlay: Option<Ipv4Addr>,
    /// Where its API listens.
    #[n(3)]
    pub api: Option<SocketAddr>,
    /// Why no VM can run there.
    #[n(4)]
    pub no_kvm: Option<String>,
    /// Processors.
    #[n(5)]
    pub cpus: u32,
    /// Memory for VMs, all together.
    #[n(6)]
    pub memory_bytes: u64,
    /// Room for disks and parts.
    #[n(7)]
    pub disk_bytes: u64,
    /// Whether it is being emptied.
    #[n(8)]
    pub draining: bool,
    /// Whether its state survives a reboot.
    #[n(9)]
    pub durable: bool,
    /// Version of Rebec.
    #[n(10)]
    pub version: String,
    /// How far its audit log was: whoever has this record knows if that log is written anew.
    #[n(11)]
    pub audit: Option<AuditHead>,
    /// What it speaks.
    #[n(12)]
    pub speaks: Option<Speaks>,
    /// What it gives guests of its processor, as a set of features (`rebec-vmm cpu`); none where no VM can run or it did not say.
    #[n(13)]
    pub cpu: Option<String>,
    /// Its labels, as in `rack=r1`, which its domain's operators gave it.
    #[n(16)]
    pub labels: Option<Vec<String>>,
}

impl HostBody {
    /// A host that says no more than to which domain it belongs.
    pub fn bare(domain: Key) -> Self {
        Self {
            domain,
            addresses: vec![],
            underlay: None,
            api: None,
            no_kvm: None,
            cpus: 1,
            memory_bytes: 0,
            disk_bytes: 0,
            draining: false,
            durable: true,
            version: String::new(),
            audit: None,
            speaks: None,
            cpu: None,
            labels: None,
        }
    }
}

impl HostBody {
    /// Its labels.
    pub fn labels(&self) -> &[String] {
        self.labels.as_deref().unwrap_or_default()
    }

    pub(super) fn has_sound_labels(&self) -> bool {
        are_labels(self.labels())
    }

    pub(super) fn has_sound_cpu(&self) -> bool {
        self.cpu.as_ref().is_none_or(|cpu| cpu.len() <= CPU_BYTES_MAX)
    }
}

/// Versions of protocols, each from the oldest to the newest that a host speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Speaks {
    /// With other hosts.
    #[n(0)]
    pub peer: (u16, u16),
    /// In moves.
    #[n(1)]
    pub moves: (u16, u16),
    /// With its VMMs.
    #[n(2)]
    pub control: (u16, u16),
}

/// The last row of a host's audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct AuditHead {
    /// Its number.
    #[n(0)]
    pub seq: u64,
    /// Its hash.
    #[n(1)]
    pub hash: Digest,
}

/// Some of the parts in a host's depot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PartsBody {
    /// Which.
    #[n(0)]
    pub digests: Vec<Digest>,
}
