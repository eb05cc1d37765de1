//! A LAN of several ports in one process, over a network that loses, delays and doubles, from a printed seed.
//!
//! `REBEC_SEED=N cargo test -p rebec-overlay --test lan` replays a run. What is checked: a frame reaches exactly the stations it is for, and
//! whole; nothing loops; a TCP stream cut by one port and joined by another is the same stream; a guest that moves keeps being reached.

#![expect(clippy::unwrap_used, reason = "a test's own constants")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, Instant},
};

use rebec_offload::{Accepts, Checksum, Offload, SegmentKind, Segmentation};
use rebec_overlay::{FarPort, Fdb, Inbound, Port, PortConfig, Reason, Relay, Seals, Wire, checksum::Sum, seal::PortSecret, vxlan::Vni};
use rebec_vmm_api::MacAddr;

const ALL: Accepts = Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true };

/// SplitMix64: small, and the same everywhere.
struct Seed(u64);

impl Seed {
    fn from_environment(default: u64) -> Self {
        let seed = std::env::var("REBEC_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        println!("REBEC_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn endpoint(number: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, number), 4700 + u16::from(number))
}

fn station(number: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 1, number])
}

fn config(number: u8, sealed: bool) -> PortConfig {
    PortConfig { sealed, ..PortConfig::plain(Vni::new(42).unwrap(), station(number), 1400) }
}

/// The keys of the port at endpoint `number`, which knows those at 1 to 9.
fn seals(number: u8, sealed: bool) -> Option<Seals> {
    let secret = |number: u8| PortSecret::new([number; 32]);
    let mut seals = Seals::default();
    for other in (1..=9).filter(|other| *other != number) {
        let key = secret(other).public();
        seals.add(endpoint(other), key, secret(number).pair(&key, Vni::new(42).unwrap()).unwrap()).unwrap();
    }
    sealed.then_some(seals)
}

/// What one port put on the wire.
struct Outbox<'a> {
    runs: Vec<(SocketAddrV4, usize, Vec<u8>)>,
    seals: Option<&'a mut Seals>,
}

impl<'a> Outbox<'a> {
    fn of(seals: &'a mut Option<Seals>) -> Self {
        Self { runs: Vec::new(), seals: seals.as_mut() }
    }
}

impl Wire for Outbox<'_> {
    fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        if let Some(seals) = &mut self.seals {
            seals.seal(Instant::now(), to, datagrams, stride).unwrap();
        }
        self.runs.push((to, stride, datagrams.to_vec()));
    }
}

struct Run {
    due: u64,
    from: SocketAddrV4,
    to: SocketAddrV4,
    stride: usize,
    bytes: Vec<u8>,
}

/// A network between endpoints.
struct Network {
    seed: Seed,
    faults: bool,
    now: u64,
    flying: Vec<Run>,
}

impl Network {
    fn take(&mut self, from: SocketAddrV4, outbox: Outbox<'_>) {
        for (to, stride, bytes) in outbox.runs {
            let copies = if !self.faults { 1 } else { [0, 1, 1, 1, 1, 1, 1, 2][self.seed.below(8) as usize] };
            for _ in 0..copies {
                let late = if self.faults && self.seed.below(4) == 0 { self.seed.below(20) } else { 0 };
                self.flying.push(Run { due: self.now + 1 + late, from, to, stride, bytes: bytes.clone() });
            }
        }
    }

    fn arrived(&mut self) -> Vec<Run> {
        self.now += 1;
        let (here, flying) = std::mem::take(&mut self.flying).into_iter().partition(|run| run.due <= self.now);
        self.flying = flying;
        here
    }
}

fn frames_of(port: &mut Port, seals: &mut Option<Seals>, now: Instant, fdb: &Fdb, run: &Run) -> Vec<(Offload, Vec<u8>)> {
    let mut bytes = run.bytes.clone();
    let mut inbound = Inbound::new(run.from, bytes.len(), run.stride);
    if let Some(seals) = seals {
        port.open(seals, &mut bytes, run.stride, &mut inbound);
    }
    let mut frames = Vec::new();
    while let Some(ready) = port.next_frame(now, fdb, &mut inbound, &bytes) {
        frames.push((ready.offload, port.frame(&ready, &bytes).to_vec()));
    }
    frames
}

