//! The switch of one port: decides what becomes of each frame of its guest and of each datagram of the others.
//!
//! ```text
//! from the guest    source is the NIC's? -> a question that is answered here? -> known station: its endpoint | group or unknown: every endpoint -> cut, complete, batch
//! from the network  our LAN? for the guest or for all? not our own voice? -> learn (physical endpoints only) -> join -> the guest
//! ```
//!
//! Split horizon: what came from the overlay never goes back into it. A guest may only speak with its NIC's address: answers to another
//! could not reach it, and others would be told lies.

use std::{
    collections::VecDeque,
    net::SocketAddrV4,
    ops::Range,
    slice,
    time::{Duration, Instant},
};

use rebec_offload::{Accepts, Checksum, FRAME_BYTES_MAX, Offload, SegmentKind, Segmentation};

use crate::{
    addresses::{GuestAddresses, SavedAddressesError},
    announce,
    batch::{Batch, Wire},
    config::PortConfig,
    counters::{Counters, Reason},
    fdb::{Fdb, Learned},
    frame::{Ethernet, Ip, Tcp},
    inbound::Inbound,
    join::{Joiner, known_checksum, write_large_headers},
    local::{self, Local},
    seal::Seals,
    segment::{Plan, complete},
    vxlan::{self, HEADER_BYTES},
};

/// Answers that wait for the guest to take them: more than any system asks at once.
const ANSWERS_MAX: usize = 16;

/// A frame for the guest, to be looked at with [`Port::frame`] before the port is used again.
#[derive(Debug, Clone)]
pub struct Ready {
    /// What is left undone in it.
    pub offload: Offload,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Datagram(Range<usize>),
    Joiner(usize),
    Answer,
}

/// The announcement under way.
#[derive(Debug, Clone, Copy)]
struct Announcing {
    arrived: Instant,
    round: usize,
}

/// One port.
#[derive(Debug)]
pub struct Port {
    config: PortConfig,
    accepts: Accepts,
    learned: Learned,
    guest: GuestAddresses,
    announcing: Option<Announcing>,
    batch: Batch,
    joiner: Joiner,
    /// A large frame that the guest takes only in pieces: where it lies among the datagrams, and how far it is cut.
    cutting: Option<(Range<usize>, Plan)>,
    /// What this port has to say itself, and what it said last.
    answers: VecDeque<Vec<u8>>,
    answer: Vec<u8>,
    counters: Counters,
}

