//! The old place of a NIC that moved: sends on what still arrives here, for some seconds.

use std::{io, net::UdpSocket, os::fd::AsFd, sync::Arc, time::Instant};

use rebec_overlay::{Counters, Relay};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::socket::{RECEIVE_BYTES_MAX, Receiver, Sender};

/// Forwards on the thread that runs it.
pub struct Forwarder {
    relay: Relay,
    socket: Arc<UdpSocket>,
    receiver: Receiver,
    sender: Sender,
    buffer: Box<[u8]>,
}

impl Forwarder {
    pub(super) fn new(relay: Relay, socket: Arc<UdpSocket>) -> Self {
        Self {
            relay,
            receiver: Receiver::new(socket.clone()),
            sender: Sender::new(socket.clone()),
            buffer: vec![0; RECEIVE_BYTES_MAX].into(),
            socket,
        }
    }

    /// Sends on what has arrived since the guest stopped, then what arrives until the deadline. What it did, at the end.
    pub fn run(mut self) -> io::Result<Counters> {
        loop {
            let now = Instant::now();
            while let Some(received) = self.receiver.receive(&mut self.buffer)? {
                self.relay.handle(now, received.source, &self.buffer[..received.bytes], received.stride, &mut self.sender);
                if Instant::now() >= self.relay.until() {
                    break;
                }
            }
            let left = self.relay.until().saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(*self.relay.counters());
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