fn datagram_frame(to: MacAddr, from: MacAddr, number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = [&to.0[..], &from.0, &[0x88, 0xb5], &number.to_be_bytes()].concat();
    frame.resize(18 + bytes, number as u8);
    frame
}

#[test]
fn frames_reach_whom_they_are_for_and_no_one_else() {
    for sealed in [false, true] {
        frames_reach(sealed);
    }
}

fn frames_reach(sealed: bool) {
    let mut network = Network { seed: Seed::from_environment(1), faults: true, now: 0, flying: Vec::new() };
    let start = Instant::now();
    let mut ports: BTreeMap<SocketAddrV4, (u8, Port, Fdb, Option<Seals>)> = (1..=5)
        .map(|number| {
            let mut fdb = Fdb::default();
            for other in (1..=5).filter(|other| *other != number) {
                fdb.add(endpoint(number), station(other), endpoint(other)).unwrap();
            }
            // Port 3 has never heard of port 5's station, only of another behind that endpoint: it floods.
            if number == 3 {
                fdb.remove(station(5));
                fdb.add(endpoint(3), station(77), endpoint(5)).unwrap();
            }
            (endpoint(number), (number, Port::new(config(number, sealed), Arc::default()), fdb, seals(number, sealed)))
        })
        .collect();
    let mut sent: BTreeMap<u32, (u8, Option<u8>, Vec<u8>)> = BTreeMap::new();
    let mut received: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
    for step in 0..3000_u32 {
        if step < 2000 {
            let from = 1 + network.seed.below(5) as u8;
            let to = Some(1 + network.seed.below(6) as u8).filter(|to| *to <= 5);
            let mac = to.map_or(MacAddr::BROADCAST, station);
            let frame = datagram_frame(mac, station(from), step, network.seed.below(1380) as usize);
            let (_, port, fdb, seals) = ports.get_mut(&endpoint(from)).unwrap();
            let mut outbox = Outbox::of(seals);
            port.transmit(start, fdb, &Offload::default(), &frame, &mut outbox);
            if step % 3 == 0 {
                port.flush(&mut outbox);
            }
            network.take(endpoint(from), outbox);
            sent.insert(step, (from, to, frame));
        } else if step == 2000 {
            for (at, (_, port, _, seals)) in &mut ports {
                let mut outbox = Outbox::of(seals);
                port.flush(&mut outbox);
                network.take(*at, outbox);
            }
        }
        for run in network.arrived() {
            let (number, port, fdb, seals) = ports.get_mut(&run.to).unwrap();
            for (offload, frame) in frames_of(port, seals, start, fdb, &run) {
                assert_eq!(offload, Offload::default());
                let step = u32::from_be_bytes(frame[14..18].try_into().unwrap());
                let (from, to, original) = &sent[&step];
                assert_eq!(&frame, original);
                assert!(to.is_none_or(|to| to == *number) && from != number, "frame {step} reached {number}");
                received.entry(*number).or_default().push(step);
            }
        }
    }
    assert!(network.flying.is_empty());
    let unicast_to_others = sent.values().filter(|(from, to, _)| to.is_some_and(|to| to != *from)).count();
    let broadcast = sent.values().filter(|(_, to, _)| to.is_none()).count();
    let reached: usize = received.values().map(|steps| steps.iter().collect::<BTreeSet<_>>().len()).sum();
    let expected = unicast_to_others + 4 * broadcast;
    // One run in eight is lost; runs hold few frames here.
    assert!(reached > expected * 3 / 4 && reached < expected, "{reached} of {expected}");
    let (_, port, ..) = &ports[&endpoint(3)];
    assert!(port.counters().flooded > 0);
    let (_, port, ..) = &ports[&endpoint(1)];
    assert!(port.counters().of(Reason::WireOtherStation) > 0, "unknown unicast was flooded to 1 and dropped there");
    assert_eq!(port.counters().of(Reason::SealReplay) > 0, sealed, "the network doubles");
}