impl Port {
    /// A port that knows nothing yet.
    pub fn new(config: PortConfig) -> Self {
        Self {
            batch: Batch::new(config.sealed),
            config,
            accepts: Accepts::default(),
            learned: Learned::default(),
            guest: GuestAddresses::default(),
            announcing: None,
            joiner: Joiner::default(),
            cutting: None,
            answers: VecDeque::new(),
            answer: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// What the guest's driver takes from now on.
    pub fn set_accepts(&mut self, accepts: Accepts) {
        // Without partial checksums a driver cannot take large frames either (virtio 1.3 §5.1.3.1).
        self.accepts = if accepts.checksum { accepts } else { Accepts::default() };
    }

    /// What passed and what did not.
    pub fn counters(&self) -> Counters {
        Counters { tx_datagrams: self.batch.sent(), ..self.counters }
    }

    // ---- from the guest ----

    /// Takes one frame of the guest. Its datagrams may wait for [`Self::flush`].
    pub fn transmit(&mut self, now: Instant, fdb: &Fdb, offload: &Offload, frame: &[u8], wire: &mut impl Wire) {
        match self.try_transmit(now, fdb, offload, frame, wire) {
            Ok(()) => self.counters.tx_frames += 1,
            Err(reason) => self.counters.drop(reason),
        }
    }

    fn try_transmit(&mut self, now: Instant, fdb: &Fdb, offload: &Offload, frame: &[u8], wire: &mut impl Wire) -> Result<(), Reason> {
        let ethernet = Ethernet::parse(frame).ok_or(Reason::GuestShort)?;
        if ethernet.source != self.config.mac {
            return Err(Reason::GuestSource);
        }
        if frame.len() > FRAME_BYTES_MAX {
            return Err(Reason::GuestOversize);
        }
        self.guest.observe(self.config.mac, frame, &ethernet);
        match local::look(&self.config, fdb, frame, &ethernet) {
            Local::Pass => {}
            Local::Answer(answer) => return self.keep_answer(answer),
            Local::Silence => {
                self.counters.answered += 1;
                return Ok(());
            }
            Local::Malformed => return Err(Reason::GuestDhcp),
        }
        let known = fdb.endpoint(ethernet.destination).or_else(|| self.learned.endpoint(now, ethernet.destination));
        let to = match &known {
            Some(endpoint) => slice::from_ref(endpoint),
            None => fdb.flood(),
        };
        if to.is_empty() {
            return Err(Reason::NoPeer);
        }
        self.put_on_wire(&ethernet, offload, frame, to, wire)?;
        if known.is_none() {
            self.counters.flooded += 1;
            self.counters.drop_many(Reason::FloodCut, fdb.flood_cut() as u64);
        }
        Ok(())
    }

    fn keep_answer(&mut self, answer: Vec<u8>) -> Result<(), Reason> {
        if self.answers.len() >= ANSWERS_MAX {
            return Err(Reason::AnswersFull);
        }
        self.answers.push_back(answer);
        self.counters.answered += 1;
        Ok(())
    }

    /// Writes a frame as datagrams: whole, or cut.
    fn put_on_wire(
        &mut self,
        ethernet: &Ethernet,
        offload: &Offload,
        frame: &[u8],
        to: &[SocketAddrV4],
        wire: &mut impl Wire,
    ) -> Result<(), Reason> {
        let header = self.config.vni.header();
        if let Some(segmentation) = &offload.segmentation {
            let mut plan = Plan::new(frame, segmentation, usize::from(self.config.mtu))?;
            while let Some(bytes) = plan.next_bytes() {
                let datagram = self.batch.payload(to, HEADER_BYTES + bytes, wire);
                datagram[..HEADER_BYTES].copy_from_slice(&header);
                plan.write_next(frame, &mut datagram[HEADER_BYTES..]);
            }
            return Ok(());
        }
        if frame.len() - ethernet.network > usize::from(self.config.mtu) {
            return Err(Reason::GuestOversize);
        }
        if let Checksum::Partial { start, offset } = offload.checksum
            && usize::from(start) + usize::from(offset) + 2 > frame.len()
        {
            return Err(Reason::GuestOffload);
        }
        let datagram = self.batch.payload(to, HEADER_BYTES + frame.len(), wire);
        datagram[..HEADER_BYTES].copy_from_slice(&header);
        datagram[HEADER_BYTES..].copy_from_slice(frame);
        complete(&mut datagram[HEADER_BYTES..], offload.checksum)
    }

    /// Puts on the wire what waits.
    pub fn flush(&mut self, wire: &mut impl Wire) {
        self.batch.flush(wire);
    }

    // ---- from the network ----

    /// Whether [`Self::next_frame`] has something to say whatever the network brings.
    pub fn has_answer(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Opens what one receive call of a sealed port brought, into `inbound`.
    pub fn open(&mut self, seals: &mut Seals, run: &mut [u8], stride: usize, inbound: &mut Inbound) {
        inbound.open(seals, run, stride, &mut self.counters);
    }

    /// The next frame for the guest: an answer of this port, or one among `datagrams`, which are what `inbound` was made of.
    pub fn next_frame(&mut self, now: Instant, fdb: &Fdb, inbound: &mut Inbound, datagrams: &[u8]) -> Option<Ready> {
        if let Some(answer) = self.answers.pop_front() {
            self.answer = answer;
            self.counters.rx_frames += 1;
            return Some(Ready { offload: Offload::default(), place: Place::Answer });
        }
        loop {
            if let Some(ready) = self.next_cut(datagrams) {
                return Some(ready);
            }
            let (range, source) = inbound.peek()?;
            inbound.skip();
            match self.admit(now, fdb, source, datagrams, range) {
                Ok((range, ethernet)) => {
                    if let Some(ready) = self.make_ready(inbound, datagrams, range, &ethernet) {
                        self.counters.rx_frames += 1;
                        return Some(ready);
                    }
                }
                Err(reason) => self.counters.drop(reason),
            }
        }
    }

    /// The bytes of a frame.
    pub fn frame<'a>(&'a self, ready: &Ready, datagrams: &'a [u8]) -> &'a [u8] {
        match &ready.place {
            Place::Datagram(range) => &datagrams[range.clone()],
            Place::Joiner(bytes) => self.joiner.frame(*bytes),
            Place::Answer => &self.answer,
        }
    }

    /// Switches one datagram: where its frame lies, if it is for the guest.
    fn admit(
        &mut self,
        now: Instant,
        fdb: &Fdb,
        source: SocketAddrV4,
        datagrams: &[u8],
        range: Range<usize>,
    ) -> Result<(Range<usize>, Ethernet), Reason> {
        self.counters.rx_datagrams += 1;
        let (vni, frame) = vxlan::open(&datagrams[range.clone()])?;
        if vni != self.config.vni {
            return Err(Reason::WireOtherLan);
        }
        let ethernet = Ethernet::parse(frame).ok_or(Reason::WireShort)?;
        if ethernet.source == self.config.mac {
            return Err(Reason::WireOwnSource);
        }
        if let Some(endpoint) = fdb.physical_at(*source.ip())
            && fdb.endpoint(ethernet.source).is_none()
            && !self.learned.see(now, ethernet.source, endpoint)
        {
            self.counters.drop(Reason::LearnFull);
        }
        if ethernet.destination != self.config.mac && !ethernet.destination.is_multicast() {
            return Err(Reason::WireOtherStation);
        }
        Ok((range.start + HEADER_BYTES..range.end, ethernet))
    }

    /// Prepares an admitted frame, together with those that follow it in its flow. `None` if it was dropped or is being cut.
    fn make_ready(&mut self, inbound: &mut Inbound, datagrams: &[u8], range: Range<usize>, ethernet: &Ethernet) -> Option<Ready> {
        let frame = &datagrams[range.clone()];
        let ip = Ip::parse(frame, ethernet);
        if frame.len() - ethernet.network > usize::from(self.config.mtu) {
            return self.make_large_ready(datagrams, range, ip);
        }
        let Some(ip) = ip else {
            return Some(Ready { offload: Offload::default(), place: Place::Datagram(range) });
        };
        let checksum = known_checksum(frame, &ip);
        if checksum != Checksum::InFrame && self.joiner.begin(frame, &ip, self.accepts) {
            self.join_following(inbound, datagrams, frame);
            if let Some((bytes, offload)) = self.joiner.finish() {
                return Some(Ready { offload, place: Place::Joiner(bytes) });
            }
        }
        if self.accepts.checksum {
            return Some(Ready { offload: Offload { checksum, segmentation: None }, place: Place::Datagram(range) });
        }
        if matches!(checksum, Checksum::Partial { .. }) {
            // The sum covers the packet and not what pads a short frame.
            let kept = self.joiner.keep(&frame[..ip.end]);
            if complete(kept, checksum).is_err() {
                self.counters.drop(Reason::WireShort);
                return None;
            }
            return Some(Ready { offload: Offload::default(), place: Place::Joiner(ip.end) });
        }
        Some(Ready { offload: Offload::default(), place: Place::Datagram(range) })
    }

    fn join_following(&mut self, inbound: &mut Inbound, datagrams: &[u8], first: &[u8]) {
        // The VXLAN header stands right before the frame: equal headers and equal Ethernet addresses need not be judged again.
        let header = self.config.vni.header();
        while let Some((next, _source)) = inbound.peek() {
            let Some((found, frame)) = datagrams[next].split_first_chunk::<HEADER_BYTES>() else { break };
            if *found != header || !self.joiner.push(first, frame) {
                break;
            }
            inbound.skip();
            self.counters.rx_datagrams += 1;
        }
    }

    /// A frame larger than the MTU did not cross a wire as it is: a Linux vxlan device on the same machine left the cutting to hardware
    /// that is not there. TCP can still be cut; the edges of anything else are lost.
    fn make_large_ready(&mut self, datagrams: &[u8], range: Range<usize>, ip: Option<Ip>) -> Option<Ready> {
        let frame = &datagrams[range.clone()];
        let offload = ip.filter(|ip| ip.plain && ip.end == frame.len()).and_then(|ip| self.large_tcp(frame, &ip));
        let Some((ip, tcp, segmentation)) = offload else {
            self.counters.drop(Reason::WireOversize);
            return None;
        };
        let taken = match segmentation.kind {
            SegmentKind::Tcp4 => self.accepts.tcp4,
            _ => self.accepts.tcp6,
        };
        if taken && (tcp.flags & Tcp::CWR == 0 || self.accepts.ecn) {
            let kept = self.joiner.keep(frame);
            let (checksum, _) = write_large_headers(kept, &ip);
            let offload = Offload { checksum, segmentation: Some(segmentation) };
            return Some(Ready { offload, place: Place::Joiner(range.len()) });
        }
        match Plan::new(frame, &segmentation, usize::from(self.config.mtu)) {
            Ok(plan) => self.cutting = Some((range, plan)),
            Err(_) => self.counters.drop(Reason::WireOversize),
        }
        None
    }

    fn large_tcp(&self, frame: &[u8], ip: &Ip) -> Option<(Ip, Tcp, Segmentation)> {
        let tcp = Tcp::parse(frame, ip).filter(|_| frame.len() <= FRAME_BYTES_MAX)?;
        // A wrong checksum must not become right by being computed again.
        if known_checksum(frame, ip) == Checksum::InFrame {
            return None;
        }
        let segment_bytes = usize::from(self.config.mtu).checked_sub(tcp.payload - ip.network).filter(|bytes| *bytes > 0)?;
        let kind = match ip.version {
            crate::frame::Version::V4 => SegmentKind::Tcp4,
            crate::frame::Version::V6 => SegmentKind::Tcp6,
        };
        let ecn = tcp.flags & Tcp::CWR != 0;
        let segmentation = Segmentation { kind, ecn, header_bytes: tcp.payload as u16, segment_bytes: segment_bytes as u16 };
        Some((*ip, tcp, segmentation))
    }

    /// The next piece of the large frame being cut.
    fn next_cut(&mut self, datagrams: &[u8]) -> Option<Ready> {
        let (range, plan) = self.cutting.as_mut()?;
        let Some(bytes) = plan.next_bytes() else {
            self.cutting = None;
            return None;
        };
        plan.write_next(&datagrams[range.clone()], self.joiner.space(bytes));
        self.counters.rx_frames += 1;
        let checksum = if self.accepts.checksum { Checksum::Valid } else { Checksum::InFrame };
        Some(Ready { offload: Offload { checksum, segmentation: None }, place: Place::Joiner(bytes) })
    }

    // ---- after a move ----

    /// The guest has arrived: announcements are due from now on.
    pub fn announce(&mut self, now: Instant) {
        self.announcing = Some(Announcing { arrived: now, round: 0 });
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.announcing.map(|announcing| announcing.arrived + announce::SCHEDULE[announcing.round])
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, fdb: &Fdb, wire: &mut impl Wire) {
        let Some(announcing) = self.announcing.filter(|_| self.next_deadline().is_some_and(|due| due <= now)) else {
            return;
        };
        for frame in announce::frames(self.config.mac, &self.guest) {
            self.transmit(now, fdb, &Offload::default(), &frame, wire);
        }
        self.flush(wire);
        // Rounds that are late together are one.
        let waited = now.saturating_duration_since(announcing.arrived);
        let left = announce::SCHEDULE.iter().position(|due: &Duration| *due > waited);
        self.announcing = left.map(|round| Announcing { round, ..announcing });
    }

    /// What travels with the guest: its addresses.
    pub fn saved(&self) -> Vec<u8> {
        self.guest.to_bytes()
    }

    /// Takes that back.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), SavedAddressesError> {
        self.guest = GuestAddresses::from_bytes(saved)?;
        Ok(())
    }

    /// The guest's addresses.
    pub fn guest(&self) -> &GuestAddresses {
        &self.guest
    }
}
