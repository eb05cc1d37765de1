//! What a port is told once: its LAN, its guest's NIC, and what the guest is to hear by DHCP.

use rebec_vmm_api::{DhcpLease, MacAddr};

use crate::vxlan::Vni;

/// What a port is, for life.
#[derive(Debug, Clone, Copy)]
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
}