fn large_tcp(to: MacAddr, from: MacAddr, sequence: u32, payload: &[u8]) -> (Offload, Vec<u8>) {
    let mut frame = [&to.0[..], &from.0, &[8, 0, 0x45, 0]].concat();
    frame.extend(((40 + payload.len()) as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = Sum::default().bytes(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&sum);
    frame.extend([0x80, 1, 0x1f, 0x90]);
    frame.extend(sequence.to_be_bytes());
    frame.extend([0, 0, 0, 9, 0x50, 0x10, 1, 2, 0, 0, 0, 0]);
    frame.extend(payload);
    let sum = Sum::default().bytes(&frame[26..34]).word(6).word((20 + payload.len()) as u16).partial();
    frame[50..52].copy_from_slice(&sum);
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, ecn: false, header_bytes: 54, segment_bytes: 1360 };
    (Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: Some(segmentation) }, frame)
}

#[test]
fn a_tcp_stream_arrives_in_large_frames_with_right_checksums() {
    for (sealed, leaves_sums) in [(false, false), (true, false), (true, true)] {
        tcp_stream(sealed, leaves_sums);
    }
}

fn tcp_stream(sealed: bool, leaves_sums: bool) {
    let mut network = Network { seed: Seed::from_environment(2), faults: false, now: 0, flying: Vec::new() };
    let start = Instant::now();
    let (mut sender, mut receiver) = (Port::new(config(1, sealed), Arc::default()), Port::new(config(2, sealed), Arc::default()));
    let (mut seals_of_sender, mut seals_of_receiver) = (seals(1, sealed), seals(2, sealed));
    receiver.set_accepts(ALL);
    let (mut to_receiver, mut to_sender) = (Fdb::default(), Fdb::default());
    to_receiver.add(endpoint(1), station(2), endpoint(2)).unwrap();
    to_receiver.add_port(endpoint(2), FarPort { takes_partial: leaves_sums, ..FarPort::default() }).unwrap();
    to_sender.add(endpoint(2), station(1), endpoint(1)).unwrap();
    let mut stream = Vec::new();
    let mut outbox = Outbox::of(&mut seals_of_sender);
    for _ in 0..200 {
        let bytes = 1 + network.seed.below(65_000) as usize;
        let payload: Vec<u8> = (0..bytes).map(|_| network.seed.next() as u8).collect();
        let (offload, frame) = large_tcp(station(2), station(1), stream.len() as u32, &payload);
        sender.transmit(start, &to_receiver, &offload, &frame, &mut outbox);
        stream.extend(payload);
    }
    sender.flush(&mut outbox);
    network.take(endpoint(1), outbox);
    let (mut joined, mut frames): (Vec<u8>, u64) = (Vec::new(), 0);
    for run in network.arrived() {
        for (offload, frame) in frames_of(&mut receiver, &mut seals_of_receiver, start, &to_sender, &run) {
            let segment_sum = Sum::default().bytes(&frame[26..34]).word(6).word((frame.len() - 34) as u16);
            match offload.checksum {
                Checksum::Valid if !leaves_sums => assert!(segment_sum.bytes(&frame[34..]).is_right()),
                Checksum::Partial { start: 34, offset: 16 } => assert_eq!(frame[50..52], segment_sum.partial()),
                other => panic!("{other:?}"),
            }
            assert_eq!(u32::from_be_bytes(frame[38..42].try_into().unwrap()), joined.len() as u32);
            joined.extend(&frame[54..]);
            frames += 1;
        }
    }
    assert!(joined == stream);
    let datagrams = receiver.counters().rx_datagrams;
    assert!(frames * 8 < datagrams, "{frames} frames for {datagrams} datagrams");
    assert_eq!((sender.counters().lost(), receiver.counters().lost()), (0, 0));
    if leaves_sums {
        // A guest that takes nothing undone gets it done.
        receiver.set_accepts(Accepts::default());
        let (offload, frame) = large_tcp(station(2), station(1), 7, &[9; 3000]);
        let mut outbox = Outbox::of(&mut seals_of_sender);
        sender.transmit(start, &to_receiver, &offload, &frame, &mut outbox);
        let single = Offload { checksum: offload.checksum, segmentation: None };
        sender.transmit(start, &to_receiver, &single, &large_tcp(station(2), station(1), 7, &[9; 300]).1, &mut outbox);
        sender.flush(&mut outbox);
        network.take(endpoint(1), outbox);
        let runs = network.arrived();
        let whole = runs.iter().flat_map(|run| frames_of(&mut receiver, &mut seals_of_receiver, start, &to_sender, run));
        let sums = whole.map(|(offload, frame)| {
            assert_eq!(offload, Offload::default());
            Sum::default().bytes(&frame[26..34]).word(6).word((frame.len() - 34) as u16).bytes(&frame[34..]).is_right()
        });
        assert_eq!(sums.collect::<Vec<_>>(), [true; 4]);
    }
}

