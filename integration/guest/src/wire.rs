//! Frames as bytes: Ethernet with ARP and IPv4 with ICMP echo, UDP and TCP. Pure.
//!
//! Reading checks lengths and, if asked, checksums; writing leaves TCP's checksum partial, for the network card to complete.

use super::tcp::Segment;

/// ICMP, TCP and UDP as IPv4 numbers them.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Where the transport header begins in the frames written here.
pub const TRANSPORT: usize = ETHERNET + 20;

/// Two stations and their addresses, as the sender sees them.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The sender's station.
    pub mac: [u8; 6],
    /// The receiver's.
    pub peer_mac: [u8; 6],
    /// The sender's address.
    pub ip: u32,
    /// The receiver's.
    pub peer: u32,
}

impl Ends {
    /// The same two, with the other as sender.
    pub fn swapped(self) -> Self {
        Self { mac: self.peer_mac, peer_mac: self.mac, ip: self.peer, peer: self.ip }
    }
}

/// What a frame carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// ARP for IPv4 over Ethernet; `ends` of the frame hold what its body says.
    Arp {
        /// Whether somebody asks, rather than answers.
        request: bool,
    },
    /// ICMP echo, with the message from its type on.
    Echo {
        /// Whether somebody asks, rather than answers.
        request: bool,
        /// Identifier, sequence number and data.
        body: &'a [u8],
    },
    /// A datagram.
    Udp {
        /// Source and destination.
        ports: (u16, u16),
        /// Its data.
        body: &'a [u8],
    },
    /// A segment.
    Tcp {
        /// Source and destination.
        ports: (u16, u16),
        /// Its header; `offset` is not known here.
        segment: Segment,
        /// Its data.
        body: &'a [u8],
    },
}

/// A frame that was understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// Who sent it to whom.
    pub ends: Ends,
    /// What it carries.
    pub packet: Packet<'a>,
    /// Whether its checksums are right; always, if they were not to be checked.
    pub intact: bool,
}

/// Reads a frame; `None` is one that this guest has no use for.
pub fn read(frame: &[u8], check: bool) -> Option<Received<'_>> {
    let (header, body) = frame.split_at_checked(ETHERNET)?;
    let (peer_mac, mac) = (header[0..6].try_into().ok()?, header[6..12].try_into().ok()?);
    match (header[12], header[13]) {
        (8, 6) => {
            let body = body.get(..28)?;
            let request = match body[..8] {
                [0, 1, 8, 0, 6, 4, 0, 1] => true,
                [0, 1, 8, 0, 6, 4, 0, 2] => false,
                _ => return None,
            };
            let ends = Ends { mac: body[8..14].try_into().ok()?, peer_mac, ip: word(body, 14)?, peer: word(body, 24)? };
            Some(Received { ends, packet: Packet::Arp { request }, intact: true })
        }
        (8, 0) => ipv4(body, mac, peer_mac, check),
        _ => None,
    }
}

fn ipv4(packet: &[u8], mac: [u8; 6], peer_mac: [u8; 6], check: bool) -> Option<Received<'_>> {
    let header_bytes = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(half(packet, 2)?);
    // Fragments are of no use: the guest sends none and its peers are told the MTU.
    if packet[0] >> 4 != 4 || header_bytes < 20 || total < header_bytes || half(packet, 6)? & 0x3fff != 0 {
        return None;
    }
    let packet = packet.get(..total)?;
    let (header, body) = packet.split_at(header_bytes);
    let ends = Ends { mac, peer_mac, ip: word(header, 12)?, peer: word(header, 16)? };
    let protocol = header[9];
    let right = |start: u64| !check || fold(start + sum(body)) == 0xffff;
    let intact =
        (!check || fold(sum(header)) == 0xffff) && if protocol == ICMP { right(0) } else { right(pseudo(&ends, protocol, body.len())) };
    let packet = match protocol {
        ICMP => match body.get(..8)?[..2] {
            [8, 0] => Packet::Echo { request: true, body: &body[4..] },
            [0, 0] => Packet::Echo { request: false, body: &body[4..] },
            _ => return None,
        },
        UDP => {
            let no_checksum = half(body, 6)? == 0;
            let received = Packet::Udp { ports: (half(body, 0)?, half(body, 2)?), body: body.get(8..usize::from(half(body, 4)?))? };
            return Some(Received { ends, packet: received, intact: intact || no_checksum });
        }
        TCP => {
            let offset = usize::from(*body.get(12)? >> 4) * 4;
            let options = body.get(20..offset)?;
            let mut segment =
                Segment { seq: word(body, 4)?, ack: word(body, 8)?, flags: body[13], window: half(body, 14)?, ..Segment::default() };
            read_options(options, &mut segment);
            let payload = &body[offset..];
            segment.bytes = payload.len() as u32;
            Packet::Tcp { ports: (half(body, 0)?, half(body, 2)?), segment, body: payload }
        }
        _ => return None,
    };
    Some(Received { ends, packet, intact })
}

