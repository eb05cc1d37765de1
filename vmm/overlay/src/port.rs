//! The switch of one port: decides what becomes of each frame of its guest and of each datagram of the others.
//!
//! ```text
//! from the guest    may it? -> a question that is answered here? -> known station: its endpoint | group: who asked for it | unknown: every endpoint, if not too often
//!                   -> a port of this host: as it is | else: cut, complete, batch
//! from the network  our LAN? may its sender? for the guest or for all? not our own voice? -> learn (physical machines and trunks only) -> join -> the guest
//! ```
//!
//! Split horizon: what came from the overlay never goes back into it.

mod arrive;

use std::{
    collections::VecDeque,
    net::SocketAddrV4,
    ops::Range,
    slice,
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_offload::{Accepts, Checksum, FRAME_BYTES_MAX, FrameBytes, Offload, SegmentKind, Segmentation};
use rebec_vmm_api::MacAddr;

use crate::{
    addresses::{GuestAddresses, SavedAddressesError},
    announce,
    batch::{Batch, Wire},
    config::PortConfig,
    counters::{Counters, Reason},
    fdb::{Fdb, Learned},
    frame::{Ethernet, Ip, Tcp, Version},
    groups::{self, Groups},
    guard,
    inbound::Inbound,
    join::{Joiner, known_checksum},
    local::{self, Local},
    near::{self, is_usual},
    seal::Seals,
    segment::{Plan, complete},
    storm::{Flood, Storms},
    talk::Talk,
    vxlan::{self, HEADER_BYTES},
};

/// Answers that wait for the guest to take them: more than any system asks at once.
const ANSWERS_MAX: usize = 16;

/// How long after a guest came datagrams of its old place may still be under way: that one sends on for five seconds.
const LATE_TIME: Duration = Duration::from_secs(10);

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
    Joiner,
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
    storms: Storms,
    groups: Groups,
    /// Whom a frame for several goes to: those beyond a network, and those that asked.
    far: Vec<SocketAddrV4>,
    takers: Vec<SocketAddrV4>,
    /// When the guest came here from another place: that one still sends on what it gets.
    arrived: Option<Instant>,
    counters: Counters,
    talk: Arc<Talk>,
}

impl Port {
    /// A port that knows nothing yet, and counts who talks to whom in `talk`.
    pub fn new(config: PortConfig, talk: Arc<Talk>) -> Self {
        Self {
            batch: Batch::new(config.sealed),
            joiner: Joiner::new(config.sealed),
            config,
            accepts: Accepts::default(),
            learned: Learned::default(),
            guest: GuestAddresses::default(),
            announcing: None,
            cutting: None,
            answers: VecDeque::new(),
            answer: Vec::new(),
            storms: Storms::default(),
            groups: Groups::default(),
            far: Vec::new(),
            takers: Vec::new(),
            arrived: None,
            counters: Counters::default(),
            talk,
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
        guard::leaving(&self.config, fdb, frame, &ethernet)?;
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
            Local::Malformed(reason) => return Err(reason),
        }
        self.groups.begin(now);
        let known = fdb.endpoint(ethernet.destination).or_else(|| self.learned.endpoint(now, ethernet.destination));
        match &known {
            Some(endpoint) => self.send_to(&ethernet, offload, frame, slice::from_ref(endpoint), fdb.port(*endpoint).takes_partial, wire),
            None => self.send_to_all(now, fdb, &ethernet, offload, frame, wire),
        }
    }