#[test]
fn a_guest_that_moves_is_reached_all_the_time() {
    for sealed in [false, true] {
        moves(sealed);
    }
}

fn moves(sealed: bool) {
    let start = Instant::now();
    let mut client = Port::new(config(1, sealed), Arc::default());
    let mut here = Port::new(config(2, sealed), Arc::default());
    let (mut seals_of_client, mut seals_here, mut seals_there) = (seals(1, sealed), seals(2, sealed), seals(9, sealed));
    let mut fdb = Fdb::default();
    fdb.add(endpoint(1), station(2), endpoint(2)).unwrap();
    let mut here_fdb = Fdb::default();
    here_fdb.add(endpoint(2), station(1), endpoint(1)).unwrap();
    // The guest says its address once; it travels with it.
    let arp =
        [&[0xff; 6][..], &station(2).0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &station(2).0, &[10, 0, 0, 2], &[0; 6], &[10, 0, 0, 1]].concat();
    let mut outbox = Outbox::of(&mut seals_here);
    here.transmit(start, &here_fdb, &Offload::default(), &arp, &mut outbox);
    let mut there = Port::new(config(2, sealed), Arc::default());
    there.restore(&here.saved()).unwrap();
    there.announce(start);
    let mut relay = Relay::new(&config(2, sealed), endpoint(9), start + Duration::from_secs(5));
    drop(here);

    let mut say = |client: &mut Port, fdb: &Fdb, number| {
        let mut outbox = Outbox::of(&mut seals_of_client);
        client.transmit(start, fdb, &Offload::default(), &datagram_frame(station(2), station(1), number, 100), &mut outbox);
        client.flush(&mut outbox);
        outbox.runs
    };
    // The client still sends to the old place, which sends on.
    let mut relayed = Vec::new();
    for (to, stride, mut run) in say(&mut client, &fdb, 1) {
        assert_eq!(to, endpoint(2));
        let mut inbound = Inbound::new(endpoint(1), run.len(), stride);
        if let Some(seals) = &mut seals_here {
            relay.open(seals, &mut run, stride, &mut inbound);
        }
        let mut outbox = Outbox::of(&mut seals_here);
        relay.handle(start, &here_fdb, &mut inbound, &run, &mut outbox);
        relayed.extend(outbox.runs);
    }
    let (to, stride, bytes) = relayed.remove(0);
    assert_eq!(to, endpoint(9));
    let run = Run { due: 0, from: endpoint(2), to, stride, bytes };
    assert_eq!(frames_of(&mut there, &mut seals_there, start, &Fdb::default(), &run).len(), 1);

    // Then its control plane hears.
    fdb.add(endpoint(1), station(2), endpoint(9)).unwrap();
    assert_eq!(say(&mut client, &fdb, 2)[0].0, endpoint(9));

    // The new place says where the guest is, in several rounds, then is quiet.
    let mut there_fdb = Fdb::default();
    there_fdb.add(endpoint(9), station(1), endpoint(1)).unwrap();
    let (mut rounds, mut now) = (0, start);
    // What it asks its guest about groups comes later.
    while let Some(due) = there.next_deadline().filter(|due| *due < start + Duration::from_secs(5)) {
        now = now.max(due);
        let mut outbox = Outbox::of(&mut seals_there);
        there.tick(now, &there_fdb, &mut outbox);
        let mut heard = Vec::new();
        for (to, stride, bytes) in outbox.runs {
            let run = Run { due: 0, from: endpoint(9), to, stride, bytes };
            heard.extend(frames_of(&mut client, &mut seals_of_client, now, &fdb, &run));
        }
        assert_eq!(heard.len(), 2, "both forms of gratuitous ARP");
        assert!(heard.iter().all(|(_, frame)| frame[28..32] == [10, 0, 0, 2]));
        rounds += 1;
    }
    assert_eq!((rounds, now - start), (4, Duration::from_millis(600)));
}

