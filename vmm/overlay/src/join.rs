//! Joins TCP segments of one flow that arrived together into one large frame: what a network card does for LRO, losslessly.
//!
//! Segments join if cutting the result again gives the same bytes: same headers, sequence and IPv4 identification counting up, all of one
//! size but the last, PSH and FIN at the end only, CWR at the start only, every checksum checked. Anything else passes one by one.
//!
//! A checksum may arrive *partial*: a Linux vxlan device on the same machine (veth, network namespaces) leaves it to hardware that is not
//! there, and the kernel gives a plain UDP socket the bytes as they are. Such a frame never crossed a wire; it is handed on as partial.
//!
//! Payloads stay where they arrived: the joined frame is headers that are written here, and a list of pieces.

use std::ops::Range;

use rebec_offload::{Accepts, Checksum, FRAME_BYTES_MAX, FrameBytes, Offload, SegmentKind, Segmentation};

use crate::{
    checksum::Sum,
    frame::{Ethernet, Ip, TCP, Tcp, UDP, UDP_CHECKSUM_AT, Version},
};

/// Largest IP packet.
const PACKET_BYTES_MAX: usize = 65_535;

/// Says what is known about the checksum of a TCP or UDP frame. A wrong one is `InFrame`: the guest finds out, as it would on a wire. Of a frame that
/// came sealed, one that is partial is seen without a look at the rest: nothing has changed it on its way.
pub fn known_checksum(frame: &[u8], ip: &Ip, sealed: bool) -> Checksum {
    let offset = match ip.protocol {
        TCP => Tcp::CHECKSUM_AT,
        UDP => UDP_CHECKSUM_AT,
        _ => return Checksum::InFrame,
    };
    let Some(transport) = frame.get(ip.transport..ip.end).filter(|transport| ip.plain && transport.len() >= offset + 2) else {
        return Checksum::InFrame;
    };
    let pseudo = ip.pseudo_sum(frame, transport.len());
    let field = &transport[offset..offset + 2];
    if field == [0, 0] && ip.protocol == UDP {
        return Checksum::InFrame;
    }
    let partial = Checksum::Partial { start: ip.transport as u16, offset: offset as u16 };
    let is_partial = field == pseudo.partial();
    // One frame in 65,536 has a field that is both: completed, it is the same.
    if sealed && is_partial {
        return partial;
    }
    if pseudo.bytes(transport).is_right() {
        Checksum::Valid
    } else if is_partial {
        partial
    } else {
        Checksum::InFrame
    }
}

/// The large frame under construction.
#[derive(Debug)]
pub struct Joiner {
    /// Headers of a frame whose payload lies elsewhere, or a frame that has to be changed.
    buffer: Box<[u8]>,
    used: usize,
    /// Where the payload lies among what arrived.
    pieces: Vec<Range<usize>>,
    head: Option<Head>,
    sealed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    ip: Ip,
    tcp: Tcp,
    identification: u16,
    segment_bytes: usize,
    count: usize,
    /// Bytes of the frame so far.
    bytes: usize,
    /// The last one was short or said PSH or FIN: nothing may follow.
    closed: bool,
}

impl Joiner {
    /// Of a port that seals, or of one that does not.
    pub fn new(sealed: bool) -> Self {
        Self { buffer: vec![0; FRAME_BYTES_MAX].into(), used: 0, pieces: Vec::new(), head: None, sealed }
    }

