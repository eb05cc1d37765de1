//! What ports of one host say to each other on a road that is no network: a pair of connected sockets of the kernel's, made by the agent.
//!
//! ```text
//! undone:1 | kind:1 | start:2 | offset:2 | header bytes:2 | segment bytes:2 | VXLAN header:8 | frame          one record a frame, big endian
//! ```
//! Nothing is sealed, as nothing leaves the machine, and nothing is cut or summed that a network would want so: what the sender's guest left undone
//! travels with the frame, and the receiver's guest takes it or the receiving port does it. Who speaks is known by the pair, which has two ends. The
//! other end is another guest's process all the same: what it says is judged as if it came from afar.

use rebec_offload::{Checksum, Offload, SegmentKind, Segmentation};

use crate::{
    counters::Reason,
    frame::{Ethernet, Ip, TCP, Tcp, UDP, UDP_CHECKSUM_AT},
    segment::Plan,
    vxlan::{self, Vni},
};

/// What stands before the VXLAN header.
pub const UNDONE_BYTES: usize = 10;
/// What stands before the frame.
pub const HEAD_BYTES: usize = UNDONE_BYTES + vxlan::HEADER_BYTES;

const PARTIAL: u8 = 1;
const TCP4: u8 = 1;
const TCP6: u8 = 2;
const DATAGRAMS: u8 = 3;
const ECN: u8 = 0x80;

/// What stands before a frame; nothing where it cannot go this way, as it has a checksum that a receiver would not understand.
pub fn head(vni: Vni, offload: &Offload, frame: &[u8], ethernet: &Ethernet) -> Option<[u8; HEAD_BYTES]> {
    let (undone, start, offset) = match offload.checksum {
        partial @ Checksum::Partial { start, offset } => {
            if !is_usual(frame, ethernet, partial) {
                return None;
            }
            (PARTIAL, start, offset)
        }
        // What the sender says of a whole sum the receiver would not believe.
        Checksum::InFrame | Checksum::Valid => (0, 0, 0),
    };
    let (kind, header_bytes, segment_bytes) = match offload.segmentation {
        None => (0, 0, 0),
        Some(Segmentation { kind, ecn, header_bytes, segment_bytes }) => {
            let kind = match kind {
                SegmentKind::Tcp4 => TCP4,
                SegmentKind::Tcp6 => TCP6,
                SegmentKind::Udp => DATAGRAMS,
            };
            (kind | if ecn { ECN } else { 0 }, header_bytes, segment_bytes)
        }
    };
    let mut head = [0; HEAD_BYTES];
    head[..2].copy_from_slice(&[undone, kind]);
    for (place, word) in head[2..UNDONE_BYTES].chunks_exact_mut(2).zip([start, offset, header_bytes, segment_bytes]) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    head[UNDONE_BYTES..].copy_from_slice(&vni.header());
    Some(head)
}

/// What a record says to be left undone, not yet held against its frame.
pub fn undone(record: &[u8]) -> Option<Offload> {
    let &[undone, kind, a, b, c, d, e, f, g, h] = record.first_chunk::<UNDONE_BYTES>()?;
    let checksum = match undone {
        0 => Checksum::InFrame,
        PARTIAL => Checksum::Partial { start: u16::from_be_bytes([a, b]), offset: u16::from_be_bytes([c, d]) },
        _ => return None,
    };
    let of_kind = match kind & !ECN {
        0 => None,
        TCP4 => Some(SegmentKind::Tcp4),
        TCP6 => Some(SegmentKind::Tcp6),
        DATAGRAMS => Some(SegmentKind::Udp),
        _ => return None,
    };
    let segmentation = of_kind.map(|kind_of| Segmentation {
        kind: kind_of,
        ecn: kind & ECN != 0,
        header_bytes: u16::from_be_bytes([e, f]),
        segment_bytes: u16::from_be_bytes([g, h]),
    });
    Some(Offload { checksum, segmentation })
}

