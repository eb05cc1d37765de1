//! Hosts: `GET /v1/hosts` and `GET /v1/hosts/{name}`; `POST /v1/hosts/{name}/drain`, `/role` and `/declare-dead`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::audit::AuditMark;

/// A host as the asked one knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its name, unique in the pool: `HOST` or, where two chose one name, `HOST-` and the first digits of its key.
    pub name: String,
    /// Its domain.
    pub domain: String,
    /// Its key, 64 hexadecimal digits.
    pub key: String,
    /// What root at its socket may do in its domain.
    #[serde(default = "HostRole::none")]
    pub role: HostRole,
    /// Whether it answers.
    pub state: HostState,
    /// Since when it has not been heard, in seconds; 0 when it answers.
    pub silent_s: u64,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// How its clock is kept; only of the host that answers, and only where its agent keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// Why no VM can run there; none where they can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_kvm: Option<String>,
    /// Processors.
    pub cpus: u32,
    /// Memory that VMs may have, all of them together.
    pub memory_bytes: u64,
    /// Memory that VMs have.
    pub memory_used_bytes: u64,
    /// Room for disks and parts.
    pub disk_bytes: u64,
    /// Room taken or promised.
    pub disk_used_bytes: u64,
    /// VMs there.
    pub vms: u32,
    /// Whether its state survives a reboot.
    pub durable: bool,
    /// Version of Rebec.
    pub version: String,
    /// Its labels, as in `rack=r1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What it speaks; none of one that is older than this is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocols: Option<Protocols>,
    /// What it gives guests of its processor; none where no VM can run, or of a host that is older than this is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Processor>,
    /// The last row of its audit log of which it told the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditMark>,
    /// Whether it is the host that answers this request.
    pub this: bool,
}

/// `GET /v1/hosts/{name}/roads`: how a host reaches another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RoadInfo {
    /// The other host; one of another domain with that before it.
    pub host: String,
    /// For how long it has not been heard, in seconds; 0 where it answers.
    pub silent_s: u64,
    /// The address here that the path begins at, if the system says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The address and port that it ends at; none while no connection is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// There and back, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// Packets sent since the connection began.
    pub sent_packets: u64,
    /// Those of them that did not arrive.
    pub lost_packets: u64,
    /// The largest packet that comes through, of 1,500 bytes at most; none where that is not known (yet), or by IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_bytes: Option<u16>,
    /// What is wrong with it, and what helps; none of what is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What guests are given of a host's processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Processor {
    /// The greatest level of x86-64 that it has; none where it is below x86-64-v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Its features, as Linux calls them.
    pub features: Vec<String>,
    /// The same as a set: `only:SET` is a VM's CPU model.
    pub set: String,
}

/// Versions of protocols that a host speaks, each a number or from the oldest to the newest as in `1-2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Protocols {
    /// With other hosts.
    pub peer: String,
    /// In moves of VMs.
    pub moves: String,
    /// With its VMMs.
    pub control: String,
}

/// What root at a host's socket may do in the host's domain, the least first: each may do what those before it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostRole {
    /// What is about that machine alone.
    None,
    /// Looks.
    Viewer,
    /// Runs VMs.
    User,
    /// Runs VMs for a scheduler's queue, and says what that wants.
    Scheduler,
    /// Looks after hosts, images and LANs.
    #[default]
    Operator,
    /// Decides who belongs to the domain.
    Admin,
}

impl HostRole {
    /// Whether a host has it unless somebody says otherwise.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// What a host has that was given none.
    pub fn none() -> Self {
        Self::None
    }
}

/// `POST /v1/hosts/{name}/role`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRole {
    /// What root at its socket may do from now on.
    pub role: HostRole,
}

/// Whether a host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// It answers and takes VMs.
    Ready,
    /// It answers and takes none: it is being emptied.
    Draining,
    /// It does not answer.
    Silent,
    /// An operator has declared it dead.
    Dead,
}

/// `POST /v1/hosts/{name}/drain`; no body is the same as an empty one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainHost {
    /// The host takes VMs again.
    #[serde(default)]
    pub undo: bool,
}

/// `POST /v1/hosts/{name}/declare-dead`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclareDead {
    /// Why the operator knows that it does not run: kept for audit.
    pub reason: String,
}

/// `POST /v1/hosts/{name}/set`: what its operators say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetHost {
    /// Labels that it gets, as in `rack=r1`; of one key it has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Keys of labels that it loses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_labels: Vec<String>,
}

/// What one host says about a VM that wants a place, in the list that `POST /v1/explain` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostVerdict {
    /// The host.
    pub host: String,
    /// Its domain.
    pub domain: String,
    /// Whether it would take the VM.
    pub takes: bool,
    /// Whether the VM would go there.
    pub chosen: bool,
    /// What speaks for it; or why not.
    pub why: String,
}
