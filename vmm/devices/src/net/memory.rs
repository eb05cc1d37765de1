//! A port without a network, for tests: what the guest sends is kept, what it shall receive is put in.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use rebec_offload::{Accepts, FrameBytes, Offload};
use rustix::event::{EventfdFlags, eventfd};

use super::{FramePort, ReceivedFrame};

/// What went over the wire and what lies on it.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) sent: Vec<(Offload, Vec<u8>)>,
    pub(crate) flushes: usize,
    pub(crate) incoming: VecDeque<(Offload, Vec<u8>)>,
    /// What is sent comes back, as an answer of the port itself.
    pub(crate) echo: bool,
    pub(crate) answers: VecDeque<(Offload, Vec<u8>)>,
    pub(crate) accepts: Option<Accepts>,
    pub(crate) announced: usize,
    pub(crate) ticks: usize,
    pub(crate) tick_every: Option<Duration>,
    pub(crate) refuse: bool,
    pub(crate) learnt: Vec<u8>,
}

/// The test's end.
#[derive(Debug, Clone)]
pub(crate) struct MemoryWire {
    wire: Arc<Mutex<Wire>>,
    readable: Arc<OwnedFd>,
}

/// The card's end.
#[derive(Debug)]
pub(crate) struct MemoryPort {
    end: MemoryWire,
    lent: Vec<u8>,
    deadline: Option<Instant>,
}

impl MemoryWire {
    pub(crate) fn new() -> Self {
        Self { wire: Arc::default(), readable: Arc::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap()) }
    }

    pub(crate) fn port(&self) -> Box<MemoryPort> {
        let deadline = self.lock().tick_every.map(|every| Instant::now() + every);
        Box::new(MemoryPort { end: self.clone(), lent: Vec::new(), deadline })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap()
    }

    pub(crate) fn put(&self, offload: Offload, frame: Vec<u8>) {
        self.lock().incoming.push_back((offload, frame));
        rustix::io::write(&self.readable, &1_u64.to_ne_bytes()).unwrap();
    }
}

impl FramePort for MemoryPort {
    fn set_accepts(&mut self, accepts: Accepts) {
        self.end.lock().accepts = Some(accepts);
    }

    fn send(&mut self, offload: &Offload, frame: &[u8]) -> io::Result<()> {
        let mut wire = self.end.lock();
        if wire.refuse {
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        if wire.echo {
            wire.answers.push_back((*offload, frame.to_vec()));
        }
        wire.sent.push((*offload, frame.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.end.lock().flushes += 1;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Option<ReceivedFrame<'_>>> {
        let mut wire = self.end.lock();
        if wire.refuse {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let answer = wire.answers.pop_front();
        let Some((offload, frame)) = answer.or_else(|| wire.incoming.pop_front()) else {
            let mut count = [0; 8];
            let _empty = rustix::io::read(&self.end.readable, &mut count);
            return Ok(None);
        };
        self.lent = frame;
        Ok(Some(ReceivedFrame { offload, frame: FrameBytes::whole(&self.lent) }))
    }

    fn has_answer(&self) -> bool {
        !self.end.lock().answers.is_empty()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.end.readable.as_fd()
    }

    fn announce(&mut self) {
        self.end.lock().announced += 1;
    }

    fn tick(&mut self, now: Instant) {
        let mut wire = self.end.lock();
        wire.ticks += 1;
        self.deadline = wire.tick_every.map(|every| now + every);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn saved(&self) -> Vec<u8> {
        self.end.lock().learnt.clone()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        if saved.first() == Some(&0xff) {
            return Err("no address begins so".to_owned());
        }
        self.end.lock().learnt = saved.to_vec();
        Ok(())
    }
}