    /// Begins with `frame`, whose checksum is known to be right or partial, if segments may follow it. It is not copied yet.
    pub fn begin(&mut self, frame: &[u8], ip: &Ip, accepts: Accepts) -> bool {
        self.head = None;
        let Some(tcp) = Tcp::parse(frame, ip).filter(|_| ip.end == frame.len()) else {
            return false;
        };
        let accepted = match ip.version {
            Version::V4 => accepts.tcp4,
            Version::V6 => accepts.tcp6,
        };
        let ending = Tcp::PSH | Tcp::FIN;
        let unusual = !(Tcp::ACK | Tcp::ECE | Tcp::CWR);
        if !accepted || tcp.flags & (unusual | ending) != 0 || (tcp.flags & Tcp::CWR != 0 && !accepts.ecn) || tcp.payload == frame.len() {
            return false;
        }
        let identification = match ip.version {
            // Its checksum is written anew later: a wrong one must not become right.
            Version::V4 if !Sum::default().bytes(&frame[ip.network..ip.transport]).is_right() => return false,
            Version::V4 => u16::from_be_bytes([frame[ip.network + 4], frame[ip.network + 5]]),
            Version::V6 => 0,
        };
        let (segment_bytes, bytes) = (frame.len() - tcp.payload, frame.len());
        self.head = Some(Head { ip: *ip, tcp, identification, segment_bytes, count: 1, bytes, closed: false });
        true
    }

    /// Takes the next segment if it follows. `first` is the frame that [`Self::begin`] got; both lie at these places among what arrived.
    pub fn push(&mut self, (first, first_at): (&[u8], usize), (frame, at): (&[u8], usize)) -> bool {
        let Some(head) = self.head else { return false };
        let Some(flags) = follows(&head, first, frame, self.sealed) else {
            return false;
        };
        let payload = head.tcp.payload;
        if head.count == 1 {
            self.pieces.clear();
            self.pieces.push(first_at + payload..first_at + first.len());
            self.buffer[..payload].copy_from_slice(&first[..payload]);
            self.used = payload;
        }
        self.pieces.push(at + payload..at + frame.len());
        let closed = frame.len() - payload < head.segment_bytes || flags & (Tcp::PSH | Tcp::FIN) != 0;
        self.buffer[head.ip.transport + 13] |= flags & (Tcp::PSH | Tcp::FIN);
        self.head = Some(Head { count: head.count + 1, bytes: head.bytes + frame.len() - payload, closed, ..head });
        true
    }

    /// Ends the frame: writes the lengths and the partial checksum. `None` if nothing followed the first segment.
    pub fn finish(&mut self) -> Option<Offload> {
        let head = self.head.take().filter(|head| head.count > 1)?;
        let (checksum, kind) = write_large_headers(&mut self.buffer[..self.used], &head.ip, head.bytes);
        let segmentation = Segmentation {
            kind,
            ecn: head.tcp.flags & Tcp::CWR != 0,
            header_bytes: head.tcp.payload as u16,
            segment_bytes: head.segment_bytes as u16,
        };
        Some(Offload { checksum, segmentation: Some(segmentation) })
    }

    /// The frame as last ended, taken apart or kept; `arrived` is where its pieces lie.
    pub fn frame<'a>(&'a self, arrived: &'a [u8]) -> FrameBytes<'a> {
        FrameBytes::scattered(&self.buffer[..self.used], arrived, &self.pieces)
    }

    /// Takes the headers of a large TCP frame out of it, which lies at `at` among what arrived, and corrects them. What is left undone.
    pub fn take_apart(&mut self, frame: &[u8], at: usize, ip: &Ip, payload: usize) -> (Checksum, SegmentKind) {
        self.space(payload).copy_from_slice(&frame[..payload]);
        self.pieces.push(at + payload..at + frame.len());
        write_large_headers(&mut self.buffer[..payload], ip, frame.len())
    }

    /// Keeps a frame that has to be changed before the guest sees it; at most [`FRAME_BYTES_MAX`] bytes.
    pub fn keep(&mut self, frame: &[u8]) -> &mut [u8] {
        let kept = self.space(frame.len());
        kept.copy_from_slice(frame);
        kept
    }

    /// Space for a frame of `bytes` bytes.
    pub fn space(&mut self, bytes: usize) -> &mut [u8] {
        self.head = None;
        self.pieces.clear();
        self.used = bytes;
        &mut self.buffer[..bytes]
    }
}

