//! virtio-net (virtio 1.2 §5.1): one queue pair, served by one thread, between a guest's rings and a [`FramePort`].

mod header;
mod port;

pub use header::{Checksum, NetHeader, SegmentKind, Segmentation};
pub use port::{FramePort, Offloads, ReceivedFrame};

/// Largest frame either way, Ethernet header included: a TSO frame's IP length is at most 65,535.
pub const FRAME_BYTES_MAX: usize = 65_536 + 14 + 4;
