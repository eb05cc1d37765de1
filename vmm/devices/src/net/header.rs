//! The offload header in front of each frame (virtio 1.3 §5.1.6), parsed once into what cannot be wrong by itself.
//!
//! ```text
//! virtio_net_hdr_v1 = flags:u8 gso_type:u8 hdr_len:u16 gso_size:u16 csum_start:u16 csum_offset:u16 num_buffers:u16    little endian
//! ```
//!
//! Offsets are checked against the frame's length here, not against its headers: those are the port's to read.

use rebec_offload::{Checksum, Offload, SegmentKind, Segmentation};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Bytes of the header, `num_buffers` included.
pub const HEADER_BYTES: usize = 12;

/// A header that says nothing sensible about its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A checksum field outside of the frame.
    #[error("checksum at {start}+{offset} is outside of a frame of {frame_bytes} bytes")]
    Checksum {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
        /// The frame's length.
        frame_bytes: usize,
    },
    /// Segments of size 0, of an unknown kind or without a partial checksum.
    #[error("segmentation type {kind:#x} of {segment_bytes} bytes")]
    Segmentation {
        /// `gso_type`.
        kind: u8,
        /// `gso_size`.
        segment_bytes: u16,
    },
}

/// Reads a header that belongs to a frame of `frame_bytes` bytes. In what it yields, a partial checksum lies within the frame, and what is to be
/// cut has one.
pub fn parse(bytes: &[u8; HEADER_BYTES], frame_bytes: usize) -> Result<Offload, HeaderError> {
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (flags, gso) = (u32::from(bytes[0]), bytes[1]);
    let (header_bytes, segment_bytes, start, offset) = (word(2), word(4), word(6), word(8));
    let checksum = if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
        if usize::from(start) + usize::from(offset) + 2 > frame_bytes {
            return Err(HeaderError::Checksum { start, offset, frame_bytes });
        }
        Checksum::Partial { start, offset }
    } else if flags & VIRTIO_NET_HDR_F_DATA_VALID != 0 {
        Checksum::Valid
    } else {
        Checksum::InFrame
    };
    let kind = match u32::from(gso) & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => return Ok(Offload { checksum, segmentation: None }),
        VIRTIO_NET_HDR_GSO_TCPV4 => SegmentKind::Tcp4,
        VIRTIO_NET_HDR_GSO_TCPV6 => SegmentKind::Tcp6,
        VIRTIO_NET_HDR_GSO_UDP_L4 => SegmentKind::Udp,
        _ => return Err(HeaderError::Segmentation { kind: gso, segment_bytes }),
    };
    // §5.1.6.2: a driver that asks for segmentation must ask for the checksum too.
    if segment_bytes == 0 || !matches!(checksum, Checksum::Partial { .. }) {
        return Err(HeaderError::Segmentation { kind: gso, segment_bytes });
    }
    let ecn = u32::from(gso) & VIRTIO_NET_HDR_GSO_ECN != 0;
    Ok(Offload { checksum, segmentation: Some(Segmentation { kind, ecn, header_bytes, segment_bytes }) })
}

/// The header in front of a received frame that fills `buffers` descriptor chains.
pub fn to_bytes(offload: &Offload, buffers: u16) -> [u8; HEADER_BYTES] {
    let (flags, start, offset) = match offload.checksum {
        Checksum::InFrame => (0, 0, 0),
        Checksum::Valid => (VIRTIO_NET_HDR_F_DATA_VALID, 0, 0),
        Checksum::Partial { start, offset } => (VIRTIO_NET_HDR_F_NEEDS_CSUM, start, offset),
    };
    let (gso, header_bytes, segment_bytes) = match offload.segmentation {
        None => (VIRTIO_NET_HDR_GSO_NONE, 0, 0),
        Some(Segmentation { kind, ecn, header_bytes, segment_bytes }) => {
            let kind = match kind {
                SegmentKind::Tcp4 => VIRTIO_NET_HDR_GSO_TCPV4,
                SegmentKind::Tcp6 => VIRTIO_NET_HDR_GSO_TCPV6,
                SegmentKind::Udp => VIRTIO_NET_HDR_GSO_UDP_L4,
            };
            (kind | if ecn { VIRTIO_NET_HDR_GSO_ECN } else { 0 }, header_bytes, segment_bytes)
        }
    };
    let mut bytes = [flags as u8, gso as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, word) in [header_bytes, segment_bytes, start, offset, buffers].into_iter().enumerate() {
        bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes_of_a_tso_frame() {
        let header = Offload {
            checksum: Checksum::Partial { start: 34, offset: 16 },
            segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, ecn: true, header_bytes: 54, segment_bytes: 1346 }),
        };
        let bytes = [1, 0x81, 54, 0, 0x42, 5, 34, 0, 16, 0, 3, 0];
        assert_eq!(to_bytes(&header, 3), bytes);
        assert_eq!(parse(&bytes, 65_000), Ok(header));
        assert_eq!(parse(&bytes, 52), Ok(header));
        assert_eq!(parse(&bytes, 51), Err(HeaderError::Checksum { start: 34, offset: 16, frame_bytes: 51 }));
    }

    #[test]
    fn segments_need_a_size_a_known_kind_and_a_partial_checksum() {
        for bytes in [[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 3, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(matches!(parse(&bytes, 1500), Err(HeaderError::Segmentation { .. })), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_is_written_back_the_same(bytes: [u8; HEADER_BYTES], frame_bytes in 0_usize..70_000) {
            if let Ok(header) = parse(&bytes, frame_bytes) {
                prop_assert_eq!(parse(&to_bytes(&header, 1), frame_bytes), Ok(header));
            }
        }
    }
}
