//! The old place of a NIC that moved: sends on what still arrives here, for some seconds.

use std::{io, net::UdpSocket, os::fd::AsFd, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use rebec_overlay::{Counters, Fdb, Inbound, Reason, Relay};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    roads::{Arrived, Exits, Intake, Roads},
    sealing::{Outlet, Sealing},
    socket::{RECEIVE_BYTES_MAX, Receiver, Sender, Source},
};

/// Forwards on the thread that runs it.
pub struct Forwarder {
    relay: Relay,
    roads: Arc<Roads>,
    fdb: Arc<ArcSwap<Fdb>>,
    intake: Intake,
    outlet: Outlet,
    inbound: Inbound,
    buffer: Box<[u8]>,
}

impl Forwarder {
    pub(super) fn new(
        relay: Relay,
        socket: Arc<UdpSocket>,
        roads: Arc<Roads>,
        source: Arc<Source>,
        fdb: Arc<ArcSwap<Fdb>>,
        sealing: Option<Arc<Sealing>>,
    ) -> Self {
        Self {
            relay,
            fdb,
            intake: Intake::new(Receiver::new(socket.clone()), roads.clone()),
            outlet: Outlet::new(Sender::new(socket, source), Exits::new(roads.clone()), sealing),
            inbound: Inbound::empty(),
            buffer: vec![0; RECEIVE_BYTES_MAX].into(),
            roads,
        }
    }

    /// Sends on what has arrived since the guest stopped, then what arrives until the deadline. What it did, at the end.
    pub fn run(mut self) -> io::Result<Counters> {
        loop {
            let now = Instant::now();
            while let Some(arrived) = self.intake.receive(&mut self.buffer)? {
                let bytes = match arrived {
                    Arrived::Datagrams(received) => {
                        let run = &mut self.buffer[..received.bytes];
                        match self.outlet.seals() {
                            Some(mut seals) => self.relay.open(&mut seals, run, received.stride, &mut self.inbound),
                            None => self.inbound = Inbound::new(received.source, received.bytes, received.stride),
                        }
                        received.bytes
                    }
                    Arrived::Record(source, bytes) => {
                        self.inbound = Inbound::near(source, bytes);
                        bytes
                    }
                    // What is wanted of a port is wanted no more.
                    Arrived::Knock => continue,
                };
                let run = &self.buffer[..bytes];
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
            match poll(&mut [PollFd::from_borrowed_fd(self.roads.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
