//! What a port sees of those who speak on a LAN: that each speaks for itself, how much they say, and that looking costs no allocation.

#![expect(clippy::unwrap_used, reason = "a test's own constants")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_offload::{Accepts, Checksum, Offload, SegmentKind, Segmentation};
use rebec_overlay::{
    FarPort, Fdb, Inbound, Port, PortConfig, Reason, Relay, Seals, Talk, Traffic, Wire, checksum::Sum, seal::PortSecret, vxlan::Vni,
};
use rebec_vmm_api::MacAddr;

const ALL: Accepts = Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true };
const PAYLOAD: usize = 10 * 1300;

fn endpoint(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, number), 4700)
}

fn station(number: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 1, number])
}

fn vni() -> Vni {
    Vni::new(42).unwrap()
}

/// One of three sealed ports, each of which knows the others' keys and whose they are.
struct Member {
    port: Port,
    fdb: Fdb,
    seals: Seals,
    talk: Arc<Talk>,
    runs: Vec<(SocketAddrV4, usize, Vec<u8>)>,
}

/// Keeps what is sent, in place of what was there.
struct Outbox<'a> {
    seals: &'a mut Seals,
    runs: &'a mut Vec<(SocketAddrV4, usize, Vec<u8>)>,
    used: usize,
}

impl Wire for Outbox<'_> {
    fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        self.seals.seal(Instant::now(), to, datagrams, stride).unwrap();
        if self.runs.len() == self.used {
            self.runs.push((to, stride, Vec::with_capacity(1 << 16)));
        }
        let (at, length, bytes) = &mut self.runs[self.used];
        (*at, *length) = (to, stride);
        bytes.clear();
        bytes.extend_from_slice(datagrams);
        self.used += 1;
    }
}

impl Member {
    fn new(number: u8) -> Self {
        let secret = |number: u8| PortSecret::new([number; 32]);
        let (mut fdb, mut seals, talk) = (Fdb::default(), Seals::default(), Arc::new(Talk::default()));
        for other in (1..=3).filter(|other| *other != number) {
            fdb.add(endpoint(number), station(other), endpoint(other)).unwrap();
            fdb.add_port(endpoint(other), FarPort { station: Some(station(other)), trunk: false, takes_partial: true }).unwrap();
            let key = secret(other).public();
            seals.add(endpoint(other), key, secret(number).pair(&key, vni()).unwrap()).unwrap();
        }
        let mut port = Port::new(PortConfig { sealed: true, ..PortConfig::plain(vni(), station(number), 1400) }, talk.clone());
        port.set_accepts(ALL);
        Self { port, fdb, seals, talk, runs: Vec::new() }
    }

    /// Sends frames, and says how many runs they became.
    fn send(&mut self, now: Instant, frames: &[(Offload, Vec<u8>)]) -> usize {
        let mut outbox = Outbox { seals: &mut self.seals, runs: &mut self.runs, used: 0 };
        for (offload, frame) in frames {
            self.port.transmit(now, &self.fdb, offload, frame, &mut outbox);
        }
        self.port.flush(&mut outbox);
        outbox.used
    }

    /// Takes a run of datagrams; how many frames the guest got, and how many bytes of them.
    fn receive(&mut self, now: Instant, inbound: &mut Inbound, run: &mut [u8], stride: usize) -> (usize, usize) {
        self.port.open(&mut self.seals, run, stride, inbound);
        let (mut frames, mut bytes) = (0, 0);
        while let Some(ready) = self.port.next_frame(now, &self.fdb, inbound, run) {
            frames += 1;
            bytes += self.port.frame(&ready, run).len();
        }
        (frames, bytes)
    }
}

/// TCP of `payload` bytes from one station to another, to be cut.
fn tcp(from: u8, to: u8, sequence: u32, payload: usize) -> (Offload, Vec<u8>) {
    let mut frame = [&station(to).0[..], &station(from).0, &[8, 0, 0x45, 0]].concat();
    frame.extend(((40 + payload) as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = Sum::default().bytes(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&sum);
    frame.extend([0x80, 1, 0x1f, 0x90]);
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 9, 0x50, 0x10, 1, 2, 0, 0, 0, 0]);
    frame.resize(54 + payload, 7);
    let sum = Sum::default().bytes(&frame[26..34]).word(6).word((20 + payload) as u16).partial();
    frame[50..52].copy_from_slice(&sum);
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, ecn: false, header_bytes: 54, segment_bytes: 1300 };
    (Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: Some(segmentation) }, frame)
}

