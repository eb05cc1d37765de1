//! Cuts a large frame into segments that fit the MTU, and completes partial checksums: what a network card does for TSO and USO.
//!
//! A [`Plan`] holds the sums of what all segments share; each segment then costs a copy of the headers, a copy and a sum of its payload, and
//! a dozen words. As RFC 9293 and the field's cards do it: IPv4 identification counts up, sequence numbers advance by the payload, FIN and
//! PSH stay on the last segment, CWR on the first (RFC 3168 §6.1.2). Length and checksum fields of the large frame are not read.

use rebec_offload::{Checksum, SegmentKind, Segmentation};

use crate::{
    checksum::Sum,
    counters::Reason,
    frame::{Ethernet, Ip, Tcp, UDP, UDP_BYTES, UDP_CHECKSUM_AT, Version},
};

/// Segments one frame may become: 64 KiB in the smallest segments TCP agrees to (RFC 6691 leaves 48 bytes in the worst case on Linux) would
/// be 1,365; a guest that asks for more is making work.
pub const SEGMENTS_MAX: usize = 1365;

/// How one frame is cut. Holds no bytes: the frame is given again with each call, and must be the same.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    ip: Ip,
    tcp: Option<Tcp>,
    payload: usize,
    frame_bytes: usize,
    segment_bytes: usize,
    /// The IPv4 header without length, identification and checksum.
    ip_sum: Sum,
    identification: u16,
    /// Addresses, protocol and transport header without length, sequence number, flags and checksum.
    transport_sum: Sum,
    /// Addresses and protocol alone, where what is cut is left to be completed.
    left: Option<Sum>,
    next: usize,
    index: usize,
}

impl Plan {
    /// Plans the cut of `frame`, whose IP packets may have at most `mtu` bytes.
    pub fn new(frame: &[u8], segmentation: &Segmentation, mtu: usize) -> Result<Self, Reason> {
        let ethernet = Ethernet::parse(frame).ok_or(Reason::GuestShort)?;
        let ip = Ip::parse(frame, &ethernet).filter(|ip| ip.plain).ok_or(Reason::GuestOffload)?;
        let tcp = match segmentation.kind {
            SegmentKind::Tcp4 if ip.version == Version::V4 => Some(parse_large_tcp(frame, &ip)?),
            SegmentKind::Tcp6 if ip.version == Version::V6 => Some(parse_large_tcp(frame, &ip)?),
            SegmentKind::Udp if ip.protocol == UDP => None,
            _ => return Err(Reason::GuestOffload),
        };
        let payload = tcp.map_or(ip.transport + UDP_BYTES, |tcp| tcp.payload);
        let segment_bytes = usize::from(segmentation.segment_bytes);
        if segment_bytes == 0 || payload >= frame.len() {
            return Err(Reason::GuestOffload);
        }
        if payload - ip.network + segment_bytes.min(frame.len() - payload) > mtu {
            return Err(Reason::GuestOversize);
        }
        if (frame.len() - payload).div_ceil(segment_bytes) > SEGMENTS_MAX {
            return Err(Reason::GuestSegments);
        }

        let (ip_sum, identification) = match ip.version {
            Version::V4 => {
                let header = &frame[ip.network..ip.transport];
                let sum = Sum::default().bytes(&header[..2]).bytes(&header[6..10]).bytes(&header[12..]);
                (sum, u16::from_be_bytes([header[4], header[5]]))
            }
            Version::V6 => (Sum::default(), 0),
        };
        let header = &frame[ip.transport..payload];
        let transport_sum = ip.addresses_sum(frame).word(u16::from(ip.protocol));
        let transport_sum = match tcp {
            Some(_) => transport_sum.bytes(&header[..4]).bytes(&header[8..12]).word(u16::from(header[12]) << 8).bytes(&header[14..16]),
            None => transport_sum.bytes(&header[..4]),
        };
        let transport_sum = if tcp.is_some() { transport_sum.bytes(&header[18..]) } else { transport_sum };
        Ok(Self {
            ip,
            tcp,
            payload,
            frame_bytes: frame.len(),
            segment_bytes,
            ip_sum,
            identification,
            transport_sum,
            left: None,
            next: payload,
            index: 0,
        })
    }

    /// Leaves checksums of TCP and UDP to be completed by whoever needs them: a seal stands for the bytes.
    pub fn leave_sums(&mut self, frame: &[u8]) {
        self.left = Some(self.ip.addresses_sum(frame).word(u16::from(self.ip.protocol)));
    }

    /// Bytes of the next segment's frame; `None` when all are written.
    pub fn next_bytes(&self) -> Option<usize> {
        let left = self.frame_bytes - self.next;
        (left > 0).then(|| self.payload + left.min(self.segment_bytes))
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        (self.frame_bytes - self.payload).div_ceil(self.segment_bytes)
    }

