//! The frame port of a NIC: frames between the device model and the overlay, on the NIC's queue thread.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Instant,
};

use arc_swap::{ArcSwap, Cache};
use rebec_devices::net::{self, FramePort, NetHeader, Offloads, ReceivedFrame};
use rebec_overlay::{Accepts, Checksum, Fdb, Inbound, Offload, Port, PortConfig, Reason, SegmentKind, Segmentation};

use super::{
    counters::SharedCounters,
    socket::{RECEIVE_BYTES_MAX, Receiver, Sender},
};

/// One NIC's frame port.
pub struct LanPort {
    socket: Arc<UdpSocket>,
    fdb: Cache<Arc<ArcSwap<Fdb>>, Arc<Fdb>>,
    port: Port,
    sender: Sender,
    receiver: Receiver,
    buffer: Box<[u8]>,
    inbound: Inbound,
    /// Time of the burst under way: entries age in minutes, so not every frame asks the clock.
    now: Instant,
    counters: Arc<SharedCounters>,
}

impl LanPort {
    pub(super) fn new(config: PortConfig, socket: Arc<UdpSocket>, fdb: Arc<ArcSwap<Fdb>>, counters: Arc<SharedCounters>) -> Self {
        Self {
            fdb: Cache::new(fdb),
            port: Port::new(config),
            sender: Sender::new(socket.clone()),
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
            self.inbound = Inbound::new(received.source, received.bytes, received.stride);
        }
    }

    fn publish(&self) {
        let mut counters = self.port.counters();
        counters.drop_many(Reason::SendRefused, self.sender.lost());
        self.counters.store(&counters);
    }
}

impl FramePort for LanPort {
    fn set_offloads(&mut self, offloads: Offloads) {
        let Offloads { checksum, tcp4, tcp6, ecn, udp4: _, udp6: _ } = offloads;
        self.port.set_accepts(Accepts { checksum, tcp4, tcp6, ecn });
    }

    fn send(&mut self, header: &NetHeader, frame: &[u8]) -> io::Result<()> {
        self.port.transmit(self.now, self.fdb.load(), &offload(header), frame, &mut self.sender);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.port.flush(&mut self.sender);
        self.now = Instant::now();
        self.publish();
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Option<ReceivedFrame<'_>>> {
        let Some(ready) = self.next_ready()? else { return Ok(None) };
        let frame = self.port.frame(&ready, &self.buffer);
        Ok(Some(ReceivedFrame { header: header(&ready.offload), frame }))
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
        self.port.tick(now, self.fdb.load(), &mut self.sender);
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

/// The device's words in the overlay's.
fn offload(header: &NetHeader) -> Offload {
    let checksum = match header.checksum {
        net::Checksum::InFrame => Checksum::InFrame,
        net::Checksum::Valid => Checksum::Valid,
        net::Checksum::Partial { start, offset } => Checksum::Partial { start, offset },
    };
    let segmentation = header.segmentation.map(|net::Segmentation { kind, ecn, header_bytes, segment_bytes }| {
        let kind = match kind {
            net::SegmentKind::Tcp4 => SegmentKind::Tcp4,
            net::SegmentKind::Tcp6 => SegmentKind::Tcp6,
            net::SegmentKind::Udp => SegmentKind::Udp,
        };
        Segmentation { kind, ecn, header_bytes, segment_bytes }
    });
    Offload { checksum, segmentation }
}

/// And back.
fn header(offload: &Offload) -> NetHeader {
    let checksum = match offload.checksum {
        Checksum::InFrame => net::Checksum::InFrame,
        Checksum::Valid => net::Checksum::Valid,
        Checksum::Partial { start, offset } => net::Checksum::Partial { start, offset },
    };
    let segmentation = offload.segmentation.map(|Segmentation { kind, ecn, header_bytes, segment_bytes }| {
        let kind = match kind {
            SegmentKind::Tcp4 => net::SegmentKind::Tcp4,
            SegmentKind::Tcp6 => net::SegmentKind::Tcp6,
            SegmentKind::Udp => net::SegmentKind::Udp,
        };
        net::Segmentation { kind, ecn, header_bytes, segment_bytes }
    });
    NetHeader { checksum, segmentation }
}
