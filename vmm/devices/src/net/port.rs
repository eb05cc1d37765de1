//! The seam between a network card and what carries its frames: the VXLAN port of the program, a test's memory, later vhost-user or tap.
//!
//! All methods are called on the card's one queue thread. Both directions speak whole guest frames of up to
//! [`rebec_offload::FRAME_BYTES_MAX`] bytes and what is left undone in them; cutting and joining segments is the port's business.

use std::{io, os::fd::BorrowedFd, time::Instant};

use rebec_offload::{Accepts, FrameBytes, Offload};

/// A frame for the guest, lent by the port until the next call.
#[derive(Debug)]
pub struct ReceivedFrame<'a> {
    /// What is left undone in it.
    pub offload: Offload,
    /// From the Ethernet header on, at most [`rebec_offload::FRAME_BYTES_MAX`] bytes; longer ones are dropped and counted.
    pub frame: FrameBytes<'a>,
}

/// Carries a card's frames.
pub trait FramePort: Send {
    /// Called before the first frame after each start of the queues: what may be left undone in what [`FramePort::receive`] yields.
    fn set_accepts(&mut self, accepts: Accepts);
    /// Takes one guest frame. It may be kept until [`FramePort::flush`]. An error drops this frame and is counted.
    fn send(&mut self, offload: &Offload, frame: &[u8]) -> io::Result<()>;
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