    /// The headers of what is cut, if that is TCP.
    pub fn tcp(&self) -> Option<(Ip, Tcp)> {
        self.tcp.map(|tcp| (self.ip, tcp))
    }

    /// Bytes of every segment's frame but the last, which may be shorter.
    pub fn stride(&self) -> usize {
        self.payload + self.segment_bytes
    }

    /// Writes the next segment into `out`, which has [`Self::next_bytes`] bytes.
    pub fn write_next(&mut self, frame: &[u8], out: &mut [u8]) {
        debug_assert_eq!((frame.len(), Some(out.len())), (self.frame_bytes, self.next_bytes()));
        let payload_bytes = out.len() - self.payload;
        let (header, payload) = out.split_at_mut(self.payload);
        header.copy_from_slice(&frame[..self.payload]);
        payload.copy_from_slice(&frame[self.next..self.next + payload_bytes]);
        let payload_sum = if self.left.is_some() { Sum::default() } else { Sum::default().bytes(payload) };

        self.write_ip(&mut header[self.ip.network..self.ip.transport], self.payload - self.ip.network + payload_bytes);
        let transport_bytes = (self.payload - self.ip.transport + payload_bytes) as u16;
        let transport = &mut header[self.ip.transport..];
        match self.tcp {
            Some(tcp) => {
                let sequence = tcp.sequence.wrapping_add((self.next - self.payload) as u32);
                let mut flags = tcp.flags;
                if self.index > 0 {
                    flags &= !Tcp::CWR;
                }
                if self.next + payload_bytes < self.frame_bytes {
                    flags &= !(Tcp::FIN | Tcp::PSH);
                }
                transport[4..8].copy_from_slice(&sequence.to_be_bytes());
                transport[13] = flags;
                let sum = self.transport_sum.word(transport_bytes).double(sequence).word(u16::from(flags));
                let checksum = self.checksum(transport_bytes, sum, payload_sum);
                transport[Tcp::CHECKSUM_AT..][..2].copy_from_slice(&checksum);
            }
            None => {
                transport[4..6].copy_from_slice(&transport_bytes.to_be_bytes());
                // The length stands in the pseudo header and in the header.
                let sum = self.transport_sum.word(transport_bytes).word(transport_bytes);
                let checksum = self.checksum(transport_bytes, sum, payload_sum);
                transport[UDP_CHECKSUM_AT..][..2].copy_from_slice(&checksum);
            }
        }
        self.next += payload_bytes;
        self.index += 1;
    }

    /// What goes into the field: the sum of all, or the pseudo header's.
    fn checksum(&self, transport_bytes: u16, header: Sum, payload: Sum) -> [u8; 2] {
        match self.left {
            Some(addresses) => addresses.word(transport_bytes).partial(),
            None => header.bytes(&payload.partial()).finish_nonzero(),
        }
    }

