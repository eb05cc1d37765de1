//! VMs: `GET /v1/vms`, `POST /v1/vms` (a job), `GET /v1/vms/{name}`, `DELETE /v1/vms/{name}`,
//! `POST /v1/explain`: where a VM would go, and what each host says;
//! `POST /v1/vms/{name}/start`, `/stop`, `/move` (jobs), `/resize-disk`, `/set`; `POST /v1/vms/{name}/disks`, `DELETE /v1/vms/{name}/disks/{disk}`.
//!
//! `GET /v1/vms/{name}/logs?tail=BYTES&follow=true` is the console's text. `GET /v1/vms/{name}/console` with
//! `Connection: Upgrade, Upgrade: rebec-stream` becomes the console itself, raw bytes both ways; it ends when the VM leaves
//! the host, and the next request finds it at its new one. `GET /v1/vms/{name}/forward/{port}` upgrades to a TCP connection
//! into the guest.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The protocol a console or forwarding request upgrades to.
pub const STREAM_UPGRADE: &str = "rebec-stream";

/// `POST /v1/vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// Its name.
    pub name: String,
    /// The image it starts from.
    pub image: String,
    /// Guest memory, in whole MiB.
    #[serde(default = "NewVm::default_memory_bytes")]
    pub memory_bytes: u64,
    /// Most memory that it may come to have while it runs, in whole MiB; left out, it stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_bytes: Option<u64>,
    /// Virtual processors, 1 to 16.
    #[serde(default = "NewVm::default_vcpus")]
    pub vcpus: u8,
    /// LANs, one NIC each, in this order.
    #[serde(default)]
    pub lans: Vec<String>,
    /// Only on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Only in this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The size of its disk, in whole MiB, where that is to be larger than the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Added to the image's kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// For a NoCloud seed disk: the guest's name for itself, with its domain or without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// For a NoCloud seed disk: keys that may log in.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// For a NoCloud seed disk: its user-data, as cloud-init takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
    /// What happens when its host is lost.
    #[serde(default)]
    pub on_host_loss: OnHostLoss,
    /// What its guest is shown of a processor: `host` (the default), a level (`x86-64-v2`, `-v3`, `-v4`), what all hosts of the domain have in common
    /// (`pool`) or some of them (`pool:a1,a2`), or `only:SET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Its labels, as in `app=db`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Labels that its host must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_labels: Vec<String>,
    /// VMs, by name or by label, that must be on its host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<String>,
    /// VMs, by name or by label, that may not be on its host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<String>,
}

impl NewVm {
    /// 512 MiB.
    pub fn default_memory_bytes() -> u64 {
        512 << 20
    }

    /// One.
    pub fn default_vcpus() -> u8 {
        1
    }
}

/// One disk of a VM; `POST /v1/vms/{name}/disks` gives a stopped VM another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmDisk {
    /// What it is called.
    pub name: String,
    /// Its size, in whole MiB where it is new.
    pub bytes: u64,
}

/// `POST /v1/vms/{name}/resize-disk`: larger, while the VM runs or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeDisk {
    /// Its new size, in whole MiB.
    pub bytes: u64,
    /// Which; left out, the one that stands on the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// `POST /v1/vms/{name}/set`: what a VM may take of its host at most, from now on. What is left out stays; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetVm {
    /// Time of the host's processors, in percent of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota_percent: Option<u32>,
    /// Its share of them where others want them too, 1 to 10,000; 0 is 100 for each of its processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// Bits a second of each NIC, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_bits: Option<u64>,
    /// Requests a second of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_requests: Option<u64>,
    /// Bytes a second of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Memory, in whole MiB, from what it was created with to the most that it may come to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// What a VM may take of its host at most; what is left out has no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmLimits {
    /// Time of the host's processors, in percent of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota_percent: Option<u32>,
    /// Its share of them where others want them too, 1 to 10,000; left out, it is 100 for each of its processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    /// Bits a second of each NIC, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_bits: Option<u64>,
    /// Requests a second of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_requests: Option<u64>,
    /// Bytes a second of each disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Memory that it may have now, where that is more than it was created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Most that this may become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_max_bytes: Option<u64>,
}

/// `POST /v1/vms/{name}/stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// How long the guest has to power itself off before its power is cut, in seconds; 0 cuts at once.
    #[serde(default = "StopVm::default_timeout_s")]
    pub timeout_s: u32,
}

impl StopVm {
    /// How long a guest has where nobody said.
    pub const DEFAULT_TIMEOUT_S: u32 = 60;
    /// The longest that may be asked for.
    pub const TIMEOUT_S_MAX: u32 = 3600;

    fn default_timeout_s() -> u32 {
        Self::DEFAULT_TIMEOUT_S
    }
}

/// What happens to a VM when its host is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnHostLoss {
    /// Only its host, or an operator who declares the host dead, may start it again.
    #[default]
    Hold,
    /// Its keeper, a second host of its home domain, starts it elsewhere, from its image, once its host's lease has run out. It stands still while
    /// its host does not reach the keeper.
    Restart,
}

/// A VM as the asked host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// 32 hexadecimal digits.
    pub id: String,
    /// Where it is in its life.
    pub state: VmState,
    /// More about the state: for whom it waits, why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The host that runs it, or ran it last.
    pub host: String,
    /// That host's domain.
    pub domain: String,
    /// Its ownership counter.
    pub epoch: u64,
    /// The image it started from.
    pub image: String,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// What its guest is shown of a processor, as it was asked for.
    #[serde(default = "VmInfo::host_cpu")]
    pub cpu: String,
    /// What it may take of its host at most.
    #[serde(default)]
    pub limits: VmLimits,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Labels that its host must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_labels: Vec<String>,
    /// VMs that must be on its host, by name or by label.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<String>,
    /// VMs that may not be on its host, by name or by label.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<String>,
    /// Disks: `root`, which stands on the image's, and further ones.
    #[serde(default)]
    pub disks: Vec<VmDisk>,
    /// NICs.
    pub nics: Vec<NicInfo>,
    /// The host that keeps its desired record.
    pub home: String,
    /// What happens when its host is lost.
    pub on_host_loss: OnHostLoss,
    /// The host that has it started elsewhere when its host is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<String>,
    /// The lease that its host has from the keeper, where the VM runs or would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseState>,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// The VMM's process on its host; 0 when none runs.
    pub pid: u32,
}

impl VmInfo {
    /// What a host of a version before gives every guest.
    fn host_cpu() -> String {
        "host".to_owned()
    }
}

/// Whether a VM with a keeper may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LeaseState {
    /// Its host renews it.
    Held,
    /// Its keeper does not answer its host: the VM stands still until it does.
    RanOut,
}

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Its parts are being gathered, or its VMM is starting.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Paused by request, or because its lease has run out; `reason` says so.
    Paused,
    /// It runs, and a move is under way.
    Moving,
    /// The right to run it was granted and not yet taken up; `reason` says for whom it waits.
    Waiting,
    /// It does not run; `start` starts it from its disk.
    Stopped,
    /// It ended by itself, with an error; `start` starts it from its disk.
    Failed,
    /// Its host does not answer.
    Lost,
}

/// One NIC of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicInfo {
    /// The LAN.
    pub lan: String,
    /// The NIC's address.
    pub mac: String,
    /// Its address on the LAN.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
}

/// `POST /v1/vms/{name}/move`. Without a host, the best one is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveVm {
    /// To this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// To some host of this domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Parallel streams, 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u8>,
    /// Longest pause that is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms_max: Option<u32>,
    /// Highest rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_mbit_max: Option<u32>,
}