/// Sets the length fields, the IPv4 checksum and the pseudo header's sum of a large TCP frame that begins with these headers to its actual length.
pub fn write_large_headers(headers: &mut [u8], ip: &Ip, frame_bytes: usize) -> (Checksum, SegmentKind) {
    let transport_bytes = frame_bytes - ip.transport;
    let sum = ip.pseudo_sum(headers, transport_bytes).partial();
    headers[ip.transport + Tcp::CHECKSUM_AT..][..2].copy_from_slice(&sum);
    let packet_bytes = frame_bytes - ip.network;
    let header = &mut headers[ip.network..ip.transport];
    let kind = match ip.version {
        Version::V4 => {
            header[2..4].copy_from_slice(&(packet_bytes as u16).to_be_bytes());
            header[10..12].fill(0);
            let sum = Sum::default().bytes(header).finish();
            header[10..12].copy_from_slice(&sum);
            SegmentKind::Tcp4
        }
        Version::V6 => {
            header[4..6].copy_from_slice(&(transport_bytes as u16).to_be_bytes());
            SegmentKind::Tcp6
        }
    };
    (Checksum::Partial { start: ip.transport as u16, offset: Tcp::CHECKSUM_AT as u16 }, kind)
}

/// Whether `frame` continues the flow; its TCP flags, if so.
fn follows(head: &Head, first: &[u8], frame: &[u8], sealed: bool) -> Option<u8> {
    let (network, transport, payload) = (head.ip.network, head.ip.transport, head.tcp.payload);
    let payload_bytes = frame.len().checked_sub(payload)?;
    let same = |from: usize, to: usize| frame[from..to] == first[from..to];
    if head.closed || payload_bytes == 0 || payload_bytes > head.segment_bytes || head.bytes - network + payload_bytes > PACKET_BYTES_MAX {
        return None;
    }
    // All offsets below lie within `first` up to its payload, and `frame` is longer than that.
    let ip_same = same(0, network)
        && match head.ip.version {
            Version::V4 => {
                let identification = u16::from_be_bytes([frame[network + 4], frame[network + 5]]);
                identification == head.identification.wrapping_add(head.count as u16)
                    && same(network, network + 2)
                    && same(network + 6, network + 10)
                    && same(network + 12, transport)
                    && Sum::default().bytes(&frame[network..transport]).is_right()
            }
            Version::V6 => same(network, network + 4) && same(network + 6, transport),
        };
    if !ip_same || !same(transport, transport + 4) || !same(transport + 8, transport + 13) {
        return None;
    }
    // The urgent pointer and the options; the window stands before the checksum.
    if !same(transport + 14, transport + 16) || !same(transport + 18, payload) {
        return None;
    }
    let sequence = u32::from_be_bytes([frame[transport + 4], frame[transport + 5], frame[transport + 6], frame[transport + 7]]);
    let flags = frame[transport + 13];
    if sequence != head.tcp.sequence.wrapping_add((head.bytes - payload) as u32)
        || (flags ^ head.tcp.flags) & !(Tcp::PSH | Tcp::FIN | Tcp::CWR) != 0
        || flags & Tcp::CWR != 0
    {
        return None;
    }
    let ip = Ip::parse(frame, &Ethernet::parse(frame)?).filter(|ip| ip.end == frame.len())?;
    (known_checksum(frame, &ip, sealed) != Checksum::InFrame).then_some(flags)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        frame::samples::*,
        segment::{complete, tests::cut},
    };

    const ALL: Accepts = Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true };

    fn view(frame: &[u8]) -> Ip {
        Ip::parse(frame, &Ethernet::parse(frame).unwrap()).unwrap()
    }

    /// Joins from the front as far as it goes: segments taken, and the result if there is one.
    fn join(segments: &[Vec<u8>], accepts: Accepts) -> (usize, Option<(Vec<u8>, Offload)>) {
        let mut joiner = Joiner::new(false);
        if !joiner.begin(&segments[0], &view(&segments[0]), accepts) {
            return (1, None);
        }
        let arrived = segments.concat();
        let mut at = segments[0].len();
        let follows = |segment: &&Vec<u8>| {
            let is_taken = joiner.push((&segments[0], 0), (segment, at));
            at += segment.len();
            is_taken
        };
        let taken = 1 + segments[1..].iter().take_while(follows).count();
        (taken, joiner.finish().map(|offload| (joiner.frame(&arrived).to_vec(), offload)))
    }

    fn three() -> Vec<Vec<u8>> {
        cut(&tcp(Version::V4, 77, Tcp::ACK | Tcp::PSH, &[3; 2500]), SegmentKind::Tcp4, 1000)
    }

    /// Changes one byte and makes the checksums right again.
    fn forge(segment: &mut [u8], at: usize, byte: u8) {
        segment[at] = byte;
        let ip = view(segment);
        let bytes = segment.len();
        let (checksum, _) = write_large_headers(segment, &ip, bytes);
        complete(segment, checksum).unwrap();
    }

    #[test]
    fn whatever_differs_ends_the_frame() {
        assert_eq!(join(&three(), ALL).0, 3);
        // Address, identification, TTL, port, sequence, acknowledgement, window, option, flags.
        for (at, byte) in [(0, 2), (19, 9), (22, 9), (35, 9), (41, 9), (45, 1), (48, 9), (61, 9), (47, 0x30), (47, 0x90), (15, 4)] {
            let mut segments = three();
            forge(&mut segments[1], at, byte);
            assert_eq!(join(&segments, ALL), (1, None), "byte {at}");
        }
        let mut segments = three();
        segments[1][70] ^= 1;
        assert_eq!(join(&segments, ALL).0, 1, "a wrong TCP checksum");
        let mut segments = three();
        segments[1][24] ^= 1;
        assert_eq!(join(&segments, ALL).0, 1, "a wrong IPv4 checksum");
        let mut segments = three();
        segments[0][24] ^= 1;
        assert_eq!(join(&segments, ALL), (1, None), "a wrong IPv4 checksum at the front");
        let mut segments = three();
        segments[0][47] |= Tcp::PSH;
        assert_eq!(join(&segments, ALL), (1, None), "PSH before the end");
        let mut segments = three();
        segments.swap(1, 2);
        assert_eq!(join(&segments, ALL), (1, None), "order");
        segments = three();
        segments[1].push(0);
        assert_eq!(join(&segments, ALL), (1, None), "padding");
    }

    #[test]
    fn nothing_follows_a_short_segment_or_an_end() {
        for flags in [Tcp::ACK, Tcp::ACK | Tcp::PSH, Tcp::ACK | Tcp::FIN] {
            // The segments of one frame, then one that goes on where they end.
            let payload = if flags == Tcp::ACK { 1500 } else { 2000 };
            let mut segments = cut(&tcp(Version::V4, 77, flags, &vec![3; payload]), SegmentKind::Tcp4, 1000);
            let mut next = cut(&tcp(Version::V4, 77 + payload as u32, Tcp::ACK, &[3; 700]), SegmentKind::Tcp4, 1000).remove(0);
            next[18..20].copy_from_slice(&0x1301_u16.to_be_bytes());
            forge(&mut next, 22, 64);
            segments.push(next);
            let (taken, joined) = join(&segments, ALL);
            assert_eq!((taken, joined.map(|(frame, _)| frame.len())), (2, Some(14 + 20 + 32 + payload)));
        }
    }

    #[test]
    fn a_frame_stays_within_what_its_length_field_holds() {
        let halves = [0, 1].map(|half| {
            let mut frame = tcp(Version::V4, 77 + half * 40_000, Tcp::ACK, &[3; 40_000]);
            frame[18..20].copy_from_slice(&(40 * half as u16).to_be_bytes());
            cut(&frame, SegmentKind::Tcp4, 1000)
        });
        let (taken, joined) = join(&halves.concat(), ALL);
        assert_eq!((taken, joined.map(|(frame, _)| frame.len())), (65, Some(14 + 20 + 32 + 65_000)));
    }

    #[test]
    fn only_what_the_guest_takes_is_joined() {
        assert_eq!(join(&three(), Accepts { tcp4: false, ..ALL }), (1, None));
        let segments = cut(&tcp(Version::V6, 77, Tcp::ACK, &[3; 2500]), SegmentKind::Tcp6, 1000);
        assert_eq!(join(&segments, Accepts { tcp6: false, ..ALL }), (1, None));
        assert_eq!(join(&segments, ALL).0, 3);
        let segments = cut(&tcp(Version::V4, 77, Tcp::ACK | Tcp::CWR, &[3; 2500]), SegmentKind::Tcp4, 1000);
        assert_eq!(join(&segments, Accepts { ecn: false, ..ALL }), (1, None));
        assert_eq!(join(&segments, ALL).0, 3);
    }

    #[test]
    fn checksums_are_told_apart() {
        for frame in [tcp(Version::V4, 1, Tcp::ACK, b"abc"), tcp(Version::V6, 1, Tcp::ACK, b"abc"), udp(Version::V4, b"abc")] {
            let mut frame = frame;
            let ip = view(&frame);
            let partial = known_checksum(&frame, &ip, false);
            assert!(matches!(partial, Checksum::Partial { start, .. } if usize::from(start) == ip.transport));
            complete(&mut frame, partial).unwrap();
            assert_eq!(known_checksum(&frame, &ip, false), Checksum::Valid);
            let last = frame.len() - 1;
            frame[last] ^= 0x10;
            assert_eq!(known_checksum(&frame, &ip, false), Checksum::InFrame);
            let short = Ip { end: ip.transport + 5, ..ip };
            assert_eq!(known_checksum(&frame, &short, false), Checksum::InFrame);
            let beyond = Ip { end: frame.len() + 1, ..ip };
            assert_eq!(known_checksum(&frame, &beyond, false), Checksum::InFrame);
        }
    }

    proptest! {
        #[test]
        fn cutting_then_joining_is_identity(
            payload in prop::collection::vec(any::<u8>(), 2..20_000), segment_bytes in 1_u16..1300, sequence: u32, six: bool, cwr: bool, last in 0..4_u8,
        ) {
            prop_assume!(payload.len() > usize::from(segment_bytes) && payload.len().div_ceil(usize::from(segment_bytes)) < 1000);
            let (version, kind) = if six { (Version::V6, SegmentKind::Tcp6) } else { (Version::V4, SegmentKind::Tcp4) };
            let flags = Tcp::ACK | if cwr { Tcp::CWR } else { 0 } | [0, Tcp::PSH, Tcp::FIN, Tcp::PSH | Tcp::FIN][usize::from(last)];
            let frame = tcp(version, sequence, flags, &payload);
            let segments = cut(&frame, kind, segment_bytes);
            let (taken, joined) = join(&segments, ALL);
            prop_assert_eq!(taken, segments.len());
            let (joined, offload) = joined.unwrap();
            prop_assert_eq!(&joined, &frame);
            let ip = view(&frame);
            let header_bytes = (ip.transport + 32) as u16;
            let segmentation = Some(Segmentation { kind, ecn: cwr, header_bytes, segment_bytes });
            prop_assert_eq!(offload, Offload { checksum: Checksum::Partial { start: ip.transport as u16, offset: 16 }, segmentation });
        }

        #[test]
        fn hostile_segments_do_no_harm(mut segments in Just(three()), edits in prop::collection::vec((0..3_usize, any::<prop::sample::Index>(), any::<u8>()), 0..8), cut in any::<prop::sample::Index>()) {
            for (segment, at, byte) in edits {
                let at = at.index(segments[segment].len().min(70));
                segments[segment][at] = byte;
            }
            let bytes = cut.index(segments[1].len());
            segments[1].truncate(bytes);
            let ethernet = Ethernet::parse(&segments[0]).unwrap();
            if let Some(ip) = Ip::parse(&segments[0], &ethernet) {
                let _known = known_checksum(&segments[0], &ip, false);
                let mut joiner = Joiner::new(false);
                if joiner.begin(&segments[0], &ip, ALL) {
                    let first = (&segments[0][..], 0);
                    let _taken = joiner.push(first, (&segments[1], 2000)) && joiner.push(first, (&segments[2], 4000));
                    let _frame = joiner.finish();
                }
            }
        }
    }
}
