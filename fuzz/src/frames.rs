//! A port of a LAN between a guest and a network that both lie, and the relay that a moved guest leaves behind.
//!
//! ```text
//! input = lease:u8 seal:u8 step*   the lowest bits: whether the port tells its guest an address by DHCP, and whether it seals; of the second the
//!                               next ones: whether the guest bridges, whether the other port takes partial checksums, whether it is told whose it is
//! step  = kind:u8 ...            0 frame of the guest with its offload, 1 datagrams, 2 what the driver takes, 3 time passes, 4 FDB entry,
//!                               5 datagrams to the relay, 6 saved addresses come back, 7 the guest moved in here, 8 a record of a port of this host,
//!                               to the port or to the relay
//! bytes of frames and datagrams = length:u16 bytes zeros:u16       so that few bytes make a long frame
//! ```

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use rebec_offload::{Accepts, Checksum, FRAME_BYTES_MAX, Offload, SegmentKind, Segmentation};
use rebec_overlay::{
    FarPort, Fdb, Inbound, Port, PortConfig, Relay, Seals, Wire, Zone,
    batch::{DATAGRAMS_MAX, RUN_BYTES_MAX},
    checksum::Sum,
    groups,
    seal::{Pair, PortSecret, layout::OVERHEAD_BYTES_MAX},
    vxlan::{HEADER_BYTES, Vni},
};
use rebec_vmm_api::{DhcpLease, MacAddr, PortKey};

use crate::input::Input;

const MINE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const THEIRS: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4789);
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 4789);
const PHYSICAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 8472);
const MTU: u16 = 1400;
/// Ethernet with two VLAN tags: what may stand before an IP packet.
const LINK_BYTES_MAX: usize = 22;
const VNI: u32 = 0x12_3456;
/// Steps of one input: enough for any story, few enough for speed.
const STEPS_MAX: usize = 64;

/// All times of all runs are counted from here: only differences matter.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts what goes out and holds it to its limits.
struct Limits {
    datagram_bytes_max: usize,
    /// Of this port and of the one at [`PEER`].
    seals: Option<[Seals; 2]>,
}

impl Wire for Limits {
    fn send(&mut self, to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        assert!(!datagrams.is_empty() && stride > 0);
        assert!(datagrams.len() <= RUN_BYTES_MAX && datagrams.len().div_ceil(stride) <= DATAGRAMS_MAX);
        assert!(stride.min(datagrams.len()) <= self.datagram_bytes_max, "a datagram of {stride} bytes");
        // Whom it knows can open it, once.
        if let Some([own, theirs]) = &mut self.seals
            && own.seal(*START, to, datagrams, stride).is_ok()
        {
            for datagram in datagrams.chunks_mut(stride) {
                let again = &mut datagram.to_vec();
                assert!(theirs.open(datagram).is_ok() && theirs.open(again).is_err());
            }
        }
    }
}

