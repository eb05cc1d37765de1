//! From the port to the guest's receive ring: one copy into as many buffers as the frame needs (virtio 1.3 §5.1.6.4).

use std::time::Instant;

use rebec_offload::{FRAME_BYTES_MAX, FrameBytes, Offload};
use vmm_sys_util::eventfd::EventFd;

use super::{
    counters::add,
    header::{self, HEADER_BYTES},
    pair::Station,
};
use crate::virtio::{
    chain::Chain,
    ring::{Broken, Ring},
    worker::Stop,
};

/// Frames given before the transmit ring has its turn.
const BURST: usize = 64;

/// How a burst ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RxProgress {
    /// There may be more.
    More,
    /// The port has nothing.
    Idle,
    /// The guest has too few buffers; its kick will say when there are more.
    Starved,
    /// The port failed; try again a little later.
    Failed,
    /// There may be more, which has to wait until then.
    Limited(Instant),
}

impl RxProgress {
    /// When to go on, where a limit decides that.
    pub(super) fn later(self) -> Option<Instant> {
        if let Self::Limited(at) = self { Some(at) } else { None }
    }
}

enum Placed {
    Done,
    /// More buffers are needed than the guest offers now.
    Wait,
    /// No buffer of this guest will ever do.
    Never,
}

/// A frame for which the guest had too few buffers.
#[derive(Debug, Default)]
pub(super) struct Held {
    offload: Offload,
    frame: Vec<u8>,
    full: bool,
}

/// The receive ring.
pub(super) struct RxQueue {
    pub(super) ring: Ring,
    pub(super) kick: EventFd,
    mergeable: bool,
    first: Chain,
    next: Chain,
    /// Chains of one frame, as (head, bytes); grows to the longest frame seen, at most the ring's size.
    used: Vec<(u16, u32)>,
    /// How many buffers were there when they were not enough.
    too_few: u16,
}

impl RxQueue {
    pub(super) fn new(ring: Ring, kick: EventFd, mergeable: bool) -> Self {
        Self { ring, kick, mergeable, first: Chain::default(), next: Chain::default(), used: Vec::new(), too_few: 0 }
    }

    /// Gives the guest a burst of frames.
    pub(super) fn run(&mut self, station: &mut Station, stop: &Stop) -> Result<RxProgress, Broken> {
        // Kicks are of use only while the guest has too few buffers.
        self.ring.suppress_kicks()?;
        let mut progress = RxProgress::More;
        for _ in 0..BURST {
            if stop.requested() {
                break;
            }
            progress = self.give_one(station)?;
            if progress != RxProgress::More {
                break;
            }
        }
        self.ring.notify()?;
        // Buffers may have come between the last look and the wish for a kick.
        if progress == RxProgress::Starved && self.ring.want_kick_beyond(self.too_few)? {
            progress = RxProgress::More;
        }
        Ok(progress)
    }

    fn give_one(&mut self, station: &mut Station) -> Result<RxProgress, Broken> {
        // Without any buffer the frame stays in the port, where more of them have room.
        if self.ring.waiting()? == 0 {
            self.too_few = 0;
            return Ok(RxProgress::Starved);
        }
        // What has to wait does so in the port, and beyond its room is lost: senders slow down by that.
        if let Some(at) = station.limits.rx.not_before() {
            return Ok(RxProgress::Limited(at));
        }
        let Station { port, held, counters, limits, .. } = station;
        if held.full {
            let placed = self.place(&held.offload, FrameBytes::whole(&held.frame))?;
            held.full = matches!(placed, Placed::Wait);
            return Ok(settle(&placed, counters, held.frame.len()));
        }
        let received = match port.receive() {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(RxProgress::Idle),
            Err(error) => {
                log::debug!("receive a frame: {error}");
                add(&counters.rx_errors, 1);
                return Ok(RxProgress::Failed);
            }
        };
        limits.rx.took(received.frame.len() as u64);
        let placed = self.place(&received.offload, received.frame)?;
        if matches!(placed, Placed::Wait) {
            held.offload = received.offload;
            held.frame.clear();
            received.frame.iter().for_each(|piece| held.frame.extend_from_slice(piece));
            held.full = true;
            add(&counters.rx_waits, 1);
        }
        Ok(settle(&placed, counters, received.frame.len()))
    }

    /// Copies a frame into buffers and returns them, all at once.
    fn place(&mut self, offload: &Offload, frame: FrameBytes<'_>) -> Result<Placed, Broken> {
        if frame.len() > FRAME_BYTES_MAX {
            return Ok(Placed::Never);
        }
        self.used.clear();
        let (mut left, mut pieces, mut piece) = (frame.len(), frame.iter(), &[][..]);
        loop {
            let first = self.used.is_empty();
            let chain = if first { &mut self.first } else { &mut self.next };
            if !self.ring.pop(chain)? {
                self.too_few = self.used.len() as u16;
                self.ring.push_back(self.too_few);
                // A ring full of buffers that together are too small will never change.
                return Ok(if self.used.len() == usize::from(self.ring.size()) { Placed::Never } else { Placed::Wait });
            }
            let mut writer = chain.writer(self.ring.ram());
            // The header's place is kept free: it says how many buffers there were.
            if first && writer.skip(HEADER_BYTES as u64) < HEADER_BYTES as u64 {
                return Err(Broken::Request("a receive buffer smaller than its header"));
            }
            let mut written = 0;
            while left > 0 {
                if piece.is_empty() {
                    let Some(next) = pieces.next() else { break };
                    piece = next;
                }
                let count = writer.write(piece);
                (piece, left, written) = (&piece[count..], left - count, written + count);
                // The buffer is full, or this piece is done.
                if !piece.is_empty() {
                    break;
                }
            }
            self.used.push((chain.head(), (written + if first { HEADER_BYTES } else { 0 }) as u32));
            if left == 0 {
                break;
            }
            if !self.mergeable {
                self.ring.push_back(1);
                return Ok(Placed::Never);
            }
        }
        self.first.writer(self.ring.ram()).write(&header::to_bytes(offload, self.used.len() as u16));
        self.ring.add_used(&self.used)?;
        Ok(Placed::Done)
    }
}

fn settle(placed: &Placed, counters: &super::NetCounters, frame_bytes: usize) -> RxProgress {
    match placed {
        Placed::Done => {
            add(&counters.rx_frames, 1);
            add(&counters.rx_bytes, frame_bytes as u64);
            RxProgress::More
        }
        Placed::Never => {
            add(&counters.rx_dropped, 1);
            RxProgress::More
        }
        Placed::Wait => RxProgress::Starved,
    }
}
