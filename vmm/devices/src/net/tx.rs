//! From the guest's transmit ring to the port: one copy into one buffer, in bursts.

use std::time::Instant;

use rebec_offload::{FRAME_BYTES_MAX, Offload};
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

/// Frames taken before the receive ring has its turn: enough for the port to fill its batch several times over.
const BURST: usize = 64;
/// An Ethernet header.
const FRAME_BYTES_MIN: usize = 14;

/// How a burst ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TxProgress {
    /// There may be more.
    More,
    /// A kick will say when there is more.
    Idle,
    /// There may be more, which has to wait until then.
    Limited(Instant),
}

impl TxProgress {
    /// When to go on, where time decides that.
    pub(super) fn later(self) -> Option<Instant> {
        if let Self::Limited(at) = self { Some(at) } else { None }
    }
}

/// The transmit ring.
pub(super) struct TxQueue {
    pub(super) ring: Ring,
    pub(super) kick: EventFd,
    chain: Chain,
    buffer: Vec<u8>,
}

impl TxQueue {
    pub(super) fn new(ring: Ring, kick: EventFd) -> Self {
        Self { ring, kick, chain: Chain::default(), buffer: vec![0; HEADER_BYTES + FRAME_BYTES_MAX] }
    }

    /// Sends a burst.
    pub(super) fn run(&mut self, station: &mut Station, stop: &Stop) -> Result<TxProgress, Broken> {
        self.ring.suppress_kicks()?;
        let (mut taken, mut later) = (0, None);
        while taken < BURST && !stop.requested() {
            later = station.limits.tx.not_before();
            if later.is_some() || !self.ring.pop(&mut self.chain)? {
                break;
            }
            taken += 1;
            match self.load() {
                Some((offload, frame)) => {
                    station.limits.tx.took(frame.len() as u64);
                    station.send(&offload, frame);
                }
                None => add(&station.counters.tx_dropped, 1),
            }
            // Nothing is written into a transmit buffer.
            self.ring.add_used(&[(self.chain.head(), 0)])?;
        }
        if taken > 0 {
            station.flush();
            self.ring.notify()?;
        }
        Ok(match later {
            Some(at) => TxProgress::Limited(at),
            None if taken == BURST || self.ring.want_kick()? => TxProgress::More,
            None => TxProgress::Idle,
        })
    }

    /// The chain as a frame and what is left undone in it; `None` if it is none.
    fn load(&mut self) -> Option<(Offload, &[u8])> {
        let mut reader = self.chain.reader(self.ring.ram());
        let bytes = usize::try_from(reader.left()).ok().filter(|bytes| *bytes <= self.buffer.len())?;
        let frame_bytes = bytes.checked_sub(HEADER_BYTES).filter(|bytes| *bytes >= FRAME_BYTES_MIN)?;
        reader.read(&mut self.buffer[..bytes]);
        let (header, frame) = self.buffer[..bytes].split_first_chunk::<HEADER_BYTES>()?;
        match header::parse(header, frame_bytes) {
            Ok(offload) => Some((offload, frame)),
            Err(error) => {
                log::debug!("a guest's frame is dropped: {error}");
                None
            }
        }
    }
}
