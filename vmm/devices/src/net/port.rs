//! The seam between a network card and what carries its frames: the VXLAN port of the program, a test's memory, later vhost-user or tap.
//!
//! All methods are called on the card's one queue thread. Both directions speak whole guest frames of up to
//! [`super::FRAME_BYTES_MAX`] bytes with their offload header; cutting and joining segments is the port's business.

use std::{io, os::fd::BorrowedFd, time::Instant};

use super::NetHeader;

/// What the guest's driver takes in received frames, as negotiated. What is false must be done by the port before it yields a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial or already verified checksums (GUEST_CSUM).
    pub checksum: bool,
    /// TCP over IPv4 larger than the MTU (GUEST_TSO4).
    pub tcp4: bool,
    /// TCP over IPv6 larger than the MTU (GUEST_TSO6).
    pub tcp6: bool,
    /// Such TCP frames with ECN's CWR set (GUEST_ECN).
    pub ecn: bool,
    /// UDP over IPv4 larger than the MTU (GUEST_USO4).
    pub udp4: bool,
    /// UDP over IPv6 larger than the MTU (GUEST_USO6).
    pub udp6: bool,
}

/// A frame for the guest, lent by the port until the next call.
#[derive(Debug)]
pub struct ReceivedFrame<'a> {
    /// Its offload header.
    pub header: NetHeader,
    /// From the Ethernet header on, at most [`super::FRAME_BYTES_MAX`] bytes; longer ones are dropped and counted.
    pub frame: &'a [u8],
}

/// Carries a card's frames.
pub trait FramePort: Send {
    /// Called before the first frame after each start of the queues: what [`FramePort::receive`] may yield.
    fn set_offloads(&mut self, offloads: Offloads);
    /// Takes one guest frame. It may be kept until [`FramePort::flush`]. An error drops this frame and is counted.
    fn send(&mut self, header: &NetHeader, frame: &[u8]) -> io::Result<()>;
    /// The end of a burst: puts on the wire what was kept.
    fn flush(&mut self) -> io::Result<()>;
    /// The next frame for the guest; `None` means nothing now. Called only while the guest has buffers: without them frames wait in
    /// the port (and its socket drops what exceeds its buffer).
    fn receive(&mut self) -> io::Result<Option<ReceivedFrame<'_>>>;
    /// Whether [`FramePort::receive`] has a frame that [`FramePort::descriptor`] does not tell of: an answer of the port itself.
    fn has_answer(&self) -> bool;
    /// Readable when [`FramePort::receive`] may yield something.
    fn descriptor(&self) -> BorrowedFd<'_>;
    /// The queues run for the first time after a move or restore: say where the guest is now (gratuitous ARP, unsolicited ND).
    fn announce(&mut self);
    /// Does what is due at `now`.
    fn tick(&mut self, now: Instant);
    /// When [`FramePort::tick`] wants to be called next.
    fn next_deadline(&self) -> Option<Instant>;
    /// What travels with the card: addresses learnt from the guest's own frames. At most 64 KiB.
    fn saved(&self) -> Vec<u8>;
    /// Takes it back; the bytes are hostile.
    fn restore(&mut self, saved: &[u8]) -> Result<(), String>;
}
