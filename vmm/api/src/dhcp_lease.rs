//! What a port tells its own guest by DHCP: its address and what goes with it. Checked when it is made, never again.

use std::net::Ipv4Addr;

/// The IPv4 configuration of one guest NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DhcpLease {
    address: Ipv4Addr,
    prefix_bits: u8,
    gateway: Option<Ipv4Addr>,
    dns: Option<Ipv4Addr>,
}

/// Why it cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DhcpLeaseError {
    /// No host can have this address within its network.
    #[error("ip {0}/{1}: give the address of a host and the length of its network's prefix, 1 to 30, as in 10.7.0.5/24")]
    Address(Ipv4Addr, u8),
    /// The guest could not reach it.
    #[error("gateway {0}: give the address of another host in the network of ip=")]
    Gateway(Ipv4Addr),
    /// No host has this address.
    #[error("dns {0}: give the address of a host")]
    Dns(Ipv4Addr),
}

impl DhcpLease {
    /// An address in a network, and which hosts lead out of it and know names.
    pub fn new(address: Ipv4Addr, prefix_bits: u8, gateway: Option<Ipv4Addr>, dns: Option<Ipv4Addr>) -> Result<Self, DhcpLeaseError> {
        let lease = Self { address, prefix_bits, gateway, dns };
        if !(1..=30).contains(&prefix_bits) || !lease.is_host_here(address) {
            return Err(DhcpLeaseError::Address(address, prefix_bits));
        }
        if let Some(gateway) = gateway.filter(|gateway| !lease.is_neighbour(*gateway)) {
            return Err(DhcpLeaseError::Gateway(gateway));
        }
        if let Some(dns) = dns.filter(|dns| !is_host(*dns)) {
            return Err(DhcpLeaseError::Dns(dns));
        }
        Ok(lease)
    }

    /// The guest's own address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its network's mask.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix_bits)))
    }

    /// The router, if the guest is to have one.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.gateway
    }

    /// The name server, if the guest is to have one.
    pub fn dns(&self) -> Option<Ipv4Addr> {
        self.dns
    }

    /// Whether another host of the network can have this address.
    pub fn is_neighbour(&self, address: Ipv4Addr) -> bool {
        address != self.address && self.is_host_here(address)
    }

    /// Within the network, and neither its name nor its broadcast address.
    fn is_host_here(&self, address: Ipv4Addr) -> bool {
        let (mask, host) = (self.mask().to_bits(), address.to_bits());
        is_host(address) && host & mask == self.address.to_bits() & mask && host & !mask != 0 && host | mask != u32::MAX
    }
}

/// An address that one station can have.
pub fn is_host(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first < 224 && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_of_the_network_have_a_place_in_it() {
        let ip = |last| Ipv4Addr::new(10, 7, 0, last);
        let lease = DhcpLease::new(ip(5), 24, Some(ip(1)), Some(Ipv4Addr::new(9, 9, 9, 9))).unwrap();
        assert_eq!(lease.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(DhcpLease::new(ip(5), 30, Some(ip(6)), None).unwrap().mask(), Ipv4Addr::new(255, 255, 255, 252));
        for (address, bits) in [(ip(0), 24), (ip(255), 24), (ip(5), 0), (ip(5), 31), (ip(5), 255), (Ipv4Addr::new(224, 0, 0, 1), 8)] {
            assert_eq!(DhcpLease::new(address, bits, None, None), Err(DhcpLeaseError::Address(address, bits)));
        }
        for gateway in [ip(5), ip(0), ip(255), Ipv4Addr::new(10, 8, 0, 1), Ipv4Addr::LOCALHOST] {
            assert_eq!(DhcpLease::new(ip(5), 24, Some(gateway), None), Err(DhcpLeaseError::Gateway(gateway)));
        }
        assert_eq!(DhcpLease::new(ip(5), 24, None, Some(Ipv4Addr::BROADCAST)), Err(DhcpLeaseError::Dns(Ipv4Addr::BROADCAST)));
    }
}