fn vni() -> Vni {
    Vni::new(VNI).expect("24 bits")
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut now = *START;
    let mut fdb = Fdb::default();
    fdb.add(LOCAL, THEIRS, PEER).expect("a sound entry");
    fdb.add_address(THEIRS, Ipv4Addr::new(10, 0, 0, 2)).expect("a sound address");
    let gateway = Some(Ipv4Addr::new(10, 0, 0, 254));
    let lease = (input.u8() & 1 == 1).then(|| DhcpLease::new(Ipv4Addr::new(10, 0, 0, 1), 24, gateway, gateway).expect("a sound lease"));
    let bits = input.u8();
    let sealed = bits & 1 == 1;
    let zone = lease.map(|_| Zone { domain: "office.rebec".into(), label: Some("web".into()) });
    let prefix6 = Some(Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 1, 0, 0, 0, 0));
    let config = PortConfig { lease, sealed, trunk: bits & 2 != 0, zone, prefix6, ..PortConfig::plain(vni(), MINE, MTU) };
    let far = FarPort { station: (bits & 8 != 0).then_some(THEIRS), trunk: bits & 16 != 0, takes_partial: bits & 4 != 0 };
    fdb.add_port(PEER, far).expect("room for one");
    fdb.add_label(THEIRS, "db");
    let mut relay = Relay::new(&PortConfig { sealed: false, ..config.clone() }, PEER, now + Duration::from_secs(5));
    let mut port = Port::new(config, Arc::default());
    let around = if sealed { OVERHEAD_BYTES_MAX } else { 0 };
    let mut wire = Limits { datagram_bytes_max: HEADER_BYTES + LINK_BYTES_MAX + usize::from(MTU) + around, seals: sealed.then(seals) };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match input.u8() % 9 {
            0 => {
                let offload = offload(&mut input);
                port.transmit(now, &fdb, &offload, &bytes(&mut input), &mut wire);
                if input.u8() & 1 == 0 {
                    port.flush(&mut wire);
                    take_answers(&mut port, now, &fdb);
                }
            }
            1 => receive(&mut port, wire.seals.as_mut(), now, &fdb, &mut input),
            2 => port.set_accepts(accepts(input.u8())),
            3 => {
                now += Duration::from_millis(input.u16().into());
                port.tick(now, &fdb, &mut wire);
                assert!(port.next_deadline().is_none_or(|deadline| deadline > now), "a deadline that is over after its tick");
            }
            4 => {
                let station = [MINE, THEIRS, MacAddr([0; 6]), MacAddr([2; 6])][usize::from(input.u8() % 4)];
                let choice = input.u8();
                if choice & 1 == 0 {
                    fdb.add(LOCAL, station, source(input.u8())).ok();
                } else if choice & 2 == 0 {
                    fdb.add_address(station, Ipv4Addr::new(10, 0, 0, input.u8())).ok();
                } else {
                    fdb.remove(station);
                }
            }
            5 => {
                let (from, stride) = (source(input.u8()), usize::from(input.u16()));
                // A relay passes on what it was given.
                let mut wire = Limits { datagram_bytes_max: RUN_BYTES_MAX, seals: None };
                let run = bytes(&mut input);
                relay.handle(now, &fdb, &mut Inbound::new(from, run.len(), stride), &run, &mut wire);
            }
            6 => {
                port.restore(input.piece()).ok();
                let saved = port.saved();
                port.restore(&saved).expect("what was saved is taken back");
                assert_eq!(port.saved(), saved);
            }
            7 => port.announce(now),
            _ => {
                let (from, to_relay, record) = (source(input.u8()), input.u8() & 1 == 1, bytes(&mut input));
                let mut inbound = Inbound::near(from, record.len());
                if to_relay {
                    let mut wire = Limits { datagram_bytes_max: RUN_BYTES_MAX, seals: None };
                    relay.handle(now, &fdb, &mut inbound, &record, &mut wire);
                } else {
                    take_frames(&mut port, now, &fdb, &mut inbound, &record);
                }
            }
        }
    }
    port.flush(&mut wire);
}

/// What this port knows of the other, and the other of this one.
static PAIRS: LazyLock<[(PortKey, Pair); 2]> = LazyLock::new(|| {
    let secrets = [1, 2].map(|byte| PortSecret::new([byte; 32]));
    [0, 1].map(|own| {
        let key = secrets[1 - own].public();
        (key, secrets[own].pair(&key, vni()).expect("a sound key"))
    })
});

fn seals() -> [Seals; 2] {
    let knows = |(key, pair): &(PortKey, Pair), endpoint| {
        let mut seals = Seals::default();
        seals.add(endpoint, *key, pair.clone()).expect("room for one");
        seals
    };
    let [own, theirs] = &*PAIRS;
    [knows(own, PEER), knows(theirs, LOCAL)]
}

/// Datagrams as they come, or, at a sealed port, as its peer seals them; either may be cut, and have a byte changed.
fn receive(port: &mut Port, seals: Option<&mut [Seals; 2]>, now: Instant, fdb: &Fdb, input: &mut Input<'_>) {
    take_answers(port, now, fdb);
    let (from, stride) = (source(input.u8()), usize::from(input.u16()));
    let mut datagrams = bytes(input);
    let mut inbound = Inbound::new(from, datagrams.len(), stride);
    if let Some([own, theirs]) = seals {
        if input.u8() & 1 == 1 {
            datagrams = theirs.sealed(now, LOCAL, &datagrams).expect("the peer's key is known");
            if let Some(byte) = datagrams.get_mut(usize::from(input.u16())) {
                *byte ^= input.u8();
            }
        }
        let stride = if stride == 0 { datagrams.len() } else { stride };
        port.open(own, &mut datagrams, stride, &mut inbound);
    }
    take_frames(port, now, fdb, &mut inbound, &datagrams);
}

fn take_frames(port: &mut Port, now: Instant, fdb: &Fdb, inbound: &mut Inbound, arrived: &[u8]) {
    let mut frames = 0;
    while let Some(ready) = port.next_frame(now, fdb, inbound, arrived) {
        let frame = port.frame(&ready, arrived);
        assert!((14..=FRAME_BYTES_MAX).contains(&frame.len()), "a frame of {} bytes", frame.len());
        if let Checksum::Partial { start, offset } = ready.offload.checksum {
            assert!(usize::from(start) + usize::from(offset) + 2 <= frame.len());
        }
        frames += 1;
        assert!(frames <= arrived.len() + 32, "frames without end");
    }
}

