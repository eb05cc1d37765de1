//! What a guest and its port agree to leave undone in a frame: the virtio-net offload header (virtio 1.3 §5.1.6) as meaning, not as bytes.
//!
//! The device model reads and writes the bytes, the overlay does what was left undone or leaves it: neither knows the other.

use std::ops::Range;

/// Largest frame that a guest exchanges with its port, Ethernet header and one VLAN tag included: the length of an IP packet is said in 16
/// bits, that of a large TCP frame too.
pub const FRAME_BYTES_MAX: usize = 65_535 + 14 + 4;

/// What is known about a frame's TCP or UDP checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it is in the frame, and whoever cares checks it.
    #[default]
    InFrame,
    /// It was checked and is right.
    Valid,
    /// The field holds the pseudo header's sum; the rest is to be summed from `start` and stored at `start + offset`.
    Partial {
        /// First byte to be summed, from the start of the frame.
        start: u16,
        /// Where the sum goes, from `start`. The device has checked that `start + offset + 2` lies within the frame; the overlay trusts nobody.
        offset: u16,
    },
}

/// What a large frame is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4 or IPv6.
    Udp,
}

/// How a frame larger than the MTU is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// The protocol.
    pub kind: SegmentKind,
    /// Only the first segment carries CWR (RFC 3168 §6.1.2).
    pub ecn: bool,
    /// Length of all headers: true in what a port yields; a guest's hint in what it takes, which may be wrong and larger than the frame.
    pub header_bytes: u16,
    /// Payload of each segment. A device lets no 0 pass.
    pub segment_bytes: u16,
}

/// What is left undone in one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// State of the checksum.
    pub checksum: Checksum,
    /// How to cut the frame, if it is larger than the MTU.
    pub segmentation: Option<Segmentation>,
}

/// What the guest's driver takes undone in received frames. What is false is done before a frame is yielded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Partial or already verified checksums.
    pub checksum: bool,
    /// TCP over IPv4 larger than the MTU.
    pub tcp4: bool,
    /// TCP over IPv6 larger than the MTU.
    pub tcp6: bool,
    /// Such TCP frames with CWR set.
    pub ecn: bool,
}

/// A frame's bytes where they lie: headers that were written anew, and after them pieces of what arrived. Nothing is copied to put them side by side.
#[derive(Debug, Clone, Copy)]
pub struct FrameBytes<'a> {
    head: &'a [u8],
    arrived: &'a [u8],
    pieces: &'a [Range<usize>],
    bytes: usize,
}

impl<'a> FrameBytes<'a> {
    /// A frame that lies in one place.
    pub fn whole(frame: &'a [u8]) -> Self {
        Self { head: frame, arrived: &[], pieces: &[], bytes: frame.len() }
    }

    /// `head`, and then these pieces of `arrived`. One that lies outside of it is empty.
    pub fn scattered(head: &'a [u8], arrived: &'a [u8], pieces: &'a [Range<usize>]) -> Self {
        let scattered = Self { head, arrived, pieces, bytes: 0 };
        Self { bytes: scattered.iter().map(<[u8]>::len).sum(), ..scattered }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The pieces in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let arrived = self.arrived;
        std::iter::once(self.head).chain(self.pieces.iter().map(move |piece| arrived.get(piece.clone()).unwrap_or_default()))
    }

    /// Side by side, for whoever is in no hurry.
    pub fn to_vec(&self) -> Vec<u8> {
        self.iter().flatten().copied().collect()
    }
}
