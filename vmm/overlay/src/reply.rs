//! Frames that a port sends its guest in its own name: what stands around an answer.

use std::net::{Ipv4Addr, Ipv6Addr};

use rebec_vmm_api::MacAddr;

use crate::{
    checksum::Sum,
    frame::{ICMPV6, IPV4, IPV6, UDP, UDP_BYTES},
};

/// Who answers where there is no gateway to answer for: an address that no router passes on (RFC 3927 §7).
pub const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
/// The answering station's address: locally administered, made of [`SERVER`].
pub const SERVER_MAC: MacAddr = MacAddr([2, 0, 169, 254, 169, 253]);

/// An address and a UDP port.
pub type Place = (Ipv4Addr, u16);

/// A UDP datagram over IPv4, complete, from the port's own station.
pub fn udp4(station: MacAddr, (source, source_port): Place, (to, to_port): Place, payload: &[u8]) -> Vec<u8> {
    let (source, to) = (source.octets(), to.octets());
    let udp_bytes = (UDP_BYTES + payload.len()) as u16;
    let mut udp = [source_port, to_port, udp_bytes, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let sum = Sum::default().bytes(&source).bytes(&to).word(u16::from(UDP)).word(udp_bytes).bytes(&udp).finish_nonzero();
    udp[6..8].copy_from_slice(&sum);

    let mut ip = [&[0x45, 0][..], &(20 + udp_bytes).to_be_bytes(), &[0, 0, 0x40, 0, 64, UDP, 0, 0], &source, &to].concat();
    let sum = Sum::default().bytes(&ip).finish();
    ip[10..12].copy_from_slice(&sum);
    [&station.0[..], &SERVER_MAC.0, &IPV4.to_be_bytes(), &ip, &udp].concat()
}

/// A message of neighbour discovery, complete but for the two bytes of its checksum, from `sender`'s station.
pub fn icmp6((to_station, to): (MacAddr, Ipv6Addr), (sender, source): (MacAddr, Ipv6Addr), mut message: Vec<u8>) -> Vec<u8> {
    let (source, to, bytes) = (source.octets(), to.octets(), message.len() as u16);
    let sum = Sum::default().bytes(&source).bytes(&to).word(bytes).word(u16::from(ICMPV6)).bytes(&message).finish();
    message[2..4].copy_from_slice(&sum);
    let header = [&[0x60, 0, 0, 0][..], &bytes.to_be_bytes(), &[ICMPV6, 255], &source, &to].concat();
    [&to_station.0[..], &sender.0, &IPV6.to_be_bytes(), &header, &message].concat()
}