/// Each is a whole frame for the guest that says of itself how long it is.
fn take_answers(port: &mut Port, now: Instant, fdb: &Fdb) {
    while port.has_answer() {
        let ready = port.next_frame(now, fdb, &mut Inbound::empty(), &[]).expect("an answer was promised");
        let frame = port.frame(&ready, &[]).to_vec();
        assert_eq!(ready.offload, Offload::default());
        // A question for groups, which has options: the same each time.
        if groups::questions().contains(&frame) {
            continue;
        }
        match frame[12..14] {
            [8, 6] => assert_eq!((frame.len(), &frame[..6]), (42, &MINE.0[..])),
            [0x86, 0xdd] => {
                let (header, message) = frame[14..].split_at(40);
                assert_eq!(usize::from(u16::from_be_bytes([header[4], header[5]])), message.len());
                let sum = Sum::default().bytes(&header[8..]).word(58).word(message.len() as u16).bytes(message);
                assert!(sum.is_right(), "the checksum of an answer");
            }
            _ => {
                let ip = &frame[14..34];
                assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), frame.len() - 14);
                let sum = Sum::default().bytes(&ip[12..]).word(17).word((frame.len() - 34) as u16).bytes(&frame[34..]);
                assert!(Sum::default().bytes(ip).is_right() && sum.is_right(), "checksums of an answer");
            }
        }
    }
}

fn bytes(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = input.piece().to_vec();
    let zeros = usize::from(input.u16());
    bytes.resize(bytes.len() + zeros, 0);
    bytes.truncate(FRAME_BYTES_MAX + 100);
    bytes
}

fn source(number: u8) -> SocketAddrV4 {
    [PEER, PHYSICAL, LOCAL, SocketAddrV4::new(Ipv4Addr::BROADCAST, 0)][usize::from(number % 4)]
}

fn accepts(bits: u8) -> Accepts {
    Accepts { checksum: bits & 1 != 0, tcp4: bits & 2 != 0, tcp6: bits & 4 != 0, ecn: bits & 8 != 0 }
}

fn offload(input: &mut Input<'_>) -> Offload {
    let choice = input.u8();
    let checksum = match choice & 3 {
        0 => Checksum::InFrame,
        1 => Checksum::Valid,
        _ => Checksum::Partial { start: input.u16(), offset: input.u16() },
    };
    let kind = match choice >> 2 & 3 {
        0 => None,
        1 => Some(SegmentKind::Tcp4),
        2 => Some(SegmentKind::Tcp6),
        _ => Some(SegmentKind::Udp),
    };
    let ecn = choice & 16 != 0;
    let segmentation = kind.map(|kind| Segmentation { kind, ecn, header_bytes: input.u16(), segment_bytes: input.u16() });
    Offload { checksum, segmentation }
}

