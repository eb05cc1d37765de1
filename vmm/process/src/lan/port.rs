//! The frame port of a NIC: frames between the device model and the overlay, on the NIC's queue thread.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Instant,
};

use arc_swap::{ArcSwap, Cache};
use rebec_devices::net::{FramePort, ReceivedFrame};
use rebec_offload::{Accepts, Offload};
use rebec_overlay::{Fdb, Inbound, Port, Reason};

use super::{
    counters::SharedCounters,
    sealing::{Outlet, Sealing},
    socket::{RECEIVE_BYTES_MAX, Receiver, Sender, Source},
};

/// One NIC's frame port.
pub struct LanPort {
    socket: Arc<UdpSocket>,
    fdb: Cache<Arc<ArcSwap<Fdb>>, Arc<Fdb>>,
    port: Port,
    outlet: Outlet,
    receiver: Receiver,
    buffer: Box<[u8]>,
    inbound: Inbound,
    /// Time of the burst under way: entries age in minutes, so not every frame asks the clock.
    now: Instant,
    counters: Arc<SharedCounters>,
}

impl LanPort {
    pub(super) fn new(
        port: Port,
        socket: Arc<UdpSocket>,
        source: Arc<Source>,
        fdb: Arc<ArcSwap<Fdb>>,
        sealing: Option<Arc<Sealing>>,
        counters: Arc<SharedCounters>,
    ) -> Self {
        Self {
            fdb: Cache::new(fdb),
            port,
            outlet: Outlet::new(Sender::new(socket.clone(), source), sealing),
            receiver: Receiver::new(socket.clone()),
            buffer: vec![0; RECEIVE_BYTES_MAX].into(),
            inbound: Inbound::empty(),
            now: Instant::now(),
            counters,
            socket,
        }
    }

    /// The next frame that is ready, of the datagrams at hand or of new ones.
    fn next_ready(&mut self) -> io::Result<Option<rebec_overlay::Ready>> {
        loop {
            if let Some(ready) = self.port.next_frame(self.now, self.fdb.load(), &mut self.inbound, &self.buffer) {
                return Ok(Some(ready));
            }
            self.publish();
            let Some(received) = self.receiver.receive(&mut self.buffer)? else {
                return Ok(None);
            };
            self.now = Instant::now();
            match self.outlet.seals() {
                Some(mut seals) => {
                    let run = &mut self.buffer[..received.bytes];
                    self.port.open(&mut seals, run, received.stride, &mut self.inbound);
                }
                None => self.inbound = Inbound::new(received.source, received.bytes, received.stride),
            }
        }
    }

    fn publish(&self) {
        let mut counters = self.port.counters();
        counters.drop_many(Reason::SendRefused, self.outlet.lost());
        counters.drop_many(Reason::SealNoKey, self.outlet.without_key());
        self.counters.store(&counters);
    }
}

impl FramePort for LanPort {
    fn set_accepts(&mut self, accepts: Accepts) {
        self.port.set_accepts(accepts);
    }

    fn send(&mut self, offload: &Offload, frame: &[u8]) -> io::Result<()> {
        self.port.transmit(self.now, self.fdb.load(), offload, frame, &mut self.outlet);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.port.flush(&mut self.outlet);
        self.now = Instant::now();
        self.outlet.tell(self.now);
        self.publish();
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Option<ReceivedFrame<'_>>> {
        let Some(ready) = self.next_ready()? else { return Ok(None) };
        let frame = self.port.frame(&ready, &self.buffer);
        Ok(Some(ReceivedFrame { offload: ready.offload, frame }))
    }

    fn has_answer(&self) -> bool {
        self.port.has_answer()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn announce(&mut self) {
        self.port.announce(Instant::now());
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        self.outlet.tell(now);
        self.port.tick(now, self.fdb.load(), &mut self.outlet);
        self.publish();
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.port.next_deadline()
    }

    fn saved(&self) -> Vec<u8> {
        self.port.saved()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        self.port.restore(saved).map_err(|error| error.to_string())
    }
}