fn read_options(mut options: &[u8], segment: &mut Segment) {
    while let [kind, rest @ ..] = options {
        match (kind, rest) {
            (0, _) => return,
            (1, _) => options = rest,
            (_, [bytes, ..]) if *bytes >= 2 && usize::from(*bytes) <= options.len() => {
                match options[..usize::from(*bytes)] {
                    [2, 4, a, b] => segment.mss = u16::from_be_bytes([a, b]),
                    [3, 3, shift] => segment.shift = Some(shift),
                    _ => {}
                }
                options = &options[usize::from(*bytes)..];
            }
            _ => return,
        }
    }
}

/// Writes an ARP question (to all) or answer (to one); returns its length.
pub fn write_arp(out: &mut [u8], ends: &Ends, request: bool) -> usize {
    let to = if request { [0xff; 6] } else { ends.peer_mac };
    ethernet(out, &to, &ends.mac, 0x0806);
    out[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, if request { 1 } else { 2 }]);
    out[22..28].copy_from_slice(&ends.mac);
    out[28..32].copy_from_slice(&ends.ip.to_be_bytes());
    out[32..38].copy_from_slice(if request { &[0; 6] } else { &ends.peer_mac });
    out[38..42].copy_from_slice(&ends.peer.to_be_bytes());
    out[42..60].fill(0);
    60
}

/// Writes an echo message around `body` (identifier, sequence number, data); returns its length.
pub fn write_echo(out: &mut [u8], ends: &Ends, request: bool, body: &[u8]) -> usize {
    let length = network(out, ends, ICMP, 4 + body.len(), 0);
    let message = &mut out[TRANSPORT..length];
    message[..4].copy_from_slice(&[if request { 8 } else { 0 }, 0, 0, 0]);
    message[4..].copy_from_slice(body);
    let checksum = !fold(sum(message));
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    length
}

/// Writes a datagram, without a checksum, as IPv4 allows; returns its length.
pub fn write_udp(out: &mut [u8], ends: &Ends, ports: (u16, u16), body: &[u8]) -> usize {
    let length = network(out, ends, UDP, 8 + body.len(), 0);
    let datagram = &mut out[TRANSPORT..length];
    datagram[..2].copy_from_slice(&ports.0.to_be_bytes());
    datagram[2..4].copy_from_slice(&ports.1.to_be_bytes());
    datagram[4..6].copy_from_slice(&(8 + body.len() as u16).to_be_bytes());
    datagram[6..8].fill(0);
    datagram[8..].copy_from_slice(body);
    length
}

