//! Neighbour discovery of IPv6 (RFC 4861) as far as a port answers it: questions for addresses that tell their station, and for the router of all.
//!
//! ```text
//! solicitation   to a group, for an address made of a MAC (RFC 4291 appendix A) under fe80::/64 or the LAN's prefix      answered, if that station is known
//! to all routers                                                                                                          answered, if the LAN has a prefix
//! ```
//! The advertisement says what addresses begin with (RFC 4862) and the MTU, and that there is no way out: its router has no time to live. Addresses
//! that tell nothing (RFC 7217, RFC 8981) are asked of all, as before.

use std::net::Ipv6Addr;

use rebec_vmm_api::MacAddr;

use crate::{
    config::PortConfig,
    fdb::Fdb,
    frame::{Ethernet, ICMPV6, Ip, Version},
    reply::{SERVER_MAC, icmp6},
};

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The address that a station makes of its own (RFC 4862 §5.3): half of it is its MAC with a bit turned.
pub fn made_of(prefix: Ipv6Addr, station: MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = station.0;
    let half = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(prefix.to_bits() & !u128::from(u64::MAX) | u128::from(half))
}

/// Of which station an address is made, if of any.
pub fn station_of(address: Ipv6Addr) -> Option<MacAddr> {
    let [.., a, b, c, 0xff, 0xfe, d, e, f] = address.octets() else { return None };
    Some(MacAddr([a ^ 2, b, c, d, e, f]))
}

/// The answer to an untagged IPv6 frame of the guest, if it ends here.
pub fn look(config: &PortConfig, fdb: &Fdb, frame: &[u8], ethernet: &Ethernet, ip: &Ip) -> Option<Vec<u8>> {
    if ip.version != Version::V6 || ip.protocol != ICMPV6 || !ip.plain || !ethernet.destination.is_multicast() {
        return None;
    }
    let header = &frame[ip.network..ip.transport];
    let (message, source) = (frame.get(ip.transport..ip.end)?, header[8..].first_chunk::<16>()?);
    if header[7] != 255 {
        return None;
    }
    match message {
        [ROUTER_SOLICITATION, 0, ..] => config.prefix6.map(|prefix| advertisement(config, prefix)),
        [NEIGHBOUR_SOLICITATION, 0, _, _, _, _, _, _, rest @ ..] => {
            rest.first_chunk::<16>().and_then(|wanted| neighbour(config, fdb, Ipv6Addr::from(*source), Ipv6Addr::from(*wanted)))
        }
        _ => None,
    }
}

/// The checksum of a question is not looked at: the guest may have left it to be completed, and no wire was crossed.
fn neighbour(config: &PortConfig, fdb: &Fdb, source: Ipv6Addr, wanted: Ipv6Addr) -> Option<Vec<u8>> {
    let station = station_of(wanted).filter(|station| *station != config.mac)?;
    let of_the_lan = [Some(LINK_LOCAL), config.prefix6].into_iter().flatten().any(|prefix| made_of(prefix, station) == wanted);
    let is_router = config.prefix6.is_some() && station == SERVER_MAC;
    if !of_the_lan || (fdb.endpoint(station).is_none() && !is_router) {
        return None;
    }
    // Who has no address yet asks whether this one is free, and hears the answer as all do.
    let (to, solicited) = if source.is_unspecified() { ((ALL_NODES_MAC, ALL_NODES), 0) } else { ((config.mac, source), 0x40) };
    let flags = 0x20 | solicited | if is_router { 0x80 } else { 0 };
    let message = [&[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0][..], &wanted.octets(), &[2, 1], &station.0].concat();
    Some(icmp6(to, (station, wanted), message))
}

