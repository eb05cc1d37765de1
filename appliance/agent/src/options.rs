//! What the user says to an agent that starts.

use std::{net::IpAddr, path::PathBuf};

use rebec_cpu::Model;
use rebec_links::{Addressing, Vlan};

use crate::later::Later;

/// What the user says.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything that survives.
    pub state: PathBuf,
    /// The API's Unix socket.
    pub socket: PathBuf,
    /// The mesh's UDP port.
    pub port: u16,
    /// The API's TCP port; 0 where it is only on the Unix socket.
    pub api_port: u16,
    /// `rebec-vmm`.
    pub vmm: PathBuf,
    /// The name this host would like.
    pub name: Option<String>,
    /// The address that its mesh endpoint has, and its ports if it is IPv4.
    pub address: Option<IpAddr>,
    /// Memory that VMs may have, where it is not all but what the host keeps.
    pub memory_bytes: Option<u64>,
    /// What guests are given of its processor at most.
    pub cpu_max: Model,
    /// Whether the state folder survives a reboot.
    pub durable: bool,
    /// The status screen's file.
    pub screen: Option<PathBuf>,
    /// Whether the agent brings the machine's links up: an address with its gateway, or by DHCP.
    pub links: Option<Addressing>,
    /// VLANs that its links carry.
    pub vlans: Vec<Vlan>,
    /// Whether the agent keeps the machine's clock: by these time servers or, where it is told of none, by those that DHCP names.
    pub time: Option<Vec<IpAddr>>,
    /// A ticket to join with when this host belongs to no pool.
    pub ticket: Option<String>,
    /// What is otherwise in the version that the lab plays.
    pub later: Option<Later>,
}
