//! Who may speak for whom: stations, addresses and the router's word belong to a port, whatever a guest or a machine on the way writes into its frames.
//!
//! ```text
//! from the guest    source: the NIC's own, or, on a trunk, one that no other port has; an address that is not another station's; no router's word
//! from the network  sealed: a source that the sender's port has; plain: from a machine that is an endpoint of this LAN; an address of the source's
//! ```
//! An old place of this port's own guest sends on what it got from others: for it every source is right, as it has looked already.

use std::net::{Ipv4Addr, SocketAddrV4};

use rebec_vmm_api::MacAddr;

use crate::{
    config::PortConfig,
    counters::Reason,
    dhcp,
    fdb::Fdb,
    frame::{ARP, ETHERNET_BYTES, Ethernet, ICMPV6, IPV4, IPV6},
};

/// Extension headers of IPv6 that are looked past: more than any sender needs.
const EXTENSIONS_MAX: usize = 8;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// Whether the guest may send this frame.
pub fn leaving(config: &PortConfig, fdb: &Fdb, frame: &[u8], ethernet: &Ethernet) -> Result<(), Reason> {
    if ethernet.source != config.mac {
        let may = config.trunk && !ethernet.source.is_multicast() && !fdb.is_elsewhere(ethernet.source, None);
        if !may || ethernet.source == dhcp::SERVER_MAC {
            return Err(Reason::GuestSource);
        }
    }
    if let Some(address) = claimed(frame, ethernet)
        && (is_of_another(fdb, address, ethernet.source) || is_of_the_port(config, address))
    {
        return Err(Reason::GuestAddress);
    }
    if !config.trunk && is_routers_word(frame, ethernet) {
        return Err(Reason::GuestRouter);
    }
    Ok(())
}

/// Whether a frame of whoever is behind `sender` may be heard. On a port that does not seal, that is the address that a datagram came from.
pub fn arriving(config: &PortConfig, fdb: &Fdb, sender: SocketAddrV4, frame: &[u8], ethernet: &Ethernet) -> Result<(), Reason> {
    if !config.sealed {
        // Here anybody may be anybody: that it came from a machine of this LAN is all that can be asked.
        return if fdb.is_known(*sender.ip()) { Ok(()) } else { Err(Reason::WireSource) };
    }
    if !speaks_for(config, fdb, sender, ethernet.source) {
        return Err(Reason::WireSource);
    }
    let port = fdb.port(sender);
    let is_own = port.station == Some(config.mac);
    let spoken_for = claimed(frame, ethernet).is_some_and(|address| is_of_another(fdb, address, ethernet.source));
    let routes = !is_own && !port.trunk && port.station.is_some() && is_routers_word(frame, ethernet);
    if spoken_for || routes { Err(Reason::WireAddress) } else { Ok(()) }
}

/// Whether the port whose key is behind `sender` has a station.
pub fn speaks_for(config: &PortConfig, fdb: &Fdb, sender: SocketAddrV4, station: MacAddr) -> bool {
    let port = fdb.port(sender);
    match port.station {
        Some(own) if own == config.mac || own == station => true,
        Some(_) if !port.trunk => false,
        _ => !station.is_multicast() && !fdb.is_elsewhere(station, Some(sender)),
    }
}

fn is_of_another(fdb: &Fdb, address: Ipv4Addr, source: MacAddr) -> bool {
    fdb.station_with(address).is_some_and(|owner| owner != source)
}

fn is_of_the_port(config: &PortConfig, address: Ipv4Addr) -> bool {
    let names = config.zone.as_ref().and(config.lease.as_ref()).and_then(|lease| lease.dns());
    names == Some(address) || (config.lease.is_some() && address == dhcp::SERVER)
}

/// The IPv4 address that a frame says to come from. One within a VLAN of the guests' own is their affair.
fn claimed(frame: &[u8], ethernet: &Ethernet) -> Option<Ipv4Addr> {
    if ethernet.network != ETHERNET_BYTES {
        return None;
    }
    let packet = &frame[ETHERNET_BYTES..];
    let at = match ethernet.ethertype {
        // Whatever the hardware is said to be: the address lies behind the sender's 6 bytes.
        ARP if packet.get(2..6) == Some(&[8, 0, 6, 4]) => 14,
        IPV4 => 12,
        _ => return None,
    };
    packet.get(at..at + 4)?.first_chunk::<4>().map(|address| Ipv4Addr::from(*address))
}