    /// Sends what is for a group, or for a station that nobody knows, to whoever is to have it.
    fn send_to_all(
        &mut self,
        now: Instant,
        fdb: &Fdb,
        ethernet: &Ethernet,
        offload: &Offload,
        frame: &[u8],
        wire: &mut impl Wire,
    ) -> Result<(), Reason> {
        if fdb.flood().is_empty() {
            return Err(Reason::NoPeer);
        }
        let mut takers = std::mem::take(&mut self.takers);
        takers.clear();
        match groups::group_of(frame, ethernet) {
            Some(group) => self.groups.takers(now, fdb, group, &mut takers),
            None => takers.extend_from_slice(fdb.flood()),
        }
        self.counters.spared += (fdb.flood().len() - takers.len()) as u64;
        let flood = match ethernet.destination {
            MacAddr::BROADCAST => Flood::Broadcast,
            group if group.is_multicast() => Flood::Multicast,
            _ => Flood::Unknown,
        };
        let sent = self
            .storms
            .take(now, flood, takers.len() * frame.len().div_ceil(self.config.mtu.into()))
            .and_then(|()| self.send_to(ethernet, offload, frame, &takers, false, wire));
        self.takers = takers;
        sent?;
        self.counters.flooded += 1;
        self.counters.drop_many(Reason::FloodCut, fdb.flood_cut() as u64);
        Ok(())
    }

    /// Sends a frame to ports of this host as it is, and to others as datagrams, once for all of them.
    fn send_to(
        &mut self,
        ethernet: &Ethernet,
        offload: &Offload,
        frame: &[u8],
        to: &[SocketAddrV4],
        takes_partial: bool,
        wire: &mut impl Wire,
    ) -> Result<(), Reason> {
        let mut far = std::mem::take(&mut self.far);
        far.clear();
        let mut near = 0;
        if to.iter().any(|to| wire.is_near(*to))
            && let Some(head) = near::head(self.config.vni, offload, frame, ethernet)
        {
            // The other end would ask the same.
            let packets = near::plan(frame, ethernet, offload, self.config.mtu.into()).map(|plan| plan.map_or(1, |plan| plan.segments()));
            let packets =
                packets.map_err(|reason| if reason == Reason::WireOversize { Reason::GuestOversize } else { Reason::GuestOffload });
            let Ok(packets) = packets else {
                self.far = far;
                return packets.map(drop);
            };
            for to in to {
                let is_sent = wire.is_near(*to) && wire.send_near(*to, &head, frame);
                if is_sent { near += 1 } else { far.push(*to) }
            }
            if near > 0 {
                self.counters.near += near;
                self.talk.sent(ethernet.destination, frame.len() as u64, packets as u64);
            }
        } else {
            far.extend_from_slice(to);
        }
        let sent = if far.is_empty() { Ok(()) } else { self.send_far(ethernet, offload, frame, &far, takes_partial, near > 0, wire) };
        self.far = far;
        sent
    }

