//! LANs: `GET /v1/lans`, `POST /v1/lans`, `GET /v1/lans/{name}`, `DELETE /v1/lans/{name}`.

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
