//! What a port is told once: its LAN, its guest's NIC, and what the guest is to hear by DHCP, DNS and router advertisements.

use std::{net::Ipv6Addr, sync::Arc};

use rebec_vmm_api::{DhcpLease, MacAddr};

use crate::vxlan::Vni;

/// What a port is, for life.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// The LAN's label.
    pub vni: Vni,
    /// The NIC's address.
    pub mac: MacAddr,
    /// Largest IP packet that the guest exchanges.
    pub mtu: u16,
    /// What the guest is told by DHCP; without it, its questions go to the LAN.
    pub lease: Option<DhcpLease>,
    /// Whether its datagrams are sealed.
    pub sealed: bool,
    /// Whether the guest bridges: it speaks for other stations too, as long as nobody else has them.
    pub trunk: bool,
    /// The names that the port answers for, at the lease's name server.
    pub zone: Option<Zone>,
    /// The first half of the addresses that guests make themselves (RFC 4862), which the port announces as a router does.
    pub prefix6: Option<Ipv6Addr>,
}

/// Names of a LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// What they end with, in small letters: `office.rebec`.
    pub domain: Arc<str>,
    /// What this port's guest is called, in small letters.
    pub label: Option<Arc<str>>,
}

impl PortConfig {
    /// A port that tells its guest nothing and does not seal.
    pub fn plain(vni: Vni, mac: MacAddr, mtu: u16) -> Self {
        Self { vni, mac, mtu, lease: None, sealed: false, trunk: false, zone: None, prefix6: None }
    }
}