    /// Over the network; `counted` where who talks to whom is counted already.
    #[expect(clippy::too_many_arguments, reason = "the frame, its views and its way out are one thing each")]
    fn send_far(
        &mut self,
        ethernet: &Ethernet,
        offload: &Offload,
        frame: &[u8],
        to: &[SocketAddrV4],
        takes_partial: bool,
        counted: bool,
        wire: &mut impl Wire,
    ) -> Result<(), Reason> {
        // Copies of a flood are one run for all.
        let leaves_sums = self.config.sealed && takes_partial;
        let before = self.batch.sent();
        self.put_on_wire(ethernet, offload, frame, to, leaves_sums, wire)?;
        if !counted {
            self.talk.sent(ethernet.destination, frame.len() as u64, (self.batch.sent() - before) / to.len() as u64);
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
        leaves_sums: bool,
        wire: &mut impl Wire,
    ) -> Result<(), Reason> {
        let header = self.config.vni.header();
        if let Some(segmentation) = &offload.segmentation {
            let mut plan = Plan::new(frame, segmentation, usize::from(self.config.mtu))?;
            if leaves_sums {
                plan.leave_sums(frame);
            }
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
        if leaves_sums && is_usual(frame, ethernet, offload.checksum) {
            return Ok(());
        }
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
            if let Some((bytes, source)) = inbound.take_near() {
                if let Some(ready) = self.next_near(now, fdb, source, datagrams, bytes) {
                    self.counters.rx_frames += 1;
                    return Some(ready);
                }
                continue;
            }
            let (range, source) = inbound.peek()?;
            inbound.skip();
            match self.admit(now, fdb, source, datagrams, range) {
                Ok((range, ethernet)) => {
                    if let Some(ready) = self.make_ready(inbound, datagrams, source, range, &ethernet) {
                        self.counters.rx_frames += 1;
                        return Some(ready);
                    }
                }
                Err(reason) => self.counters.drop(reason),
            }
        }
    }

    /// The bytes of a frame.
    pub fn frame<'a>(&'a self, ready: &Ready, datagrams: &'a [u8]) -> FrameBytes<'a> {
        match &ready.place {
            Place::Datagram(range) => FrameBytes::whole(&datagrams[range.clone()]),
            Place::Joiner => self.joiner.frame(datagrams),
            Place::Answer => FrameBytes::whole(&self.answer),
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
        // Who has just come gets from its old place, wherever that is, what others still send there.
        let just_came = || self.arrived.is_some_and(|arrived| now.saturating_duration_since(arrived) < LATE_TIME);
        match guard::arriving(&self.config, fdb, source, frame, &ethernet) {
            Err(Reason::WireSource) if !self.config.sealed && just_came() => {}
            judged => judged?,
        }
        if let Some(endpoint) = self.teacher(fdb, source)
            && fdb.endpoint(ethernet.source).is_none()
            && !self.learned.see(now, ethernet.source, endpoint)
        {
            self.counters.drop(Reason::LearnFull);
        }
        let for_this = ethernet.destination == self.config.mac || ethernet.destination.is_multicast();
        if !for_this && (!self.config.trunk || fdb.endpoint(ethernet.destination).is_some()) {
            return Err(Reason::WireOtherStation);
        }
        self.groups.heard(now, source, frame, &ethernet);
        self.talk.received(ethernet.source, frame.len() as u64, 1);
        Ok((range.start + HEADER_BYTES..range.end, ethernet))
    }

    /// The endpoint behind which stations live that frames from `source` teach.
    fn teacher(&self, fdb: &Fdb, source: SocketAddrV4) -> Option<SocketAddrV4> {
        let is_trunk = self.config.sealed && fdb.port(source).trunk;
        if is_trunk { Some(source) } else { fdb.physical_at(*source.ip()) }
    }

    /// Prepares an admitted frame, together with those that follow it in its flow. `None` if it was dropped or is being cut.
    fn make_ready(
        &mut self,
        inbound: &mut Inbound,
        datagrams: &[u8],
        sender: SocketAddrV4,
        range: Range<usize>,
        ethernet: &Ethernet,
    ) -> Option<Ready> {
        let frame = &datagrams[range.clone()];
        let ip = Ip::parse(frame, ethernet);
        if frame.len() - ethernet.network > usize::from(self.config.mtu) {
            return self.make_large_ready(datagrams, range, ip);
        }
        let Some(ip) = ip else {
            return Some(Ready { offload: Offload::default(), place: Place::Datagram(range) });
        };
        let checksum = known_checksum(frame, &ip, self.config.sealed);
        if checksum != Checksum::InFrame && self.joiner.begin(frame, &ip, self.accepts) {
            self.join_following(inbound, datagrams, range.clone(), sender, ethernet.source);
            if let Some(offload) = self.joiner.finish() {
                return Some(Ready { offload, place: Place::Joiner });
            }
        }
        if self.accepts.checksum {
            return Some(Ready { offload: Offload { checksum, segmentation: None }, place: Place::Datagram(range) });
        }
        if matches!(checksum, Checksum::Partial { .. }) {
            return self.completed(frame, ip.end, checksum);
        }
        Some(Ready { offload: Offload::default(), place: Place::Datagram(range) })
    }

    fn join_following(&mut self, inbound: &mut Inbound, datagrams: &[u8], first_at: Range<usize>, sender: SocketAddrV4, station: MacAddr) {
        let first = (&datagrams[first_at.clone()], first_at.start);
        // The VXLAN header stands right before the frame: the same header, sender and addresses need not be judged again.
        let header = self.config.vni.header();
        let (mut bytes, mut packets) = (0, 0);
        while let Some((next, source)) = inbound.peek() {
            let at = next.start + HEADER_BYTES;
            let Some((found, frame)) = datagrams[next].split_first_chunk::<HEADER_BYTES>() else { break };
            if *found != header || source != sender || !self.joiner.push(first, (frame, at)) {
                break;
            }
            inbound.skip();
            (bytes, packets) = (bytes + frame.len() as u64, packets + 1);
        }
        self.counters.rx_datagrams += packets;
        self.talk.received(station, bytes, packets);
    }

    /// A frame larger than the MTU did not cross a wire as it is: a Linux vxlan device on the same machine left the cutting to hardware
    /// that is not there. TCP can still be cut; the edges of anything else are lost.
    fn make_large_ready(&mut self, datagrams: &[u8], range: Range<usize>, ip: Option<Ip>) -> Option<Ready> {
        let frame = &datagrams[range.clone()];
        let offload = ip.filter(|ip| ip.plain && ip.end == frame.len()).and_then(|ip| self.large_tcp(frame, &ip));
        let planned = offload.and_then(|segmentation| {
            let undone = Offload { checksum: Checksum::InFrame, segmentation: Some(segmentation) };
            Some((undone, Plan::new(frame, &segmentation, usize::from(self.config.mtu)).ok()?))
        });
        let Some((undone, plan)) = planned else {
            self.counters.drop(Reason::WireOversize);
            return None;
        };
        self.large_ready(frame, range, &undone, plan)
    }

    fn large_tcp(&self, frame: &[u8], ip: &Ip) -> Option<Segmentation> {
        let tcp = Tcp::parse(frame, ip).filter(|_| frame.len() <= FRAME_BYTES_MAX)?;
        // A wrong checksum must not become right by being computed again.
        if known_checksum(frame, ip, self.config.sealed) == Checksum::InFrame {
            return None;
        }
        let segment_bytes = usize::from(self.config.mtu).checked_sub(tcp.payload - ip.network).filter(|bytes| *bytes > 0)?;
        let kind = match ip.version {
            Version::V4 => SegmentKind::Tcp4,
            Version::V6 => SegmentKind::Tcp6,
        };
        let ecn = tcp.flags & Tcp::CWR != 0;
        Some(Segmentation { kind, ecn, header_bytes: tcp.payload as u16, segment_bytes: segment_bytes as u16 })
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
        Some(Ready { offload: Offload { checksum, segmentation: None }, place: Place::Joiner })
    }

    // ---- after a move ----

    /// The guest has arrived: announcements are due from now on.
    pub fn announce(&mut self, now: Instant) {
        self.arrived = Some(now);
        self.groups.arrive(now);
        self.announcing = Some(Announcing { arrived: now, round: 0 });
    }

    /// When [`Self::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let announcing = self.announcing.map(|announcing| announcing.arrived + announce::SCHEDULE[announcing.round]);
        announcing.into_iter().chain(self.groups.next_query()).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, fdb: &Fdb, wire: &mut impl Wire) {
        if self.groups.is_due(now) {
            // One that finds no room is asked again in its time.
            let questions = groups::questions().into_iter().take(ANSWERS_MAX - self.answers.len());
            self.answers.extend(questions);
            for report in groups::reports(self.config.mac) {
                self.transmit(now, fdb, &Offload::default(), &report, wire);
            }
            self.flush(wire);
        }
        self.announce_due(now, fdb, wire);
    }

    fn announce_due(&mut self, now: Instant, fdb: &Fdb, wire: &mut impl Wire) {
        let due = |announcing: &Announcing| announcing.arrived + announce::SCHEDULE[announcing.round] <= now;
        let Some(announcing) = self.announcing.filter(due) else {
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
