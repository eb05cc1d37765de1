//! What says where a station is, sent on its behalf when it arrives somewhere.
//!
//! Its MAC does not change in a move, so neighbours' caches stay right; bridges and switches behind physical endpoints are who has to learn.
//! Gratuitous ARP goes out in both forms, because each is the one that some stack believes (RFC 5227 §3); IPv6 has the unsolicited neighbour
//! advertisement (RFC 4861 §7.2.6). A guest that has not said its addresses yet is announced by RARP, which names a MAC only.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use rebec_vmm_api::MacAddr;

use crate::{
    addresses::GuestAddresses,
    checksum::Sum,
    frame::{ARP, ICMPV6, IPV6},
};

/// When announcements go out, from the moment of arrival: datagrams get lost, and a switch's port may need a moment to forward.
pub const SCHEDULE: [Duration; 4] = [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(600)];

const RARP: u16 = 0x8035;

/// All frames of one round.
pub fn frames(mac: MacAddr, guest: &GuestAddresses) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for address in guest.addresses() {
        match *address {
            IpAddr::V4(address) => frames.extend([arp_request(mac, address), arp_reply(mac, address)]),
            IpAddr::V6(address) => frames.push(neighbour_advertisement(mac, address, guest.is_router())),
        }
    }
    if frames.is_empty() {
        frames.push(arp_packet(RARP, 3, mac, Ipv4Addr::UNSPECIFIED, mac));
    }
    frames
}

/// "Who has my address? Tell me": what RFC 5227 calls an announcement.
pub fn arp_request(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    arp_packet(ARP, 1, mac, address, MacAddr([0; 6]))
}

/// "My address is at my MAC", to everyone. Linux takes it for gratuitous only if both hardware addresses are the same.
pub fn arp_reply(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    arp_packet(ARP, 2, mac, address, mac)
}

fn arp_packet(ethertype: u16, operation: u8, mac: MacAddr, address: Ipv4Addr, target: MacAddr) -> Vec<u8> {
    let ethernet = [&MacAddr::BROADCAST.0[..], &mac.0, &ethertype.to_be_bytes()].concat();
    [&ethernet[..], &[0, 1, 8, 0, 6, 4, 0, operation], &mac.0, &address.octets(), &target.0, &address.octets()].concat()
}

/// "My address is at my MAC", to all nodes, overriding what they know.
pub fn neighbour_advertisement(mac: MacAddr, address: Ipv6Addr, router: bool) -> Vec<u8> {
    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const MESSAGE_BYTES: u16 = 32;
    let flags = 0x20 | if router { 0x80 } else { 0 };
    let mut message = [&[136, 0, 0, 0, flags, 0, 0, 0][..], &address.octets(), &[2, 1], &mac.0].concat();
    let sum = Sum::default().bytes(&address.octets()).bytes(&ALL_NODES).word(MESSAGE_BYTES).word(u16::from(ICMPV6)).bytes(&message);
    message[2..4].copy_from_slice(&sum.finish());
    let ethernet = [&ALL_NODES_MAC[..], &mac.0, &IPV6.to_be_bytes()].concat();
    let header = [&[0x60, 0, 0, 0][..], &MESSAGE_BYTES.to_be_bytes(), &[ICMPV6, 255], &address.octets(), &ALL_NODES].concat();
    [ethernet, header, message].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Ethernet, Ip, samples::MINE};

    #[test]
    fn golden_bytes_of_gratuitous_arp() {
        let request = arp_request(MINE, Ipv4Addr::new(10, 0, 0, 7));
        let expected = "ffffffffffff 525400000001 0806 0001 0800 06 04 0001 525400000001 0a000007 000000000000 0a000007";
        assert_eq!(hex(&request), expected.replace(' ', ""));
        let reply = arp_reply(MINE, Ipv4Addr::new(10, 0, 0, 7));
        let expected = "ffffffffffff 525400000001 0806 0001 0800 06 04 0002 525400000001 0a000007 525400000001 0a000007";
        assert_eq!(hex(&reply), expected.replace(' ', ""));
    }

    #[test]
    fn an_advertisement_is_a_whole_packet() {
        let frame = neighbour_advertisement(MINE, "fe80::7".parse().unwrap(), false);
        let ip = Ip::parse(&frame, &Ethernet::parse(&frame).unwrap()).unwrap();
        assert_eq!((ip.protocol, ip.end), (ICMPV6, frame.len()));
        let message = &frame[ip.transport..];
        assert!(ip.pseudo_sum(&frame, message.len()).bytes(message).is_right());
        assert_eq!(message[4], 0x20);
        assert_eq!(neighbour_advertisement(MINE, "fe80::7".parse().unwrap(), true)[ip.transport + 4], 0xa0);
    }

    #[test]
    fn a_guest_without_addresses_is_still_announced() {
        let frames = frames(MINE, &GuestAddresses::default());
        assert_eq!(frames.len(), 1);
        assert!(hex(&frames[0]).starts_with("ffffffffffff5254000000018035"));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