/// Whether a frame is a router advertisement or a redirect (RFC 4861), behind whatever extension headers (RFC 7113), or an IPv6 packet whose first
/// piece does not show what it is, as none may be (RFC 7112).
fn is_routers_word(frame: &[u8], ethernet: &Ethernet) -> bool {
    if ethernet.network != ETHERNET_BYTES || ethernet.ethertype != IPV6 {
        return false;
    }
    let Some(header) = frame[ETHERNET_BYTES..].first_chunk::<40>() else { return false };
    let (mut next, mut at) = (header[6], ETHERNET_BYTES + 40);
    for _ in 0..EXTENSIONS_MAX {
        let word = |offset: usize| frame.get(at + offset).copied();
        let bytes = match next {
            ICMPV6 => return matches!(word(0), Some(ROUTER_ADVERTISEMENT | REDIRECT)),
            // Hop by hop, routing, destination, mobility, host identity, shim6.
            0 | 43 | 60 | 135 | 139 | 140 => word(1).map(|length| (usize::from(length) + 1) * 8),
            // A later piece shows nothing, and is nothing without the first.
            44 if word(2).zip(word(3)).is_some_and(|(high, low)| high != 0 || low & 0xf8 != 0) => return false,
            44 => Some(8),
            51 => word(1).map(|length| (usize::from(length) + 2) * 4),
            _ => return false,
        };
        let Some((bytes, following)) = bytes.zip(word(0)) else { return true };
        (next, at) = (following, at + bytes);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fdb::FarPort,
        frame::{Version, samples::*},
        vxlan::Vni,
    };

    const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4789);
    const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 4789);
    const OTHER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 4789);
    const THIRD: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 3]);
    const NOBODY: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 9]);

    fn config(sealed: bool, trunk: bool) -> PortConfig {
        PortConfig { sealed, trunk, ..PortConfig::plain(Vni::new(7).unwrap(), MINE, 1400) }
    }

    /// Knows THEIRS with 10.0.0.2 at PEER and THIRD with 10.0.0.3 at OTHER.
    fn fdb(peer: FarPort) -> Fdb {
        let mut fdb = Fdb::default();
        for (station, endpoint, last) in [(THEIRS, PEER, 2), (THIRD, OTHER, 3)] {
            fdb.add(LOCAL, station, endpoint).unwrap();
            fdb.add_address(station, Ipv4Addr::new(10, 0, 0, last)).unwrap();
        }
        fdb.add_port(PEER, peer).unwrap();
        fdb
    }

    fn from(source: MacAddr, address: [u8; 4]) -> Vec<u8> {
        let mut frame = tcp(Version::V4, 1, 0x10, b"");
        frame[6..12].copy_from_slice(&source.0);
        frame[26..30].copy_from_slice(&address);
        frame
    }

    fn arp(source: MacAddr, address: [u8; 4]) -> Vec<u8> {
        [&[0xff; 6][..], &source.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &source.0, &address, &source.0, &address].concat()
    }

    fn told(frame: &[u8], judge: impl FnOnce(&Ethernet) -> Result<(), Reason>) -> Result<(), Reason> {
        judge(&Ethernet::parse(frame).unwrap())
    }

    #[test]
    fn a_guest_speaks_for_itself_and_a_bridge_for_whom_nobody_has() {
        let fdb = fdb(FarPort::default());
        let leaving = |trunk, frame: &[u8]| told(frame, |ethernet| super::leaving(&config(true, trunk), &fdb, frame, ethernet));
        for (source, own, bridged) in [
            (MINE, Ok(()), Ok(())),
            (NOBODY, Err(Reason::GuestSource), Ok(())),
            (THEIRS, Err(Reason::GuestSource), Err(Reason::GuestSource)),
            (dhcp::SERVER_MAC, Err(Reason::GuestSource), Err(Reason::GuestSource)),
            (MacAddr::BROADCAST, Err(Reason::GuestSource), Err(Reason::GuestSource)),
        ] {
            let frame = from(source, [10, 0, 0, 77]);
            assert_eq!((leaving(false, &frame), leaving(true, &frame)), (own, bridged), "{source}");
        }
        for frame in [from(MINE, [10, 0, 0, 2]), arp(MINE, [10, 0, 0, 3])] {
            assert_eq!([false, true].map(|trunk| leaving(trunk, &frame)), [Err(Reason::GuestAddress); 2]);
        }
        // Within a VLAN addresses are the guests' own.
        let tagged = [&arp(MINE, [10, 0, 0, 3])[..12], &[0x81, 0, 0, 5], &arp(MINE, [10, 0, 0, 3])[12..]].concat();
        assert_eq!(leaving(false, &tagged), Ok(()));
    }

    #[test]
    fn a_sealed_frame_is_of_a_station_that_its_sender_has() {
        let arriving =
            |peer: FarPort, frame: &[u8]| told(frame, |ethernet| super::arriving(&config(true, false), &fdb(peer), PEER, frame, ethernet));
        let of = |station, trunk| FarPort { station, trunk, takes_partial: true };
        let refused = Err(Reason::WireSource);
        for (port, theirs, third, nobody) in [
            (of(Some(THEIRS), false), Ok(()), refused, refused),
            (of(Some(THEIRS), true), Ok(()), refused, Ok(())),
            (of(None, false), Ok(()), refused, Ok(())),
            // An old place of this port's guest.
            (of(Some(MINE), false), Ok(()), Ok(()), Ok(())),
        ] {
            let heard = [THEIRS, THIRD, NOBODY].map(|source| arriving(port, &from(source, [10, 0, 0, 77])));
            assert_eq!(heard, [theirs, third, nobody], "{port:?}");
        }
        for frame in [from(THEIRS, [10, 0, 0, 3]), arp(THEIRS, [10, 0, 0, 3])] {
            assert_eq!(arriving(of(Some(THEIRS), false), &frame), Err(Reason::WireAddress));
        }
        assert_eq!(arriving(of(Some(THEIRS), false), &arp(THEIRS, [10, 0, 0, 2])), Ok(()));
    }

    #[test]
    fn a_station_whose_key_is_told_before_its_place_is_nobody_elses() {
        let mut fdb = fdb(FarPort { station: None, trunk: false, takes_partial: false });
        fdb.add_port(OTHER, FarPort { station: Some(NOBODY), ..FarPort::default() }).unwrap();
        assert!(!speaks_for(&config(true, false), &fdb, PEER, NOBODY));
        assert!(speaks_for(&config(true, false), &fdb, OTHER, NOBODY));
        fdb.remove_port(OTHER);
        assert!(speaks_for(&config(true, false), &fdb, PEER, NOBODY));
    }

    #[test]
    fn plain_datagrams_come_from_machines_of_the_lan() {
        let frame = from(NOBODY, [10, 0, 0, 77]);
        let arriving = |sender: SocketAddrV4| {
            told(&frame, |ethernet| super::arriving(&config(false, false), &fdb(FarPort::default()), sender, &frame, ethernet))
        };
        assert_eq!(arriving(SocketAddrV4::new(*PEER.ip(), 33_333)), Ok(()));
        assert_eq!(arriving(SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 4), 4789)), Err(Reason::WireSource));
    }

    #[test]
    fn no_router_speaks_from_a_guest_however_it_is_wrapped() {
        let packet = |next: u8, rest: &[u8]| {
            let mut frame = ethernet(MacAddr([0x33, 0x33, 0, 0, 0, 1]), MINE, IPV6, &[0x60, 0, 0, 0, 0, 0, next, 255]);
            frame.extend([0; 32]);
            frame.extend(rest);
            frame
        };
        let word = |frame: &[u8]| is_routers_word(frame, &Ethernet::parse(frame).unwrap());
        let advertisement = [134, 0, 0, 0, 0, 0, 0, 0];
        assert!(word(&packet(58, &advertisement)) && word(&packet(58, &[137, 0])));
        assert!(!word(&packet(58, &[133, 0])) && !word(&packet(58, &[136, 0])) && !word(&packet(6, &advertisement)));
        for kind in [0_u8, 43, 60, 135, 139, 140] {
            assert!(word(&packet(kind, &[&[58, 0, 0, 0, 0, 0, 0, 0][..], &advertisement].concat())), "{kind}");
            // Cut off within the header.
            assert!(word(&packet(kind, &[58])), "{kind}");
        }
        // First and later pieces; a header longer than the packet; headers without end.
        assert!(word(&packet(44, &[&[58, 0, 0, 1, 0, 0, 0, 0][..], &advertisement].concat())));
        assert!(!word(&packet(44, &[&[58, 0, 0, 9, 0, 0, 0, 0][..], &advertisement].concat())));
        assert!(word(&packet(51, &[&[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &advertisement].concat())));
        assert!(word(&packet(0, &[60, 9, 0, 0])));
        assert!(word(&packet(0, &[0; 200])));
    }
}