#[test]
fn a_member_that_speaks_for_another_is_not_heard() {
    let now = Instant::now();
    let (mut hearer, mut liar) = (Member::new(2), Member::new(3));
    // A VMM that was broken into: its port sends what it likes, sealed with its own key.
    liar.port = Port::new(PortConfig { sealed: true, ..PortConfig::plain(vni(), station(1), 1400) }, Arc::default());
    assert_eq!(liar.send(now, &[tcp(1, 2, 0, PAYLOAD)]), 1);
    let (_, stride, mut run) = liar.runs[0].clone();
    let datagrams = run.len().div_ceil(stride) as u64;
    assert_eq!(hearer.receive(now, &mut Inbound::empty(), &mut run, stride), (0, 0));
    assert_eq!(hearer.port.counters().of(Reason::WireSource), datagrams);

    // What goes on where another's frame ended is not joined to it: sealed by two, delivered in one run.
    let mut speaker = Member::new(1);
    speaker.send(now, &[tcp(1, 2, 0, 1300)]);
    let (offload, mut next) = tcp(1, 2, 1300, 1300);
    // The IPv4 identification that follows.
    next[18..20].copy_from_slice(&[0, 2]);
    liar.send(now, &[(offload, next)]);
    let (mut first, second) = (speaker.runs[0].clone(), liar.runs[0].clone());
    assert_eq!(first.1, second.1);
    first.2.extend(&second.2);
    let (_, stride, mut run) = first;
    let mut inbound = Inbound::empty();
    let before = hearer.port.counters().of(Reason::WireSource);
    assert_eq!(hearer.receive(now, &mut inbound, &mut run, stride), (1, 54 + 1300));
    assert_eq!(hearer.port.counters().of(Reason::WireSource), before + 1);
}

/// Counts datagrams.
#[derive(Default)]
struct Count(usize);

impl Wire for Count {
    fn send(&mut self, _to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        self.0 += datagrams.len().div_ceil(stride);
    }
}

#[test]
fn an_old_place_sends_on_only_what_its_sender_may_say() {
    let now = Instant::now();
    let (mut old, mut speaker, mut liar) = (Member::new(2), Member::new(1), Member::new(3));
    liar.port = Port::new(PortConfig { sealed: true, ..PortConfig::plain(vni(), station(1), 1400) }, Arc::default());
    let config = PortConfig { sealed: true, ..PortConfig::plain(vni(), station(2), 1400) };
    let mut relay = Relay::new(&config, endpoint(9), now + Duration::from_secs(5));
    let mut on = Count::default();
    let mut pass = |relay: &mut Relay, member: &mut Member| {
        member.send(now, &[tcp(1, 2, 0, PAYLOAD)]);
        let (_, stride, mut run) = member.runs[0].clone();
        let mut inbound = Inbound::empty();
        relay.open(&mut old.seals, &mut run, stride, &mut inbound);
        relay.handle(now, &old.fdb, &mut inbound, &run, &mut on);
        on.0
    };
    assert_eq!(pass(&mut relay, &mut speaker), 10);
    assert_eq!((pass(&mut relay, &mut liar), relay.counters().of(Reason::WireSource)), (10, 10));
    // The new place believes the old one, whoever spoke.
    let mut there = Member::new(2);
    there.fdb.add_port(endpoint(3), FarPort { station: Some(station(2)), trunk: false, takes_partial: true }).unwrap();
    let (_, stride, mut run) = liar.runs[0].clone();
    assert_eq!(there.receive(now, &mut Inbound::empty(), &mut run, stride).0, 1);
}

#[test]
fn both_ends_count_the_same() {
    let now = Instant::now();
    let (mut sender, mut receiver) = (Member::new(1), Member::new(2));
    let runs = sender.send(now, &[tcp(1, 2, 0, PAYLOAD), tcp(1, 3, 0, 2600)]);
    assert_eq!(runs, 2);
    let (_, stride, mut run) = sender.runs[0].clone();
    let bytes = (54 + PAYLOAD) as u64;
    assert_eq!(receiver.receive(now, &mut Inbound::empty(), &mut run, stride), (1, bytes as usize));
    let of =
        |member: &Member, number: u8| member.talk.read().into_iter().find(|(mac, _)| *mac == station(number)).map(|(_, traffic)| traffic);
    assert_eq!(of(&sender, 2), Some(Traffic { tx_bytes: bytes, tx_packets: 10, ..Traffic::default() }));
    assert_eq!(of(&sender, 3), Some(Traffic { tx_bytes: 54 + 2600, tx_packets: 2, ..Traffic::default() }));
    // Each of the ten had headers of its own.
    assert_eq!(of(&receiver, 1), Some(Traffic { rx_bytes: bytes + 9 * 54, rx_packets: 10, ..Traffic::default() }));
}

#[test]
fn a_frame_costs_no_allocation() {
    let now = Instant::now();
    let (mut sender, mut receiver) = (Member::new(1), Member::new(2));
    let single = |number| {
        let (offload, frame) = tcp(1, 2, number, 1300);
        (Offload { segmentation: None, ..offload }, frame)
    };
    let frames: Vec<_> = (0..20).flat_map(|number| [tcp(1, 2, number * 100_000, PAYLOAD), single(number * 100_000 + 50_000)]).collect();
    let (mut inbound, mut buffer) = (Inbound::empty(), vec![0; 1 << 16]);
    let mut got = 0;
    let mut pass = |sender: &mut Member, receiver: &mut Member| {
        for used in 0..sender.send(now, &frames) {
            let (_, stride, run) = &sender.runs[used];
            let buffer = &mut buffer[..run.len()];
            buffer.copy_from_slice(run);
            got += receiver.receive(now, &mut inbound, buffer, *stride).0;
        }
    };
    // Tables and buffers grow with the first ones.
    pass(&mut sender, &mut receiver);
    let counted = allocation_counter::measure(|| pass(&mut sender, &mut receiver));
    assert_eq!(counted.count_total, 0, "{counted:?}");
    // One that ends in another run than it began comes in two pieces.
    assert!(got >= 2 * frames.len(), "{got}");
    assert_eq!((sender.port.counters().lost(), receiver.port.counters().lost()), (0, 0));
}