/// A TSO frame out, its segments in, the same over IPv6, ARP, and the moves of a port.
pub fn seeds() -> Vec<Vec<u8>> {
    let tcp4 =
        hex("525400000002 525400000001 0800 45000030 abcd4000 40067af8 0a000001 0a000002 8001 1f90 00000064 00000009 50 18 0102 1425 0000
         6162636465666768");
    let v6 = hex("86dd 60000000 001c 06 40 fd000000000000000000000000000001 fd000000000000000000000000000002");
    let tcp6 = [&tcp4[..12], &v6, &tcp4[34..]].concat();
    let udp = hex(
        "525400000002 525400000001 0800 4500002c abcd4000 401100cc 0a000001 0a000002 8001 1f90 0018 1425 6162636465666768 6162636465666768",
    );
    let arp = hex("ffffffffffff 525400000001 0806 0001 0800 06 04 0001 525400000001 0a000001 000000000000 0a000002");
    let piece = |bytes: &[u8], zeros: u16| [&(bytes.len() as u16).to_le_bytes()[..], bytes, &zeros.to_le_bytes()].concat();
    let turned = |frame: &[u8]| [&frame[6..12], &frame[..6], &frame[12..]].concat();
    let datagram = |frame: &[u8]| [&vni().header()[..], &turned(frame)].concat();
    // Offload: partial checksum at 34 + 16, TCP over IPv4, header of 54 bytes, segments of 5.
    let tso4 = [0, 2 | 1 << 2, 34, 0, 16, 0, 54, 0, 5, 0];
    let tso6 = [0, 2 | 2 << 2, 54, 0, 16, 0, 74, 0, 100, 0];
    let uso = [0, 2 | 3 << 2, 34, 0, 6, 0, 42, 0, 7, 0];
    let plain = [0, 0];
    let two = [datagram(&tcp4), datagram(&tcp4)].concat();
    let stride = (datagram(&tcp4).len() as u16).to_le_bytes();
    let large = datagram(&tcp4);
    let udp_bytes = 8 + 236 + 4 + 13 + 1;
    let header = [68_u16, 67, udp_bytes, 0].map(u16::to_be_bytes).concat();
    let discover = hex("ffffffffffff 525400000001 0800");
    let discover =
        [&discover[..], &[0x45, 0], &(20 + udp_bytes).to_be_bytes(), &hex("00000000 40110000 00000000 ffffffff"), &header].concat();
    let client = [&hex("010106003903f326")[..], &[0; 20], &MINE.0, &[0; 202]].concat();
    let dhcp = |kind: u8, option: &[u8]| [&discover[..], &client, &hex("63825363"), &[53, 1, kind], option, &[255]].concat();
    let offer = [&plain[..], &piece(&dhcp(1, &hex("3d080152540000000102")), 0), &[0]].concat();
    let accept = [&plain[..], &piece(&dhcp(3, &hex("32040a000001 3602 0001")), 0), &[0]].concat();
    // A question for a name, with 19 bytes of UDP and DNS headers and `db.office.rebec`; solicitations of a neighbour and of a router.
    let question = hex("0001 0100 0001 0000 0000 0000 026462 066f6666696365 057265626563 00 0001 0001");
    let udp_bytes = 8 + question.len() as u16;
    let header = [4000_u16, 53, udp_bytes, 0].map(u16::to_be_bytes).concat();
    let ask = [
        &hex("0200a9fea9fd 525400000001 0800")[..],
        &[0x45, 0],
        &(20 + udp_bytes).to_be_bytes(),
        &hex("00000000 40110000 0a000001 0a0000fe"),
        &header,
        &question,
    ]
    .concat();
    let ask = [&plain[..], &piece(&ask, 0), &[0]].concat();
    let discovery = |message: &[u8]| {
        let header = hex("3333ff000002 525400000001 86dd 60000000");
        let addresses = hex("fe80000000000000505400fffe000001 ff0200000000000000000001ff000002");
        let frame = [&header[..], &(message.len() as u16).to_be_bytes(), &[58, 255], &addresses, message].concat();
        [&plain[..], &piece(&frame, 0), &[0]].concat()
    };
    let steps = vec![
        ask,
        discovery(&hex("87000000 00000000 fe80000000000000505400fffe000002")),
        discovery(&hex("85000000 00000000")),
        discovery(&hex("86000000 00000000 00000000 00000000")),
        offer,
        accept,
        // A report of a group, a multicast to it, and a large frame by the road of one host.
        [
            &plain[..],
            &piece(
                &hex("01005e000016 525400000001 0800 45000024 00004000 01020000 0a000001 e0000016 2200000000000001 02000000ef010203"),
                0,
            ),
            &[0],
        ]
        .concat(),
        [&plain[..], &piece(&hex("01005e010203 525400000001 0800 4500001c 00004000 08110000 0a000001 ef010203 0009000900080000"), 0), &[0]]
            .concat(),
        [&[8, 0, 0][..], &piece(&[&hex("0101 0022 0010 0036 0005")[..], &datagram(&tcp4)].concat(), 0)].concat(),
        [&[8, 0, 1][..], &piece(&[&hex("0101 0022 0010 0036 0005")[..], &datagram(&tcp4)].concat(), 0)].concat(),
        [&tso4[..], &piece(&tcp4, 0), &[0]].concat(),
        [&tso4[..], &piece(&tcp4, 3000), &[1]].concat(),
        [&tso6[..], &piece(&tcp6, 3000), &[0]].concat(),
        [&uso[..], &piece(&udp, 0), &[0]].concat(),
        [&plain[..], &piece(&arp, 18), &[0], &[7, 3, 100, 0]].concat(),
        [&[2, 15, 1, 0][..], &stride, &piece(&two, 0)].concat(),
        [&[1, 1][..], &stride, &piece(&datagram(&udp), 0)].concat(),
        [&[2, 3, 1, 0, 0xff, 0xff][..], &piece(&large, 5000)].concat(),
        [&[1, 0, 0xff, 0xff][..], &piece(&large, 5000)].concat(),
        [&[4, 2, 0, 1, 1, 1][..], &stride, &piece(&datagram(&arp), 18)].concat(),
        [&[5, 0][..], &stride, &piece(&two, 0)].concat(),
        [&plain[..], &piece(&arp, 18), &[0, 6, 0, 0, 7, 3, 0, 1]].concat(),
    ];
    steps.into_iter().map(|steps| [&[1], &steps[..]].concat()).collect()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)).collect()
}