/// How a frame is to be cut that the other end left whole, if it fits what that says of it and the LAN's MTU; nothing of one that is not to be cut.
pub fn plan(frame: &[u8], ethernet: &Ethernet, offload: &Offload, mtu: usize) -> Result<Option<Plan>, Reason> {
    if matches!(offload.checksum, Checksum::Partial { .. }) && !is_usual(frame, ethernet, offload.checksum) {
        return Err(Reason::WireOffload);
    }
    match &offload.segmentation {
        None if frame.len() - ethernet.network > mtu => Err(Reason::WireOversize),
        None => Ok(None),
        Some(_) if offload.checksum == Checksum::InFrame => Err(Reason::WireOffload),
        Some(segmentation) => Plan::new(frame, segmentation, mtu).map(Some).map_err(|_| Reason::WireOffload),
    }
}

/// Whether what is left to be completed is what a receiver sees from the frame itself: TCP or UDP behind a plain IP header.
pub fn is_usual(frame: &[u8], ethernet: &Ethernet, checksum: Checksum) -> bool {
    let Checksum::Partial { start, offset } = checksum else { return false };
    let ip = Ip::parse(frame, ethernet).filter(|ip| ip.plain && ip.transport == usize::from(start));
    let at = match ip.map(|ip| ip.protocol) {
        Some(TCP) => Tcp::CHECKSUM_AT,
        Some(UDP) => UDP_CHECKSUM_AT,
        _ => return false,
    };
    usize::from(offset) == at && usize::from(start) + at + 2 <= frame.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Version, samples::*};

    #[test]
    fn what_is_left_undone_is_found_again() {
        let frame = tcp(Version::V4, 7, Tcp::ACK, &[1; 3000]);
        let ethernet = Ethernet::parse(&frame).unwrap();
        let segmentation = Segmentation { kind: SegmentKind::Tcp4, ecn: true, header_bytes: 66, segment_bytes: 1348 };
        let offload = Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: Some(segmentation) };
        let head = head(Vni::new(7).unwrap(), &offload, &frame, &ethernet).unwrap();
        assert_eq!(head, [1, 0x81, 0, 34, 0, 16, 0, 66, 5, 0x44, 8, 0, 0, 0, 0, 0, 7, 0]);
        assert_eq!(undone(&head), Some(offload));
        assert!(plan(&frame, &ethernet, &offload, 1400).unwrap().is_some());
    }

    #[test]
    fn what_does_not_fit_the_frame_is_refused() {
        let frame = tcp(Version::V4, 7, Tcp::ACK, &[1; 3000]);
        let ethernet = Ethernet::parse(&frame).unwrap();
        let right = Segmentation { kind: SegmentKind::Tcp4, ecn: false, header_bytes: 66, segment_bytes: 1348 };
        let (sum, whole) = (Checksum::Partial { start: 34, offset: 16 }, Checksum::InFrame);
        for (checksum, segmentation, reason) in [
            (sum, None, Reason::WireOversize),
            (whole, Some(right), Reason::WireOffload),
            (Checksum::Partial { start: 36, offset: 16 }, Some(right), Reason::WireOffload),
            (Checksum::Partial { start: 34, offset: 6 }, Some(right), Reason::WireOffload),
            (sum, Some(Segmentation { kind: SegmentKind::Tcp6, ..right }), Reason::WireOffload),
            (sum, Some(Segmentation { segment_bytes: 0, ..right }), Reason::WireOffload),
            (sum, Some(Segmentation { segment_bytes: 1349, ..right }), Reason::WireOffload),
            (sum, Some(Segmentation { segment_bytes: 1, ..right }), Reason::WireOffload),
        ] {
            assert_eq!(
                plan(&frame, &ethernet, &Offload { checksum, segmentation }, 1400).unwrap_err(),
                reason,
                "{checksum:?} {segmentation:?}"
            );
        }
        for head in [[2, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 4, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(undone(&head), None);
        }
        assert_eq!(undone(&[0; 9]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_harm(head: [u8; UNDONE_BYTES], mut frame in prop::collection::vec(any::<u8>(), 14..2000), like in 0..3_u8) {
            if like > 0 && frame.len() > 60 {
                frame[12..15].copy_from_slice(&[8, 0, 0x45]);
                frame[23] = if like == 1 { TCP } else { UDP };
            }
            let ethernet = Ethernet::parse(&frame).unwrap();
            if let Some(offload) = undone(&head)
                && let Ok(Some(mut plan)) = plan(&frame, &ethernet, &offload, 1400)
            {
                while let Some(bytes) = plan.next_bytes() {
                    prop_assert!(bytes <= frame.len());
                    plan.write_next(&frame, &mut vec![0; bytes]);
                }
            }
        }
    }
}