#[test]
fn only_physical_machines_teach_and_never_against_the_control_plane() {
    let start = Instant::now();
    let mut port = Port::new(config(1, false), Arc::default());
    let mut fdb = Fdb::default();
    fdb.add(endpoint(1), MacAddr([0; 6]), endpoint(7)).unwrap();
    fdb.add(endpoint(1), station(2), endpoint(2)).unwrap();
    fdb.add(endpoint(1), station(3), endpoint(3)).unwrap();
    let hear = |port: &mut Port, fdb: &Fdb, from: SocketAddrV4, source: MacAddr| {
        let frame = datagram_frame(station(1), source, 1, 50);
        let bytes = [&Vni::new(42).unwrap().header()[..], &frame].concat();
        assert_eq!(frames_of(port, &mut None, start, fdb, &Run { due: 0, from, to: endpoint(1), stride: bytes.len(), bytes }).len(), 1);
    };
    let goes_to = |port: &mut Port, fdb: &Fdb, now, station: MacAddr| {
        let mut outbox = Outbox { runs: Vec::new(), seals: None };
        port.transmit(now, fdb, &Offload::default(), &datagram_frame(station, MacAddr([0x52, 0x54, 0, 0, 1, 1]), 1, 50), &mut outbox);
        port.flush(&mut outbox);
        outbox.runs.into_iter().map(|(to, ..)| to).collect::<Vec<_>>()
    };
    // A Linux vxlan device sends from any port.
    hear(&mut port, &fdb, SocketAddrV4::new(*endpoint(7).ip(), 33_333), station(70));
    hear(&mut port, &fdb, SocketAddrV4::new(*endpoint(7).ip(), 33_333), station(2));
    hear(&mut port, &fdb, endpoint(3), station(71));
    assert_eq!(goes_to(&mut port, &fdb, start, station(70)), [endpoint(7)]);
    assert_eq!(goes_to(&mut port, &fdb, start, station(2)), [endpoint(2)]);
    let everyone = [endpoint(7), endpoint(2), endpoint(3)];
    assert_eq!(goes_to(&mut port, &fdb, start, station(71)), everyone);
    assert_eq!(goes_to(&mut port, &fdb, start + Duration::from_secs(300), station(70)), everyone);
    // What the control plane knew was not learnt beside it.
    fdb.remove(station(2));
    assert_eq!(goes_to(&mut port, &fdb, start, station(2)), [endpoint(7), endpoint(3)]);
    fdb.add(endpoint(1), station(70), endpoint(3)).unwrap();
    assert_eq!(goes_to(&mut port, &fdb, start, station(70)), [endpoint(3)]);
}

/// A wire whose every endpoint is of this host.
#[derive(Default)]
struct Host {
    near: Vec<(SocketAddrV4, Vec<u8>)>,
    far: usize,
    is_cut: bool,
}

impl Wire for Host {
    fn send(&mut self, _to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        self.far += datagrams.len().div_ceil(stride);
    }