/// Writes a segment's headers; the payload follows them elsewhere. Returns their length.
pub fn write_tcp(out: &mut [u8], ends: &Ends, ports: (u16, u16), segment: &Segment, id: u16) -> usize {
    let mut options = [1; 8];
    if segment.mss != 0 {
        options[..4].copy_from_slice(&[2, 4, (segment.mss >> 8) as u8, segment.mss as u8]);
        if let Some(shift) = segment.shift {
            options[4..7].copy_from_slice(&[3, 3, shift]);
        }
    }
    let header_bytes = if segment.mss == 0 { 20 } else { 28 };
    let transport_bytes = header_bytes + segment.bytes as usize;
    network(out, ends, TCP, transport_bytes, id);
    let header = &mut out[TRANSPORT..TRANSPORT + header_bytes];
    header[..2].copy_from_slice(&ports.0.to_be_bytes());
    header[2..4].copy_from_slice(&ports.1.to_be_bytes());
    header[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    header[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    header[12..14].copy_from_slice(&[(header_bytes as u8 / 4) << 4, segment.flags]);
    header[14..16].copy_from_slice(&segment.window.to_be_bytes());
    // The sum of the pseudo header: the card adds the rest (virtio 1.3 §5.1.6.2).
    header[16..18].copy_from_slice(&fold(pseudo(ends, TCP, transport_bytes)).to_be_bytes());
    header[18..20].fill(0);
    header[20..].copy_from_slice(&options[..header_bytes - 20]);
    TRANSPORT + header_bytes
}

/// Where TCP's checksum lies in its header.
pub const TCP_CHECKSUM: u16 = 16;

fn ethernet(out: &mut [u8], to: &[u8; 6], from: &[u8; 6], kind: u16) {
    out[..6].copy_from_slice(to);
    out[6..12].copy_from_slice(from);
    out[12..14].copy_from_slice(&kind.to_be_bytes());
}

/// Writes Ethernet and IPv4 headers for a transport of `bytes`; returns the frame's length.
fn network(out: &mut [u8], ends: &Ends, protocol: u8, bytes: usize, id: u16) -> usize {
    ethernet(out, &ends.peer_mac, &ends.mac, 0x0800);
    let header = &mut out[ETHERNET..TRANSPORT];
    // Do not fragment: whoever cannot carry a frame of the MTU shall show it.
    header.copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    header[2..4].copy_from_slice(&(20 + bytes as u16).to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[12..16].copy_from_slice(&ends.ip.to_be_bytes());
    header[16..20].copy_from_slice(&ends.peer.to_be_bytes());
    let checksum = !fold(sum(header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    TRANSPORT + bytes
}

fn pseudo(ends: &Ends, protocol: u8, bytes: usize) -> u64 {
    let halves = |ip: u32| u64::from(ip >> 16) + u64::from(ip & 0xffff);
    halves(ends.ip) + halves(ends.peer) + u64::from(protocol) + bytes as u64
}

/// Adds 16-bit big-endian words (RFC 1071), an odd byte padded with zero.
fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(2);
    let mut total: u64 = chunks.by_ref().map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    if let [odd] = chunks.remainder() {
        total += u64::from(*odd) << 8;
    }
    total
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends { mac: [2, 0, 0, 0, 0, 1], peer_mac: [2, 0, 0, 0, 0, 2], ip: 0x0a00_0001, peer: 0x0a00_0002 };

    #[test]
    fn what_is_written_reads_the_same() {
        let mut out = [0; 256];
        let length = write_echo(&mut out, &ENDS, true, b"\x00\x01\x00\x02data");
        let received = read(&out[..length], true).unwrap();
        assert_eq!(received, Received { ends: ENDS, packet: Packet::Echo { request: true, body: b"\x00\x01\x00\x02data" }, intact: true });
        out[length - 1] ^= 1;
        assert!(!read(&out[..length], true).unwrap().intact);

        let length = write_udp(&mut out, &ENDS, (7, 8), b"odd");
        assert_eq!(read(&out[..length], true).unwrap().packet, Packet::Udp { ports: (7, 8), body: b"odd" });

        let segment = Segment { seq: 1, ack: 2, flags: 2, window: 3, mss: 1360, shift: Some(7), ..Segment::default() };
        let length = write_tcp(&mut out, &ENDS, (7, 8), &segment, 0);
        let checksum = !fold(sum(&out[TRANSPORT..length]));
        out[TRANSPORT + 16..TRANSPORT + 18].copy_from_slice(&checksum.to_be_bytes());
        let received = read(&out[..length], true).unwrap();
        assert!(received.intact);
        assert_eq!(received.packet, Packet::Tcp { ports: (7, 8), segment, body: b"" });

        let length = write_arp(&mut out, &ENDS, false);
        assert_eq!(read(&out[..length], true).unwrap().ends, ENDS);
    }

    #[test]
    fn what_is_cut_short_is_not_understood() {
        let mut out = [0; 256];
        let length = write_udp(&mut out, &ENDS, (7, 8), b"12345678");
        for short in 0..length {
            assert_eq!(read(&out[..short], true), None, "{short}");
        }
    }
}
