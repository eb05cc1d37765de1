//! The guest's own IP addresses, as its frames say: what has to be announced where it arrives.
//!
//! Only ARP and neighbour discovery count. Both never pass a router, so the address they speak for is the speaker's; the source of an
//! ordinary packet may be any host behind a guest that routes, and announcing that one would take its traffic away.
//!
//! ```text
//! saved form   version:u8 = 1   router:u8 = 0|1   count:u8   count times ( 4:u8 address:4 | 6:u8 address:16 )
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rebec_vmm_api::{MacAddr, dhcp_lease::is_host};

use crate::frame::{ARP, ETHERNET_BYTES, Ethernet, ICMPV6, Ip, Version};

/// Addresses kept; the ones longest unheard make room. A NIC with link-local, global and temporary addresses has four or five.
pub const ADDRESSES_MAX: usize = 8;

const SAVED_VERSION: u8 = 1;

/// What is known of the guest's addresses, the last heard first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestAddresses {
    recent: Vec<IpAddr>,
    router: bool,
}

/// Saved bytes that are not addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SavedAddressesError {
    /// Another version wrote them.
    #[error("addresses of a network port: version {0} is not known, {SAVED_VERSION} is")]
    Version(u8),
    /// They end early, go on too long or hold what no guest has.
    #[error("addresses of a network port: damaged")]
    Damaged,
}

impl GuestAddresses {
    /// Looks at one frame of the guest, whose NIC has the address `mac`.
    pub fn observe(&mut self, mac: MacAddr, frame: &[u8], ethernet: &Ethernet) {
        // Within a VLAN of the guests' own an announcement would have to be tagged too.
        if ethernet.network != ETHERNET_BYTES {
            return;
        }
        if ethernet.ethertype == ARP {
            if let Some(address) = arp_sender(mac, &frame[ETHERNET_BYTES..]) {
                self.note(address.into());
            }
        } else if let Some(ip) = Ip::parse(frame, ethernet).filter(|ip| ip.version == Version::V6 && ip.plain && ip.protocol == ICMPV6) {
            self.observe_discovery(frame, &ip);
        }
    }

    fn observe_discovery(&mut self, frame: &[u8], ip: &Ip) {
        const HOP_LIMIT: u8 = 255;
        const ROUTER_SOLICITATION: u8 = 133;
        const ROUTER_ADVERTISEMENT: u8 = 134;
        const NEIGHBOUR_SOLICITATION: u8 = 135;
        const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
        let header = &frame[ip.network..ip.transport];
        let (Some(&[kind, _, _, _, flags]), Some(source)) = (frame[ip.transport..].first_chunk(), header[8..].first_chunk::<16>()) else {
            return;
        };
        if header[7] != HOP_LIMIT || !(ROUTER_SOLICITATION..=NEIGHBOUR_ADVERTISEMENT).contains(&kind) {
            return;
        }
        match kind {
            ROUTER_ADVERTISEMENT => self.router = true,
            NEIGHBOUR_ADVERTISEMENT => self.router = flags & 0x80 != 0,
            NEIGHBOUR_SOLICITATION | ROUTER_SOLICITATION => {}
            _ => return,
        }
        self.note(Ipv6Addr::from(*source).into());
    }

    fn note(&mut self, address: IpAddr) {
        if !is_station(address) || self.recent.first() == Some(&address) {
            return;
        }
        self.recent.retain(|known| *known != address);
        self.recent.truncate(ADDRESSES_MAX - 1);
        self.recent.insert(0, address);
    }

    /// The addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.recent
    }

    /// Whether the guest called itself an IPv6 router: an advertisement that leaves this out takes routes away (RFC 4861 §7.2.5).
    pub fn is_router(&self) -> bool {
        self.router
    }

    /// The saved form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![SAVED_VERSION, u8::from(self.router), self.recent.len() as u8];
        for address in &self.recent {
            match address {
                IpAddr::V4(address) => {
                    bytes.push(4);
                    bytes.extend(address.octets());
                }
                IpAddr::V6(address) => {
                    bytes.push(6);
                    bytes.extend(address.octets());
                }
            }
        }
        bytes
    }

    /// Reads the saved form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SavedAddressesError> {
        const DAMAGED: SavedAddressesError = SavedAddressesError::Damaged;
        let (&[version, router, count], mut rest) = bytes.split_first_chunk().ok_or(DAMAGED)?;
        if version != SAVED_VERSION {
            return Err(SavedAddressesError::Version(version));
        }
        if router > 1 || usize::from(count) > ADDRESSES_MAX {
            return Err(DAMAGED);
        }
        let mut recent = Vec::new();
        for _ in 0..count {
            let (kind, after) = rest.split_first().ok_or(DAMAGED)?;
            let (address, after): (IpAddr, _) = match kind {
                4 => after.split_first_chunk::<4>().map(|(octets, after)| ((*octets).into(), after)).ok_or(DAMAGED)?,
                6 => after.split_first_chunk::<16>().map(|(octets, after)| ((*octets).into(), after)).ok_or(DAMAGED)?,
                _ => return Err(DAMAGED),
            };
            if !is_station(address) || recent.contains(&address) {
                return Err(DAMAGED);
            }
            recent.push(address);
            rest = after;
        }
        if rest.is_empty() { Ok(Self { recent, router: router == 1 }) } else { Err(DAMAGED) }
    }
}