    fn is_near(&mut self, _to: SocketAddrV4) -> bool {
        true
    }

    fn send_near(&mut self, to: SocketAddrV4, head: &[u8], frame: &[u8]) -> bool {
        if !self.is_cut {
            self.near.push((to, [head, frame].concat()));
        }
        !self.is_cut
    }
}

fn taken(port: &mut Port, fdb: &Fdb, now: Instant, from: SocketAddrV4, record: &[u8]) -> Vec<(Offload, Vec<u8>)> {
    let mut inbound = Inbound::near(from, record.len());
    let mut frames = vec![];
    while let Some(ready) = port.next_frame(now, fdb, &mut inbound, record) {
        frames.push((ready.offload, port.frame(&ready, record).to_vec()));
    }
    frames
}

#[test]
fn ports_of_one_host_pass_frames_as_they_are_and_judge_them_all_the_same() {
    let now = Instant::now();
    let sender = || Port::new(config(1, true), Arc::default());
    let (mut here, mut there) = (sender(), Port::new(config(2, true), Arc::default()));
    let mut fdb = Fdb::default();
    fdb.add(endpoint(1), station(2), endpoint(2)).unwrap();
    let mut there_fdb = Fdb::default();
    there_fdb.add(endpoint(2), station(1), endpoint(1)).unwrap();
    there_fdb.add_port(endpoint(1), FarPort { station: Some(station(1)), trunk: false, takes_partial: true }).unwrap();
    let (offload, frame) = large_frame(station(2), station(1), 5000);
    let mut host = Host::default();
    here.transmit(now, &fdb, &offload, &frame, &mut host);
    here.flush(&mut host);
    assert_eq!((host.near.len(), host.near[0].0, host.far), (1, endpoint(2), 0));
    let record = host.near.remove(0).1;

    // Whole for a guest that takes it so, and cut for one that does not.
    there.set_accepts(Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true });
    assert_eq!(taken(&mut there, &there_fdb, now, endpoint(1), &record), [(offload, frame.clone())]);
    there.set_accepts(Accepts::default());
    let pieces = taken(&mut there, &there_fdb, now, endpoint(1), &record);
    assert!(
        pieces.len() == 4 && pieces.iter().all(|(offload, piece)| *offload == Offload::default() && piece.len() <= 1414),
        "{}",
        pieces.len()
    );

    // Who speaks is known by the road: not as another station, not of another LAN, and not what does not fit.
    assert_eq!(taken(&mut there, &there_fdb, now, endpoint(3), &record), []);
    assert_eq!(there.counters().of(Reason::WireSource), 1);
    let changed = |at: usize, byte: u8| {
        let mut record = record.clone();
        record[at] = byte;
        record
    };
    for (wrong, reason) in [
        (changed(16, 9), Reason::WireOtherLan),
        (changed(0, 9), Reason::WireShort),
        (changed(3, 1), Reason::WireOffload),
        (changed(9, 0xff), Reason::WireOffload),
        (record[..12].to_vec(), Reason::WireShort),
    ] {
        let before = there.counters().of(reason);
        assert_eq!(taken(&mut there, &there_fdb, now, endpoint(1), &wrong), []);
        assert_eq!(there.counters().of(reason), before + 1, "{reason:?}");
    }

    // Where the road has ended the network is taken, at once.
    host.is_cut = true;
    here.transmit(now, &fdb, &offload, &frame, &mut host);
    here.flush(&mut host);
    assert_eq!(host.far, 4);

    // The old place of a guest that moved cuts what it sends on.
    let mut relay = Relay::new(&config(2, true), endpoint(9), now + Duration::from_secs(5));
    let mut wire = Host::default();
    relay.handle(now, &there_fdb, &mut Inbound::near(endpoint(1), record.len()), &record, &mut wire);
    assert_eq!((wire.far, relay.counters().relayed), (4, 1));
}

