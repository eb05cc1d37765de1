//! Whom a VM talks to on its LANs: `GET /v1/vms/{name}/traffic`. LANs: `GET /v1/lans`, `POST /v1/lans`, `GET /v1/lans/{name}`, `DELETE /v1/lans/{name}`.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/lans`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLan {
    /// Its name.
    pub name: String,
    /// Its address range, as in `10.5.0.0/24`; none takes a free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
    /// Other domains whose VMs may be on it; its own domain's always may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// Whether frames travel as plain VXLAN, for a wire that everybody on it may read and write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unsealed: bool,
    /// Largest packet of its VMs, for life, from 1,280 to 8,900 bytes; none takes 1,400, which any wire of 1,500 bytes carries sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// `POST /v1/lans/{name}/set`: what is not said stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLan {
    /// Bits that each of its ports may send a second, and receive; 0 is as many as go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_bits: Option<u64>,
}

/// A LAN with its ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LanInfo {
    /// Its name.
    pub name: String,
    /// 128 random bits, 32 hexadecimal digits.
    pub id: String,
    /// Its label on the wire.
    pub vni: u32,
    /// Its address range.
    pub range: String,
    /// Largest packet, for life.
    pub mtu: u16,
    /// Whether frames are sealed on their way between ports.
    #[serde(default)]
    pub sealed: bool,
    /// Bits that each of its ports may send a second, and receive; as many as go where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_bits: Option<u64>,
    /// The host that allocates its addresses.
    pub home: String,
    /// Other domains whose VMs may be on it.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Parts of its range in the hands of hosts, which give them to their VMs.
    #[serde(default)]
    pub parts: Vec<RangeInfo>,
    /// Ports.
    pub ports: Vec<PortInfo>,
    /// Paths from the host that answers to others with ports that carry less than its packets on the way, as far as that is known. Where one LAN is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub narrow: Vec<NarrowPath>,
}

/// A path between hosts on which a LAN's packets are cut in two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NarrowPath {
    /// The host at its other end.
    pub host: String,
    /// The largest packet that it carries.
    pub bytes: u16,
    /// The largest packet of the LAN between hosts.
    pub needs: u16,
}

/// Part of a LAN's range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RangeInfo {
    /// Whose it is.
    pub host: String,
    /// Its first address.
    #[schema(value_type = String)]
    pub first: Ipv4Addr,
    /// Its last address.
    #[schema(value_type = String)]
    pub last: Ipv4Addr,
    /// Addresses of it that VMs have.
    pub used: u32,
}

/// One VM's NIC on a LAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortInfo {
    /// The VM.
    pub vm: String,
    /// The host that runs it.
    pub host: String,
    /// The NIC's address.
    pub mac: String,
    /// Its address on the LAN.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// The VXLAN endpoint: IP:PORT; empty while the VM does not run.
    pub endpoint: String,
}

/// `GET /v1/vms/{name}/traffic`: whom a VM talks to, as its host counts it every ten seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmTraffic {
    /// The VM.
    pub vm: String,
    /// Time in which what was counts half in rates, in seconds.
    pub half_life_s: u64,
    /// By NIC and station.
    pub flows: Vec<Flow>,
}

/// What passes between a VM's NIC and one station of its LAN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flow {
    /// The VM's NIC.
    pub nic: String,
    /// The station; `ff:ff:ff:ff:ff:ff` for what went to all, and what was not told apart.
    pub station: String,
    /// Bytes a second to it, lately.
    pub tx_bytes_per_s: u64,
    /// Bytes a second from it, lately.
    pub rx_bytes_per_s: u64,
    /// Bytes of frames to it since the VM started on its host.
    pub tx_bytes: u64,
    /// Frames to it, as they were on the wire.
    pub tx_packets: u64,
    /// Bytes of frames from it.
    pub rx_bytes: u64,
    /// Frames from it, as they were on the wire.
    pub rx_packets: u64,
}