/// An address that one station can hold.
fn is_station(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_host(address),
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_loopback() && !address.is_multicast(),
    }
}

/// The address an ARP packet speaks for (RFC 826), if it speaks for `mac`.
fn arp_sender(mac: MacAddr, packet: &[u8]) -> Option<Ipv4Addr> {
    let packet: &[u8; 28] = packet.first_chunk()?;
    let ethernet_and_ipv4 = packet[..6] == [0, 1, 8, 0, 6, 4];
    (ethernet_and_ipv4 && packet[8..14] == mac.0).then(|| Ipv4Addr::new(packet[14], packet[15], packet[16], packet[17]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{announce, frame::samples::*};

    fn observed(addresses: &mut GuestAddresses, frame: &[u8]) {
        addresses.observe(MINE, frame, &Ethernet::parse(frame).unwrap());
    }

    #[test]
    fn what_a_guest_announces_is_what_it_has() {
        let mut addresses = GuestAddresses::default();
        let (v4, v6) = ("10.0.0.7".parse().unwrap(), "fe80::7".parse().unwrap());
        observed(&mut addresses, &announce::arp_request(MINE, v4));
        observed(&mut addresses, &announce::neighbour_advertisement(MINE, v6, true));
        assert_eq!(addresses.addresses(), [IpAddr::V6(v6), IpAddr::V4(v4)]);
        assert!(addresses.is_router());
        assert_eq!(GuestAddresses::from_bytes(&addresses.to_bytes()), Ok(addresses));
    }

    #[test]
    fn others_addresses_do_not_count() {
        let mut addresses = GuestAddresses::default();
        observed(&mut addresses, &announce::arp_request(THEIRS, "10.0.0.7".parse().unwrap()));
        observed(&mut addresses, &announce::arp_request(MINE, "0.0.0.0".parse().unwrap()));
        observed(&mut addresses, &announce::arp_request(MINE, "224.0.0.1".parse().unwrap()));
        observed(&mut addresses, &tcp(Version::V4, 1, 0x10, b""));
        let mut routed = announce::neighbour_advertisement(MINE, "fe80::7".parse().unwrap(), false);
        routed[14 + 7] = 254;
        observed(&mut addresses, &routed);
        observed(&mut addresses, &announce::arp_request(MINE, "10.0.0.7".parse().unwrap())[..30]);
        assert_eq!(addresses, GuestAddresses::default());
    }

    #[test]
    fn the_longest_unheard_makes_room() {
        let mut addresses = GuestAddresses::default();
        for last in [1, 2, 3, 4, 5, 6, 7, 8, 1, 9] {
            observed(&mut addresses, &announce::arp_request(MINE, Ipv4Addr::new(10, 0, 0, last)));
        }
        let last: Vec<_> = addresses.addresses().iter().map(|address| address.to_string()).collect();
        assert_eq!(last, ["10.0.0.9", "10.0.0.1", "10.0.0.8", "10.0.0.7", "10.0.0.6", "10.0.0.5", "10.0.0.4", "10.0.0.3"]);
    }

    #[test]
    fn golden_bytes() {
        let bytes = [1, 0, 1, 4, 10, 0, 0, 7];
        let addresses = GuestAddresses::from_bytes(&bytes).unwrap();
        assert_eq!(addresses.addresses(), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses.to_bytes(), bytes);
        for damaged in
            [&[][..], &[1, 0], &[1, 0, 1], &[1, 2, 0], &[1, 0, 9], &[1, 0, 0, 4], &[1, 0, 1, 5, 1, 2, 3, 4], &[1, 0, 1, 4, 0, 0, 0, 0]]
        {
            assert_eq!(GuestAddresses::from_bytes(damaged), Err(SavedAddressesError::Damaged), "{damaged:?}");
        }
        assert_eq!(GuestAddresses::from_bytes(&[2, 0, 0]), Err(SavedAddressesError::Version(2)));
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(addresses) = GuestAddresses::from_bytes(&bytes) {
                prop_assert_eq!(addresses.to_bytes(), bytes);
            }
        }
    }
}
