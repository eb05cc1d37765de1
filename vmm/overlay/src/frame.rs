//! Views of a frame's headers over bytes that nobody has vouched for.
//!
//! A view is made once, checks every length it will use, and afterwards cannot be out of range. It looks as far as a port needs to:
//! stations, IP addresses, the place of a TCP or UDP header. Up to two VLAN tags (IEEE 802.1Q) are stepped over: a LAN has no VLANs of its
//! own, and tagged frames pass between guests as they are.
//!
//! ```text
//! | destination 6 | source 6 | (0x8100|0x88a8, tag) 0..2 times 4 | EtherType 2 | network header ... | transport header ... | payload
//! ```

use rebec_vmm_api::MacAddr;

use crate::checksum::Sum;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_BYTES: usize = 14;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
const TAGS: [u16; 2] = [0x8100, 0x88a8];
const TAGS_MAX: usize = 2;

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// Reads a big-endian word; `None` past the end.
pub fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

/// The Ethernet header.
#[derive(Debug, Clone, Copy)]
pub struct Ethernet {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// What it carries, below any tags.
    pub ethertype: u16,
    /// Where that begins.
    pub network: usize,
}

impl Ethernet {
    /// Reads the header and steps over tags. A frame that ends within its tags carries nothing that is known.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (destination, rest) = frame.split_first_chunk()?;
        let source = rest.first_chunk()?;
        let mut network = ETHERNET_BYTES;
        let mut ethertype = word(frame, 12)?;
        for _ in 0..TAGS_MAX {
            match word(frame, network + 2) {
                Some(inner) if TAGS.contains(&ethertype) => (ethertype, network) = (inner, network + 4),
                _ => break,
            }
        }
        Some(Self { destination: MacAddr(*destination), source: MacAddr(*source), ethertype, network })
    }
}

/// Which Internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// An IP header and where its payload lies. Made only if the header itself is whole.
#[derive(Debug, Clone, Copy)]
pub struct Ip {
    /// Which protocol.
    pub version: Version,
    /// Start of the IP header.
    pub network: usize,
    /// Start of the payload, past options and extension headers.
    pub transport: usize,
    /// What the payload is.
    pub protocol: u8,
    /// End of the packet by its own length field; may lie past the frame's end, or before it where a short frame was padded.
    pub end: usize,
    /// Without options, extension headers and fragmentation: only then is its payload cut, joined or summed here.
    pub plain: bool,
}

impl Ip {
    /// Reads the IP header of a frame.
    pub fn parse(frame: &[u8], ethernet: &Ethernet) -> Option<Self> {
        let packet = frame.get(ethernet.network..)?;
        match ethernet.ethertype {
            IPV4 => Self::parse_v4(packet, ethernet.network),
            IPV6 => Self::parse_v6(packet, ethernet.network),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8], network: usize) -> Option<Self> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let header_bytes = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header[0] >> 4 != 4 || header_bytes < 20 || header_bytes > packet.len() || header_bytes > total {
            return None;
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let plain = header_bytes == 20 && !fragment;
        let (transport, end) = (network + header_bytes, network + total);
        Some(Self { version: Version::V4, network, transport, protocol: header[9], end, plain })
    }

    fn parse_v6(packet: &[u8], network: usize) -> Option<Self> {
        let header: &[u8; 40] = packet.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        // Extension headers are not walked: packets that carry them pass uncut.
        let plain = !matches!(header[6], 0 | 43 | 44 | 51 | 60 | 135);
        Some(Self { version: Version::V6, network, transport: network + 40, protocol: header[6], end: network + 40 + payload, plain })
    }

    /// The sum of both addresses.
    pub fn addresses_sum(&self, frame: &[u8]) -> Sum {
        Sum::default().bytes(match self.version {
            Version::V4 => &frame[self.network + 12..self.network + 20],
            Version::V6 => &frame[self.network + 8..self.network + 40],
        })
    }

    /// The pseudo header's sum (RFC 9293 §3.1, RFC 8200 §8.1) for a payload of `payload_bytes`.
    pub fn pseudo_sum(&self, frame: &[u8], payload_bytes: usize) -> Sum {
        self.addresses_sum(frame).word(u16::from(self.protocol)).double(payload_bytes as u32)
    }
}

/// A TCP header within a plain IP packet.
#[derive(Debug, Clone, Copy)]
pub struct Tcp {
    /// Start of the payload.
    pub payload: usize,
    /// Sequence number of the first payload byte.
    pub sequence: u32,
    /// The flags byte.
    pub flags: u8,
}

impl Tcp {
    /// No more from this side.
    pub const FIN: u8 = 0x01;
    /// Hand over what is there.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
    /// Congestion was seen (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// The sender has slowed down (RFC 3168).
    pub const CWR: u8 = 0x80;
    /// Where the checksum stands in the header.
    pub const CHECKSUM_AT: usize = 16;

    /// Reads the header; `None` if it is not TCP or not whole.
    pub fn parse(frame: &[u8], ip: &Ip) -> Option<Self> {
        if ip.protocol != TCP || !ip.plain {
            return None;
        }
        let header: &[u8; 20] = frame.get(ip.transport..)?.first_chunk()?;
        let header_bytes = usize::from(header[12] >> 4) * 4;
        let payload = ip.transport + header_bytes;
        if header_bytes < 20 || payload > frame.len() || payload > ip.end {
            return None;
        }
        Some(Self { payload, sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]), flags: header[13] })
    }
}

/// Where the checksum stands in a UDP header.
pub const UDP_CHECKSUM_AT: usize = 6;
/// Bytes of a UDP header.
pub const UDP_BYTES: usize = 8;