fn advertisement(config: &PortConfig, prefix: Ipv6Addr) -> Vec<u8> {
    const FOREVER: [u8; 4] = [0xff; 4];
    const HOPS: u8 = 64;
    let mtu = u32::from(config.mtu).to_be_bytes();
    let message = [
        &[ROUTER_ADVERTISEMENT, 0, 0, 0, HOPS, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 1],
        &SERVER_MAC.0,
        &[5, 1, 0, 0],
        &mtu,
        // On this link, and to make addresses of.
        &[3, 4, 64, 0xc0],
        &FOREVER,
        &FOREVER,
        &[0; 4],
        &prefix.octets(),
    ];
    icmp6((ALL_NODES_MAC, ALL_NODES), (SERVER_MAC, made_of(LINK_LOCAL, SERVER_MAC)), message.concat())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::{
        frame::{IPV6, samples::*},
        segment::tests::assert_whole,
        vxlan::Vni,
    };

    const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, 0);

    fn ask(prefix6: Option<Ipv6Addr>, source: Ipv6Addr, message: &[u8]) -> Option<Vec<u8>> {
        let config = PortConfig { prefix6, ..PortConfig::plain(Vni::new(7).unwrap(), MINE, 1400) };
        let mut fdb = Fdb::default();
        let endpoint = |last| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), 4789);
        fdb.add(endpoint(1), THEIRS, endpoint(2)).unwrap();
        let group = MacAddr([0x33, 0x33, 0, 0, 0, 2]);
        let header = [&[0x60, 0, 0, 0][..], &(message.len() as u16).to_be_bytes(), &[ICMPV6, 255], &source.octets(), &ALL_NODES.octets()];
        let frame = ethernet(group, MINE, IPV6, &[&header.concat()[..], message].concat());
        let parsed = Ethernet::parse(&frame).unwrap();
        look(&config, &fdb, &frame, &parsed, &Ip::parse(&frame, &parsed).unwrap())
    }

    fn solicitation(wanted: Ipv6Addr) -> Vec<u8> {
        [&[NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &wanted.octets(), &[1, 1], &MINE.0].concat()
    }

    #[test]
    fn addresses_are_made_of_stations_and_tell_them() {
        let address = made_of(PREFIX, THEIRS);
        assert_eq!(address.to_string(), "fd12:3456:789a:1:5054:ff:fe00:2");
        assert_eq!(station_of(address), Some(THEIRS));
        assert_eq!(station_of("fd12::1".parse().unwrap()), None);
    }

    #[test]
    fn who_is_known_is_answered_for_and_nobody_else() {
        let source = made_of(LINK_LOCAL, MINE);
        for wanted in [made_of(LINK_LOCAL, THEIRS), made_of(PREFIX, THEIRS)] {
            let answer = ask(Some(PREFIX), source, &solicitation(wanted)).unwrap();
            let ip = assert_whole(&answer);
            let message = &answer[ip.transport..];
            assert_eq!((&answer[..6], &answer[6..12], message[4]), (&MINE.0[..], &THEIRS.0[..], 0x60));
            assert_eq!((&message[8..24], &message[24..]), (&wanted.octets()[..], &[&[2, 1][..], &THEIRS.0].concat()[..]));
            let doubted = ask(Some(PREFIX), Ipv6Addr::UNSPECIFIED, &solicitation(wanted)).unwrap();
            assert_eq!((&doubted[..6], doubted[54 + 4]), (&ALL_NODES_MAC.0[..], 0x20));
        }
        let other = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0);
        for wanted in
            [made_of(PREFIX, MINE), made_of(other, THEIRS), made_of(PREFIX, MacAddr([2, 0, 0, 0, 0, 9])), "fe80::1".parse().unwrap()]
        {
            assert_eq!(ask(Some(PREFIX), source, &solicitation(wanted)), None, "{wanted}");
        }
        assert_eq!(ask(None, source, &solicitation(made_of(PREFIX, THEIRS))), None);
        assert_eq!(ask(Some(PREFIX), source, &solicitation(made_of(PREFIX, THEIRS))[..23]), None);
    }

    /// By an independent hand: RFC 4861 §4.2, §4.6.1, §4.6.2, §4.6.4.
    #[test]
    fn golden_bytes_of_a_router_advertisement() {
        let answer = ask(Some(PREFIX), made_of(LINK_LOCAL, MINE), &[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let ip = assert_whole(&answer);
        let expected = "86 00 sum! 40 00 0000 00000000 00000000 0101 0200a9fea9fd 0501 0000 00000578 0304 40 c0 ffffffff ffffffff 00000000 \
                        fd123456789a0001 0000000000000000";
        let sum: String = answer[ip.transport + 2..ip.transport + 4].iter().map(|byte| format!("{byte:02x}")).collect();
        let hex: String = answer[ip.transport..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace("sum!", &sum).replace(' ', ""));
        assert_eq!(answer[..14], [&ALL_NODES_MAC.0[..], &SERVER_MAC.0, &IPV6.to_be_bytes()].concat());
        // Found by its own address, as a router.
        let router = ask(Some(PREFIX), made_of(LINK_LOCAL, MINE), &solicitation(made_of(LINK_LOCAL, SERVER_MAC))).unwrap();
        assert_eq!(router[54 + 4], 0xe0);
        assert_eq!(ask(None, made_of(LINK_LOCAL, MINE), &[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