    fn write_ip(&self, header: &mut [u8], packet_bytes: usize) {
        match self.ip.version {
            Version::V4 => {
                let identification = self.identification.wrapping_add(self.index as u16);
                let sum = self.ip_sum.word(packet_bytes as u16).word(identification).finish();
                header[2..4].copy_from_slice(&(packet_bytes as u16).to_be_bytes());
                header[4..6].copy_from_slice(&identification.to_be_bytes());
                header[10..12].copy_from_slice(&sum);
            }
            Version::V6 => {
                let payload_bytes = (packet_bytes - header.len()) as u16;
                header[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
            }
        }
    }
}

/// A large frame's length field may have overflowed, so the header is held against the frame alone.
fn parse_large_tcp(frame: &[u8], ip: &Ip) -> Result<Tcp, Reason> {
    Tcp::parse(frame, &Ip { end: frame.len(), ..*ip }).ok_or(Reason::GuestOffload)
}

/// Completes a partial checksum in place, or says that the field lies outside of the frame.
pub fn complete(frame: &mut [u8], checksum: Checksum) -> Result<(), Reason> {
    let Checksum::Partial { start, offset } = checksum else {
        return Ok(());
    };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let covered = frame.get_mut(start..).filter(|covered| offset + 2 <= covered.len()).ok_or(Reason::GuestOffload)?;
    let sum = Sum::default().bytes(covered).finish_nonzero();
    covered[offset..offset + 2].copy_from_slice(&sum);
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::frame::samples::*;

    fn segmentation(kind: SegmentKind, segment_bytes: u16) -> Segmentation {
        Segmentation { kind, ecn: false, header_bytes: 0, segment_bytes }
    }

    pub(crate) fn cut(frame: &[u8], kind: SegmentKind, segment_bytes: u16) -> Vec<Vec<u8>> {
        let mut plan = Plan::new(frame, &segmentation(kind, segment_bytes), 1400).unwrap();
        let mut segments = Vec::new();
        while let Some(bytes) = plan.next_bytes() {
            let mut segment = vec![0; bytes];
            plan.write_next(frame, &mut segment);
            segments.push(segment);
        }
        segments
    }

    /// Holds every length and checksum of a finished frame against its bytes.
    pub(crate) fn assert_whole(frame: &[u8]) -> Ip {
        let ip = Ip::parse(frame, &Ethernet::parse(frame).unwrap()).unwrap();
        assert_eq!(ip.end, frame.len());
        if ip.version == Version::V4 {
            assert!(Sum::default().bytes(&frame[ip.network..ip.transport]).is_right(), "IPv4 header checksum");
        }
        let transport = &frame[ip.transport..];
        assert!(ip.pseudo_sum(frame, transport.len()).bytes(transport).is_right(), "transport checksum");
        ip
    }

    #[test]
    fn tcp_segments_are_whole_and_in_order() {
        let payload: Vec<u8> = (0..4001_u32).map(|n| (n * 7) as u8).collect();
        for (version, kind) in [(Version::V4, SegmentKind::Tcp4), (Version::V6, SegmentKind::Tcp6)] {
            let frame = tcp(version, u32::MAX - 1500, Tcp::ACK | Tcp::PSH | Tcp::FIN | Tcp::CWR, &payload);
            let segments = cut(&frame, kind, 1000);
            assert_eq!(segments.len(), 5);
            let mut joined: Vec<u8> = Vec::new();
            for (at, segment) in segments.iter().enumerate() {
                let ip = assert_whole(segment);
                let tcp = Tcp::parse(segment, &ip).unwrap();
                assert_eq!(tcp.sequence, (u32::MAX - 1500).wrapping_add(1000 * at as u32));
                let mut flags = Tcp::ACK;
                flags |= if at == 0 { Tcp::CWR } else { 0 };
                flags |= if at == 4 { Tcp::PSH | Tcp::FIN } else { 0 };
                assert_eq!(tcp.flags, flags, "segment {at}");
                if version == Version::V4 {
                    assert_eq!(segment[18..20], (0x12ff + at as u16).to_be_bytes());
                }
                joined.extend(&segment[tcp.payload..]);
            }
            assert_eq!(joined, payload);
        }
    }

    #[test]
    fn udp_segments_are_datagrams_of_their_own() {
        for version in [Version::V4, Version::V6] {
            let segments = cut(&udp(version, &[5; 2500]), SegmentKind::Udp, 1200);
            let lengths: Vec<_> = segments
                .iter()
                .map(|segment| {
                    let ip = assert_whole(segment);
                    usize::from(u16::from_be_bytes([segment[ip.transport + 4], segment[ip.transport + 5]]))
                })
                .collect();
            assert_eq!(lengths, [1208, 1208, 108]);
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused_with_its_reason() {
        let frame = tcp(Version::V4, 1, Tcp::ACK, &[1; 3000]);
        let refuse = |frame: &[u8], kind, bytes| Plan::new(frame, &segmentation(kind, bytes), 1400).unwrap_err();
        assert_eq!(refuse(&frame, SegmentKind::Tcp6, 1000), Reason::GuestOffload);
        assert_eq!(refuse(&frame, SegmentKind::Udp, 1000), Reason::GuestOffload);
        assert_eq!(refuse(&frame, SegmentKind::Tcp4, 0), Reason::GuestOffload);
        assert_eq!(refuse(&frame, SegmentKind::Tcp4, 1349), Reason::GuestOversize);
        assert_eq!(refuse(&frame, SegmentKind::Tcp4, 2), Reason::GuestSegments);
        assert_eq!(refuse(&frame[..66], SegmentKind::Tcp4, 1000), Reason::GuestOffload);
        assert_eq!(refuse(&frame[..10], SegmentKind::Tcp4, 1000), Reason::GuestShort);
        let mut fragment = frame.clone();
        fragment[20] = 0x20;
        assert_eq!(refuse(&fragment, SegmentKind::Tcp4, 1000), Reason::GuestOffload);
    }

    #[test]
    fn partial_checksums_are_completed_where_the_guest_says() {
        let mut frame = tcp(Version::V4, 1, Tcp::ACK, b"odd");
        complete(&mut frame, Checksum::Partial { start: 34, offset: 16 }).unwrap();
        assert_whole(&frame);
        let bytes = frame.len() as u16;
        for (start, offset) in [(bytes, 0), (bytes - 1, 0), (34, bytes - 35), (u16::MAX, u16::MAX)] {
            assert_eq!(complete(&mut frame, Checksum::Partial { start, offset }), Err(Reason::GuestOffload));
        }
        assert_whole(&frame);
    }
}