#[cfg(test)]
pub(crate) mod samples {
    //! Frames for tests: what a guest's stack would build.

    use super::*;

    pub(crate) const MINE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    pub(crate) const THEIRS: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);

    /// An Ethernet frame.
    pub(crate) fn ethernet(to: MacAddr, from: MacAddr, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&to.0[..], &from.0, &ethertype.to_be_bytes(), payload].concat()
    }

    /// TCP with a timestamp option over either protocol; the checksum field holds the pseudo header's sum.
    pub(crate) fn tcp(version: Version, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut tcp = vec![0x80, 1, 0x1f, 0x90];
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 9, 0x80, flags, 1, 2, 0, 0, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        tcp.extend(payload);
        transport(version, TCP, Tcp::CHECKSUM_AT, tcp)
    }

    /// UDP likewise.
    pub(crate) fn udp(version: Version, payload: &[u8]) -> Vec<u8> {
        let length = (UDP_BYTES + payload.len()) as u16;
        let udp = [&[0x80, 1, 0, 53][..], &length.to_be_bytes(), &[0, 0], payload].concat();
        transport(version, UDP, UDP_CHECKSUM_AT, udp)
    }

    fn transport(version: Version, protocol: u8, checksum_at: usize, payload: Vec<u8>) -> Vec<u8> {
        let mut packet = match version {
            Version::V4 => {
                let total = (20 + payload.len()) as u16;
                let mut header = vec![0x45, 0];
                header.extend(total.to_be_bytes());
                header.extend([0x12, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
                let sum = Sum::default().bytes(&header).finish();
                header[10..12].copy_from_slice(&sum);
                ethernet(THEIRS, MINE, IPV4, &header)
            }
            Version::V6 => {
                let mut header = vec![0x60, 0, 0, 7];
                header.extend((payload.len() as u16).to_be_bytes());
                header.extend([protocol, 64]);
                header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
                header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
                ethernet(THEIRS, MINE, IPV6, &header)
            }
        };
        packet.extend(payload);
        let ip = Ip::parse(&packet, &Ethernet::parse(&packet).unwrap()).unwrap();
        let sum = ip.pseudo_sum(&packet, packet.len() - ip.transport).partial();
        packet[ip.transport + checksum_at..][..2].copy_from_slice(&sum);
        packet
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{samples::*, *};

    #[test]
    fn tags_are_stepped_over_up_to_two() {
        let plain = ethernet(THEIRS, MINE, IPV4, &[9; 4]);
        assert_eq!(Ethernet::parse(&plain).map(|e| (e.ethertype, e.network)), Some((IPV4, 14)));
        let one = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
        assert_eq!(Ethernet::parse(&one).map(|e| (e.ethertype, e.network)), Some((IPV4, 18)));
        let two = [&one[..12], &[0x88, 0xa8, 0, 5], &one[12..]].concat();
        assert_eq!(Ethernet::parse(&two).map(|e| (e.ethertype, e.network)), Some((IPV4, 22)));
        let three = [&two[..12], &[0x81, 0, 0, 5], &two[12..]].concat();
        assert_eq!(Ethernet::parse(&three).map(|e| (e.ethertype, e.network)), Some((0x8100, 22)));
        assert_eq!(Ethernet::parse(&one[..15]).map(|e| (e.ethertype, e.network)), Some((0x8100, 14)));
        assert!(Ethernet::parse(&one[..13]).is_none());
    }

    #[test]
    fn lengths_that_lie_make_no_view() {
        let frame = tcp(Version::V4, 1, Tcp::ACK, b"payload");
        let view = |frame: &[u8]| {
            let ip = Ip::parse(frame, &Ethernet::parse(frame)?)?;
            Some((ip, Tcp::parse(frame, &ip)))
        };
        let (ip, tcp) = view(&frame).unwrap();
        assert_eq!((ip.transport, ip.end), (34, frame.len()));
        assert_eq!(tcp.unwrap().payload, frame.len() - 7);
        for (at, byte) in [(14, 0x35), (14, 0x44), (14, 0x4f), (17, 19)] {
            let mut wrong = frame.clone();
            wrong[at] = byte;
            if at == 17 {
                wrong[16] = 0;
            }
            assert!(view(&wrong).is_none_or(|(ip, tcp)| !ip.plain && tcp.is_none()), "byte {at} {byte:#x}");
        }
        for (at, byte) in [(34 + 12, 0x40), (34 + 12, 0xf0), (20, 0x20)] {
            let mut wrong = frame.clone();
            wrong[at] = byte;
            assert!(view(&wrong).unwrap().1.is_none(), "byte {at} {byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_viewed_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0..3_usize) {
            if bytes.len() > 24 {
                bytes[12..14].copy_from_slice(&[IPV4, IPV6, 0x8100][kind].to_be_bytes());
                bytes[14] = [0x45, 0x60, bytes[14]][kind];
                bytes[23] = TCP;
                bytes[20] = [bytes[20] & 0x40, TCP, bytes[20]][kind];
            }
            if let Some(ethernet) = Ethernet::parse(&bytes) {
                prop_assert!(ethernet.network <= bytes.len());
                if let Some(ip) = Ip::parse(&bytes, &ethernet) {
                    prop_assert!(ip.transport <= bytes.len());
                    let _sum = ip.pseudo_sum(&bytes, 0);
                    if let Some(tcp) = Tcp::parse(&bytes, &ip) {
                        prop_assert!(tcp.payload <= bytes.len());
                    }
                }
            }
        }
    }
}
