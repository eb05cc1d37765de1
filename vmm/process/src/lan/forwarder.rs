//! The old place of a NIC that moved: sends on what still arrives here, for some seconds.

use std::{io, net::UdpSocket, os::fd::AsFd, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use rebec_overlay::{Counters, Fdb, Inbound, Reason, Relay};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    sealing::{Outlet, Sealing},
    socket::{RECEIVE_BYTES_MAX, Receiver, Sender, Source},
};

/// Forwards on the thread that runs it.
pub struct Forwarder {
    relay: Relay,
    socket: Arc<UdpSocket>,
    fdb: Arc<ArcSwap<Fdb>>,
    receiver: Receiver,
    outlet: Outlet,
    inbound: Inbound,
    buffer: Box<[u8]>,
}

impl Forwarder {
    pub(super) fn new(
        relay: Relay,
        socket: Arc<UdpSocket>,
        source: Arc<Source>,
        fdb: Arc<ArcSwap<Fdb>>,
        sealing: Option<Arc<Sealing>>,
    ) -> Self {
        Self {
            relay,
            fdb,
            receiver: Receiver::new(socket.clone()),
            outlet: Outlet::new(Sender::new(socket.clone(), source), sealing),
            inbound: Inbound::empty(),
            buffer: vec![0; RECEIVE_BYTES_MAX].into(),
            socket,
        }
    }

    /// Sends on what has arrived since the guest stopped, then what arrives until the deadline. What it did, at the end.
    pub fn run(mut self) -> io::Result<Counters> {
        loop {
            let now = Instant::now();
            while let Some(received) = self.receiver.receive(&mut self.buffer)? {
                let run = &mut self.buffer[..received.bytes];
                match self.outlet.seals() {
                    Some(mut seals) => self.relay.open(&mut seals, run, received.stride, &mut self.inbound),
                    None => self.inbound = Inbound::new(received.source, received.bytes, received.stride),
                }
                self.outlet.tell(now);
                self.relay.handle(now, &self.fdb.load(), &mut self.inbound, run, &mut self.outlet);
                if Instant::now() >= self.relay.until() {
                    break;
                }
            }
            let left = self.relay.until().saturating_duration_since(Instant::now());
            if left.is_zero() {
                let mut counters = *self.relay.counters();
                counters.drop_many(Reason::SealNoKey, self.outlet.without_key());
                return Ok(counters);
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