#[test]
fn a_multicast_is_sent_to_whoever_asked_for_its_group() {
    let start = Instant::now();
    let mut fdb = Fdb::default();
    (2..=3).for_each(|number| fdb.add(endpoint(1), station(number), endpoint(number)).unwrap());
    let mut port = Port::new(config(1, false), Arc::default());
    let mut others: Vec<_> = (2..=3_u8).map(|number| Port::new(config(number, false), Arc::default())).collect();
    let packet = [0x45, 0, 0, 28, 0, 0, 0, 0, 8, 17, 0, 0, 10, 0, 0, 1, 239, 1, 2, 3, 0, 9, 0, 9, 0, 8, 0, 0];
    let group = [&[1, 0, 0x5e, 1, 2, 3][..], &station(1).0, &[8, 0], &packet].concat();
    let mut now = start;
    // Each port speaks for its guest, and the guest of the third asks for the group.
    for _ in 0..3 {
        let mut outbox = Outbox { runs: Vec::new(), seals: None };
        port.transmit(now, &fdb, &Offload::default(), &group, &mut outbox);
        port.flush(&mut outbox);
        assert_eq!(outbox.runs.iter().map(|(to, ..)| *to).collect::<Vec<_>>(), [endpoint(2), endpoint(3)], "{:?}", now - start);
        for (number, other) in (2..).zip(&mut others) {
            let mut others_fdb = Fdb::default();
            others_fdb.add(endpoint(number), station(1), endpoint(1)).unwrap();
            let mut outbox = Outbox { runs: Vec::new(), seals: None };
            let hello = datagram_frame(station(1), station(number), 1, 50);
            other.transmit(now, &others_fdb, &Offload::default(), &hello, &mut outbox);
            other.tick(other.next_deadline().unwrap(), &others_fdb, &mut outbox);
            if number == 3 {
                let report = [
                    &[1, 0, 0x5e, 0, 0, 22][..],
                    &station(3).0,
                    &[8, 0, 0x45, 0, 0, 36, 0, 0, 0x40, 0, 1, 2, 0, 0, 10, 0, 0, 3, 224, 0, 0, 22],
                ]
                .concat();
                let report = [&report[..], &[0x22, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 239, 1, 2, 3]].concat();
                other.transmit(now, &others_fdb, &Offload::default(), &report, &mut outbox);
            }
            other.flush(&mut outbox);
            assert!(other.has_answer(), "its guest is asked");
            while other.has_answer() {
                assert!(other.next_frame(now, &others_fdb, &mut Inbound::empty(), &[]).is_some());
            }
            for (_, stride, bytes) in outbox.runs {
                frames_of(&mut port, &mut None, now, &fdb, &Run { due: 0, from: endpoint(number), to: endpoint(1), stride, bytes });
            }
        }
        now += Duration::from_secs(125);
    }
    let mut outbox = Outbox { runs: Vec::new(), seals: None };
    port.transmit(now, &fdb, &Offload::default(), &group, &mut outbox);
    port.flush(&mut outbox);
    assert_eq!(outbox.runs.iter().map(|(to, ..)| *to).collect::<Vec<_>>(), [endpoint(3)]);
    assert_eq!(port.counters().spared, 1);
}

/// A TSO frame, with the sum of its pseudo header.
fn large_frame(to: MacAddr, from: MacAddr, payload: usize) -> (Offload, Vec<u8>) {
    let total = (40 + payload) as u16;
    let mut frame =
        [&to.0[..], &from.0, &[8, 0, 0x45, 0], &total.to_be_bytes(), &[0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, from.0[5], 10, 0, 0, to.0[5]]]
            .concat();
    let sum = Sum::default().bytes(&frame[14..]).finish();
    frame[24..26].copy_from_slice(&sum);
    let pseudo = Sum::default().bytes(&frame[26..34]).word(6).word(20 + payload as u16).partial();
    frame.extend([0x80, 1, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x10, 1, 2]);
    frame.extend(pseudo);
    frame.extend([0; 2]);
    frame.extend((0..payload).map(|at| at as u8));
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, ecn: false, header_bytes: 54, segment_bytes: 1360 };
    (Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: Some(segmentation) }, frame)
}
