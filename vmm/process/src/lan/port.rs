//! The frame port of a NIC: frames between the device model and the overlay, on the NIC's queue thread.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::{ArcSwap, Cache};
use rebec_devices::net::{FramePort, ReceivedFrame};
use rebec_offload::{Accepts, FrameBytes, Offload};
use rebec_overlay::{Fdb, Inbound, Port, Reason, capture::Way};

use super::{
    Lan,
    counters::SharedCounters,
    roads::{Arrived, Exits, Intake, Roads},
    sealing::Outlet,
    socket::{RECEIVE_BYTES_MAX, Receiver, Sender},
    tap::Tap,
};

/// A capture that is to begin, for the queue thread to find when the control thread knocks.
pub type NextTap = Arc<Mutex<Option<Tap>>>;

/// One NIC's frame port.
pub struct LanPort {
    roads: Arc<Roads>,
    fdb: Cache<Arc<ArcSwap<Fdb>>, Arc<Fdb>>,
    port: Port,
    outlet: Outlet,
    intake: Intake,
    buffer: Box<[u8]>,
    inbound: Inbound,
    /// Time of the burst under way: entries age in minutes, so not every frame asks the clock.
    now: Instant,
    counters: Arc<SharedCounters>,
    next_tap: NextTap,
    tap: Option<Tap>,
}

impl LanPort {
    pub(super) fn new(port: Port, lan: &Lan) -> Self {
        let (socket, roads) = (lan.socket.clone(), lan.roads.clone());
        let sender = Sender::new(socket.clone(), lan.source.clone());
        Self {
            fdb: Cache::new(lan.fdb.clone()),
            port,
            outlet: Outlet::new(sender, Exits::new(roads.clone()), lan.sealing.clone()),
            intake: Intake::new(Receiver::new(socket), roads.clone()),
            buffer: vec![0; RECEIVE_BYTES_MAX].into(),
            inbound: Inbound::empty(),
            now: Instant::now(),
            counters: lan.counters.clone(),
            roads,
            next_tap: lan.next_tap.clone(),
            tap: None,
        }
    }

    /// The next frame that is ready, of the datagrams at hand or of new ones.
    fn next_ready(&mut self) -> io::Result<Option<rebec_overlay::Ready>> {
        loop {
            if let Some(ready) = self.port.next_frame(self.now, self.fdb.load(), &mut self.inbound, &self.buffer) {
                return Ok(Some(ready));
            }
            self.publish();
            let Some(arrived) = self.intake.receive(&mut self.buffer)? else {
                return Ok(None);
            };
            self.now = Instant::now();
            match arrived {
                Arrived::Datagrams(received) => match self.outlet.seals() {
                    Some(mut seals) => {
                        let run = &mut self.buffer[..received.bytes];
                        self.port.open(&mut seals, run, received.stride, &mut self.inbound);
                    }
                    None => self.inbound = Inbound::new(received.source, received.bytes, received.stride),
                },
                Arrived::Record(source, bytes) => self.inbound = Inbound::near(source, bytes),
                Arrived::Knock => {
                    let next = self.next_tap.lock().unwrap_or_else(PoisonError::into_inner).take();
                    self.tap = next.or(self.tap.take());
                }
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
        if let Some(tap) = &mut self.tap {
            tap.take(Way::Out, &FrameBytes::whole(frame));
        }
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
        if let Some(tap) = &mut self.tap {
            tap.take(Way::In, &frame);
        }
        Ok(Some(ReceivedFrame { offload: ready.offload, frame }))
    }

    fn has_answer(&self) -> bool {
        self.port.has_answer()
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.roads.as_fd()
    }

    fn announce(&mut self) {
        self.port.announce(Instant::now());
    }

    fn tick(&mut self, now: Instant) {
        self.now = now;
        self.outlet.tell(now);
        self.port.tick(now, self.fdb.load(), &mut self.outlet);
        if let Some(tap) = &mut self.tap {
            tap.tick(now);
        }
        self.tap.take_if(|tap| tap.is_over());
        self.publish();
    }

    fn next_deadline(&self) -> Option<Instant> {
        let tap = self.tap.as_ref().and_then(|tap| tap.next_deadline(self.now));
        self.port.next_deadline().into_iter().chain(tap).min()
    }

    fn saved(&self) -> Vec<u8> {
        self.port.saved()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        self.port.restore(saved).map_err(|error| error.to_string())
    }
}
