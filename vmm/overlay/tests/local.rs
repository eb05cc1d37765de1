//! What a port answers itself: DHCP and ARP, with golden bytes, from the right port only, and whatever is asked.

#![expect(clippy::unwrap_used, reason = "a test's own constants")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Instant,
};

use proptest::prelude::*;
use rebec_offload::{Checksum, Offload};
use rebec_overlay::{
    Fdb, FdbError, Inbound, Port, PortConfig, Reason, Wire, Zone,
    checksum::Sum,
    dhcp::{SERVER, SERVER_MAC},
    fdb::ANY_STATION,
    storm::COPIES_MAX,
    vxlan::Vni,
};
use rebec_vmm_api::{DhcpLease, MacAddr};

const MINE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const THEIRS: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4789);
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 4789);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 9);
const DNS: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

#[derive(Default)]
struct Sent(usize);

impl Wire for Sent {
    fn send(&mut self, _to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        self.0 += datagrams.len().div_ceil(stride);
    }
}

/// A port, who else is on its LAN, and how many datagrams it has sent.
struct Guest {
    port: Port,
    fdb: Fdb,
    sent: Sent,
}

impl Guest {
    fn new(lease: Option<DhcpLease>) -> Self {
        let mut fdb = Fdb::default();
        fdb.add(LOCAL, THEIRS, PEER).unwrap();
        fdb.add_address(THEIRS, NEIGHBOUR).unwrap();
        let port = Port::new(PortConfig { lease, ..PortConfig::plain(Vni::new(7).unwrap(), MINE, 1400) }, Arc::default());
        Self { port, fdb, sent: Sent::default() }
    }

    fn with_lease() -> Self {
        Self::new(Some(DhcpLease::new(ADDRESS, 24, Some(GATEWAY), Some(DNS)).unwrap()))
    }

    fn send(&mut self, frame: &[u8]) {
        self.port.transmit(Instant::now(), &self.fdb, &Offload::default(), frame, &mut self.sent);
        self.port.flush(&mut self.sent);
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let ready = self.port.next_frame(Instant::now(), &self.fdb, &mut Inbound::empty(), &[])?;
        assert_eq!(ready.offload, Offload::default());
        Some(self.port.frame(&ready, &[]).to_vec())
    }

    /// Asks by DHCP; the answer, taken apart.
    fn ask(&mut self, message: &[u8]) -> Option<Answer> {
        self.send(&dhcp_frame(message));
        let frame = self.receive()?;
        assert!(self.receive().is_none() && self.sent.0 == 0, "one answer, and nothing leaves the port");
        Some(Answer::take_apart(&frame))
    }
}

/// A client's message up to its options: transaction 3903f326, flags 0, hardware address ours.
fn message(kind: u8, current: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 236];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[4..8].copy_from_slice(&[0x39, 3, 0xf3, 0x26]);
    message[12..16].copy_from_slice(&current.octets());
    message[28..34].copy_from_slice(&MINE.0);
    message[44..48].copy_from_slice(b"name");
    message.extend([99, 130, 83, 99, 53, 1, kind]);
    message.extend(options);
    message.push(255);
    message
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn requested(address: Ipv4Addr) -> Vec<u8> {
    [&[50, 4][..], &address.octets()].concat()
}

fn server(address: Ipv4Addr) -> Vec<u8> {
    [&[54, 4][..], &address.octets()].concat()
}

/// As a client sends it that has no address, its UDP checksum left to be completed.
fn dhcp_frame(message: &[u8]) -> Vec<u8> {
    let udp_bytes = (8 + message.len()) as u16;
    let udp = [68_u16, 67, udp_bytes, 0x1234].map(u16::to_be_bytes).concat();
    let ip = [&[0x45, 0][..], &(20 + udp_bytes).to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]].concat();
    [&MacAddr::BROADCAST.0[..], &MINE.0, &[8, 0], &ip, &udp, message].concat()
}

#[derive(Debug)]
struct Answer {
    station: MacAddr,
    to: Ipv4Addr,
    kind: u8,
    given: Ipv4Addr,
    current: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Answer {
    /// Holds every length and checksum against the bytes.
    fn take_apart(frame: &[u8]) -> Self {
        assert_eq!(frame[6..14], [&SERVER_MAC.0[..], &[8, 0]].concat());
        let ip = &frame[14..34];
        assert_eq!((ip[0], usize::from(u16::from_be_bytes([ip[2], ip[3]]))), (0x45, frame.len() - 14));
        assert!(Sum::default().bytes(ip).is_right());
        let udp = &frame[34..];
        assert_eq!((&udp[..4], usize::from(u16::from_be_bytes([udp[4], udp[5]]))), (&[0, 67, 0, 68][..], udp.len()));
        assert!(Sum::default().bytes(&ip[12..]).word(17).word(udp.len() as u16).bytes(udp).is_right());
        let message = &udp[8..];
        assert!((300..=548).contains(&message.len()));
        assert_eq!(message[..8], [2, 1, 6, 0, 0x39, 3, 0xf3, 0x26]);
        assert_eq!((&message[28..34], &message[236..240]), (&MINE.0[..], &[99, 130, 83, 99][..]));
        assert_eq!(message[44..236], [0; 192]);
        let mut options = Vec::new();
        let mut rest = &message[240..];
        while rest[0] != 255 {
            let (head, after) = rest.split_at(2);
            options.push((head[0], after[..usize::from(head[1])].to_vec()));
            rest = &after[usize::from(head[1])..];
        }
        let address = |at: usize| Ipv4Addr::new(message[at], message[at + 1], message[at + 2], message[at + 3]);
        Self {
            station: MacAddr(frame[..6].try_into().unwrap()),
            to: Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]),
            kind: options[0].1[0],
            given: address(16),
            current: address(12),
            options,
        }
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.iter().find(|(given, _)| *given == code).map(|(_, value)| value.as_slice())
    }
}

fn arp(operation: u8, from: Ipv4Addr, wanted: Ipv4Addr, to: MacAddr) -> Vec<u8> {
    let head = [&to.0[..], &MINE.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    [&head[..], &MINE.0, &from.octets(), &[0; 6], &wanted.octets()].concat()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn golden_bytes_of_an_offer() {
    let mut guest = Guest::with_lease();
    let client = [&[61, 7, 1][..], &MINE.0].concat();
    guest.send(&dhcp_frame(&message(DISCOVER, NONE, &client)));
    // By an independent hand: a few lines of Python from RFC 2131's figure 1 and RFC 2132's options.
    let mut expected = bytes(
        "525400000001 0200a9fea9fd 0800 4500 0148 0000 4000 4011 2592 0a070001 0a070005 0043 0044 0134 deda
         02 01 06 00 3903f326 0000 0000 00000000 0a070005 00000000 00000000 525400000001",
    );
    expected.resize(14 + 20 + 8 + 236, 0);
    expected
        .extend(bytes("63825363 350102 36040a070001 330400015180 0104ffffff00 03040a070001 060409090909 1a020578 3d0701525400000001 ff"));
    expected.resize(342, 0);
    assert_eq!(guest.receive().unwrap(), expected);
    assert_eq!((guest.sent.0, guest.port.counters().answered, guest.port.counters().tx_frames), (0, 1, 1));
}

#[test]
fn a_client_gets_its_address_and_keeps_it() {
    let mut guest = Guest::with_lease();
    let offer = guest.ask(&message(DISCOVER, NONE, &[])).unwrap();
    assert_eq!((offer.kind, offer.given, offer.to, offer.station), (OFFER, ADDRESS, ADDRESS, MINE));
    let wanted = [requested(offer.given), server(GATEWAY)].concat();
    let ack = guest.ask(&message(REQUEST, NONE, &wanted)).unwrap();
    assert_eq!((ack.kind, ack.given, ack.to), (ACK, ADDRESS, ADDRESS));
    let told = |code| ack.option(code).unwrap();
    assert_eq!((told(1), told(3), told(6)), (&[255, 255, 255, 0][..], &GATEWAY.octets()[..], &DNS.octets()[..]));
    assert_eq!((told(26), told(51), told(54)), (&1400_u16.to_be_bytes()[..], &86_400_u32.to_be_bytes()[..], &GATEWAY.octets()[..]));
    assert_eq!(ack.option(61), None);

    // Renewed, bound anew, and asked for after a reboot.
    for question in [message(REQUEST, ADDRESS, &[]), message(REQUEST, NONE, &requested(ADDRESS))] {
        let again = guest.ask(&question).unwrap();
        assert_eq!((again.kind, again.given), (ACK, ADDRESS));
    }
    // The port to which a guest has moved has heard nothing of all this.
    let moved = Guest::with_lease().ask(&message(REQUEST, ADDRESS, &[])).unwrap();
    assert_eq!((moved.kind, moved.given, moved.current, moved.to), (ACK, ADDRESS, ADDRESS, ADDRESS));
}

#[test]
fn other_addresses_are_refused_and_other_servers_left_alone() {
    let mut guest = Guest::with_lease();
    for question in [message(REQUEST, NONE, &requested(NEIGHBOUR)), message(REQUEST, NEIGHBOUR, &[])] {
        let nak = guest.ask(&question).unwrap();
        assert_eq!((nak.kind, nak.given, nak.current, nak.to, nak.station), (NAK, NONE, NONE, Ipv4Addr::BROADCAST, MacAddr::BROADCAST));
        assert_eq!((nak.option(1), nak.option(51), nak.option(54)), (None, None, Some(&GATEWAY.octets()[..])));
    }
    assert!(guest.ask(&message(REQUEST, NONE, &[requested(ADDRESS), server(NEIGHBOUR)].concat())).is_none());
    assert!(guest.ask(&message(DECLINE, NONE, &requested(ADDRESS))).is_none());
    assert!(guest.ask(&message(RELEASE, ADDRESS, &[])).is_none());
    assert_eq!((guest.port.counters().lost(), guest.port.counters().answered), (0, 5));
}

#[test]
fn who_has_an_address_is_informed_and_who_hears_all_is_told_so() {
    let mut guest = Guest::new(Some(DhcpLease::new(ADDRESS, 16, None, None).unwrap()));
    let informed = guest.ask(&message(INFORM, NEIGHBOUR, &[])).unwrap();
    assert_eq!((informed.kind, informed.given, informed.to, informed.option(51)), (ACK, NONE, NEIGHBOUR, None));
    assert_eq!((informed.option(1), informed.option(3), informed.option(6)), (Some(&[255, 255, 0, 0][..]), None, None));
    let mut broadcast = message(DISCOVER, NONE, &[61, 1, 9]);
    broadcast[10] = 0x80;
    let offer = guest.ask(&broadcast).unwrap();
    assert_eq!((offer.to, offer.station, offer.option(54)), (Ipv4Addr::BROADCAST, MacAddr::BROADCAST, Some(&SERVER.octets()[..])));
    assert_eq!(offer.option(61), Some(&[9][..]));
    // The longest identity leaves the answer within what every client takes.
    guest.ask(&message(DISCOVER, NONE, &[&[61, 255][..], &[7; 255]].concat())).unwrap();
    // Without a gateway the server's own address leads to it.
    guest.send(&arp(1, ADDRESS, SERVER, MacAddr::BROADCAST));
    assert_eq!(guest.receive().unwrap()[22..32], [&SERVER_MAC.0[..], &SERVER.octets()].concat());
    let mut unicast = dhcp_frame(&message(REQUEST, ADDRESS, &[]));
    unicast[..6].copy_from_slice(&SERVER_MAC.0);
    unicast[30..34].copy_from_slice(&SERVER.octets());
    guest.send(&unicast);
    assert_eq!(Answer::take_apart(&guest.receive().unwrap()).kind, ACK);
    assert_eq!(guest.sent.0, 0);
}

#[test]
fn without_a_lease_dhcp_is_the_lan_s() {
    let mut guest = Guest::new(None);
    guest.send(&dhcp_frame(&message(DISCOVER, NONE, &[])));
    assert!(guest.receive().is_none());
    assert_eq!((guest.sent.0, guest.port.counters().flooded), (1, 1));
    // With one, what other stations' servers and tagged networks hear still leaves.
    let mut guest = Guest::with_lease();
    let question = dhcp_frame(&message(REQUEST, ADDRESS, &[]));
    let mut elsewhere = question.clone();
    elsewhere[..6].copy_from_slice(&THEIRS.0);
    elsewhere[30..34].copy_from_slice(&NEIGHBOUR.octets());
    let tagged = [&question[..12], &[0x81, 0, 0, 5], &question[12..]].concat();
    let mut other_port = question.clone();
    other_port[37] = 69;
    // Not the first piece of a packet: what looks like a port is none.
    let mut fragment = question.clone();
    fragment[21] = 9;
    for (count, frame) in [elsewhere, tagged, other_port, fragment].iter().enumerate() {
        guest.send(frame);
        assert_eq!((guest.receive(), guest.sent.0), (None, count + 1));
    }
}

#[test]
fn arp_for_a_known_address_is_answered_and_never_flooded() {
    for mut guest in [Guest::new(None), Guest::with_lease()] {
        guest.send(&arp(1, ADDRESS, NEIGHBOUR, MacAddr::BROADCAST));
        let expected = bytes("525400000001 525400000002 0806 0001 0800 06 04 0002 525400000002 0a070009 525400000001 0a070005");
        assert_eq!(guest.receive().unwrap(), expected);
        // A probe (RFC 5227 §2.1.1) finds out that the address is taken.
        guest.send(&arp(1, NONE, NEIGHBOUR, MacAddr::BROADCAST));
        assert_eq!(guest.receive().unwrap()[28..42], bytes("0a070009 525400000001 00000000")[..]);
        assert_eq!((guest.sent.0, guest.port.counters().flooded), (0, 0));

        // Unknown, not a request, to one station alone, about another's hardware address: the LAN's.
        let mut foreign = arp(1, ADDRESS, NEIGHBOUR, MacAddr::BROADCAST);
        foreign[22] ^= 2;
        let passing = [
            arp(1, ADDRESS, Ipv4Addr::new(10, 7, 0, 8), MacAddr::BROADCAST),
            arp(2, ADDRESS, NEIGHBOUR, MacAddr::BROADCAST),
            arp(1, ADDRESS, NEIGHBOUR, THEIRS),
            foreign,
            arp(1, ADDRESS, NEIGHBOUR, MacAddr::BROADCAST)[..41].to_vec(),
        ];
        for (count, frame) in passing.iter().enumerate() {
            guest.send(frame);
            assert_eq!((guest.receive(), guest.sent.0), (None, count + 1));
        }
    }
}

#[test]
fn the_last_word_about_an_address_counts() {
    let mut fdb = Fdb::default();
    fdb.add(LOCAL, THEIRS, PEER).unwrap();
    for (station, address) in [(MINE, NEIGHBOUR), (ANY_STATION, NEIGHBOUR), (THEIRS, Ipv4Addr::BROADCAST), (THEIRS, NONE)] {
        assert_eq!(fdb.add_address(station, address), Err(FdbError::Address(address, station)));
    }
    fdb.add_address(THEIRS, NEIGHBOUR).unwrap();
    fdb.add_address(THEIRS, ADDRESS).unwrap();
    assert_eq!((fdb.station_with(NEIGHBOUR), fdb.station_with(ADDRESS)), (None, Some(THEIRS)));
    // A move tells where a station is now, and nothing of its address.
    fdb.add(LOCAL, THEIRS, SocketAddrV4::new(*PEER.ip(), 4790)).unwrap();
    assert_eq!(fdb.station_with(ADDRESS), Some(THEIRS));
    fdb.add(LOCAL, MINE, PEER).unwrap();
    fdb.add_address(MINE, ADDRESS).unwrap();
    assert_eq!(fdb.station_with(ADDRESS), Some(MINE));
    fdb.add(LOCAL, ANY_STATION, PEER).unwrap();
    assert!(fdb.remove(MINE) && fdb.remove(THEIRS) && !fdb.remove(MINE) && fdb.remove(ANY_STATION));
    assert_eq!(fdb, Fdb::default());
}

#[test]
fn nonsense_for_the_port_ends_there() {
    let whole = dhcp_frame(&message(DISCOVER, NONE, &[61, 2, 7, 7]));
    let options = 42 + 240;
    // Cut anywhere, in the frame or by the UDP length: no answer to half a message, and nothing leaves.
    for end in 42..options + 3 {
        let mut guest = Guest::with_lease();
        let mut by_length = whole.clone();
        by_length[38..40].copy_from_slice(&((end - 34) as u16).to_be_bytes());
        guest.send(&whole[..end]);
        guest.send(&by_length);
        assert_eq!((guest.receive(), guest.sent.0, guest.port.counters().of(Reason::GuestDhcp)), (None, 0, 2), "{end}");
    }
    let changed = |at: usize, value: u8| {
        let mut frame = whole.clone();
        frame[at] = value;
        frame
    };
    let mut with_options = whole.clone();
    with_options[14] = 0x46;
    let long = dhcp_frame(&[message(DISCOVER, NONE, &[]), vec![0; 1500]].concat());
    let message_at = |at: usize, value: u8| changed(42 + at, value);
    for frame in [
        message_at(0, 2),
        message_at(1, 6),
        message_at(2, 16),
        message_at(24, 10),
        message_at(33, 2),
        message_at(236, 0),
        message_at(241, 0),
        message_at(242, 0),
        message_at(242, OFFER),
        message_at(242, 9),
        message_at(242, REQUEST),
        message_at(242, INFORM),
        message_at(244, 200),
        changed(20, 0x20),
        long,
    ] {
        let mut guest = Guest::with_lease();
        guest.send(&frame);
        assert_eq!((guest.receive(), guest.sent.0, guest.port.counters().of(Reason::GuestDhcp)), (None, 0, 1), "{frame:x?}");
    }
}

#[test]
fn a_guest_that_only_asks_is_answered_so_often_and_no_more() {
    let mut guest = Guest::with_lease();
    for _ in 0..100 {
        guest.send(&arp(1, ADDRESS, NEIGHBOUR, MacAddr::BROADCAST));
    }
    assert!(guest.port.has_answer());
    assert_eq!(std::iter::from_fn(|| guest.receive()).count(), 16);
    assert!(!guest.port.has_answer());
    assert_eq!((guest.port.counters().of(Reason::AnswersFull), guest.sent.0), (84, 0));
}

proptest! {
    #[test]
    fn whatever_is_asked_is_answered_well_or_not_at_all(
        options in proptest::collection::vec(any::<u8>(), 0..80),
        spoilt in proptest::collection::vec((0..400_usize, any::<u8>()), 0..4),
        kind in 0..10_u8,
        partial in any::<bool>(),
    ) {
        let mut frame = dhcp_frame(&message(kind, NONE, &options));
        for (at, value) in spoilt {
            // Headers below decide whose the frame is, and the transaction is what an answer repeats.
            if at >= 50 && at < frame.len() {
                frame[at] = value;
            }
        }
        let mut guest = Guest::with_lease();
        let checksum = if partial { Checksum::Partial { start: 34, offset: 6 } } else { Checksum::InFrame };
        guest.port.transmit(Instant::now(), &guest.fdb, &Offload { checksum, segmentation: None }, &frame, &mut guest.sent);
        if let Some(answer) = guest.receive() {
            let answer = Answer::take_apart(&answer);
            prop_assert!(matches!(answer.kind, OFFER | ACK | NAK));
        }
        prop_assert_eq!(guest.sent.0, 0);
    }
}

const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);

/// A guest `web` on a LAN whose names end with `office.rebec`; the other is `db`.
fn named() -> Guest {
    let mut fdb = Fdb::default();
    fdb.add(LOCAL, THEIRS, PEER).unwrap();
    fdb.add_address(THEIRS, NEIGHBOUR).unwrap();
    fdb.add_label(THEIRS, "db");
    let zone = Some(Zone { domain: "office.rebec".into(), label: Some("web".into()) });
    let lease = Some(DhcpLease::new(ADDRESS, 24, None, Some(RESOLVER)).unwrap());
    let config = PortConfig { lease, zone, ..PortConfig::plain(Vni::new(7).unwrap(), MINE, 1400) };
    Guest { port: Port::new(config, Arc::default()), fdb, sent: Sent::default() }
}

/// A question for `db.office.rebec` from port 4000, its UDP checksum left to be completed.
fn dns_frame(to: Ipv4Addr, port: u16) -> Vec<u8> {
    let message = bytes("abcd 0100 0001 0000 0000 0000 02 6462 06 6f6666696365 05 7265626563 00 0001 0001");
    let udp_bytes = (8 + message.len()) as u16;
    let udp = [4000_u16, port, udp_bytes, 0x1234].map(u16::to_be_bytes).concat();
    let head = [&[0x45, 0][..], &(20 + udp_bytes).to_be_bytes(), &[0, 0, 0, 0, 64, 17, 0, 0]].concat();
    [&SERVER_MAC.0[..], &MINE.0, &[8, 0], &head, &ADDRESS.octets(), &to.octets(), &udp, &message].concat()
}

#[test]
fn a_guest_is_told_where_names_are_known_and_asks_there() {
    let mut guest = named();
    let offer = guest.ask(&message(DISCOVER, NONE, &[])).unwrap();
    assert_eq!((offer.option(6), offer.option(15)), (Some(&RESOLVER.octets()[..]), Some(&b"office.rebec"[..])));
    assert_eq!(offer.option(119), Some(&b"\x06office\x05rebec\x00"[..]));
    let nak = guest.ask(&message(REQUEST, NONE, &requested(NEIGHBOUR))).unwrap();
    assert_eq!((nak.kind, nak.option(15), nak.option(119)), (NAK, None, None));

    // It finds the station of that address, asks it, and hears: all without a word on the LAN.
    guest.send(&arp(1, ADDRESS, RESOLVER, MacAddr::BROADCAST));
    assert_eq!(guest.receive().unwrap()[22..32], [&SERVER_MAC.0[..], &RESOLVER.octets()].concat());
    guest.send(&dns_frame(RESOLVER, 53));
    let answer = guest.receive().unwrap();
    let (ip, udp) = (&answer[14..34], &answer[34..]);
    assert!(Sum::default().bytes(ip).is_right() && Sum::default().bytes(&ip[12..]).word(17).word(udp.len() as u16).bytes(udp).is_right());
    assert_eq!((&ip[12..20], &udp[..4]), (&[RESOLVER.octets(), ADDRESS.octets()].concat()[..], &[0, 53, 0x0f, 0xa0][..]));
    assert!(udp.ends_with(&NEIGHBOUR.octets()) && udp[8..10] == [0xab, 0xcd]);

    // What else is said there ends there; what makes no sense is counted.
    guest.send(&dns_frame(RESOLVER, 853));
    guest.send(&dns_frame(DNS, 53));
    let mut cut = dns_frame(RESOLVER, 53);
    cut[38..40].copy_from_slice(&[0, 20]);
    guest.send(&cut);
    assert_eq!((guest.receive(), guest.sent.0, guest.port.counters().of(Reason::GuestDns)), (None, 0, 1));
    // Nobody takes the port's own address.
    guest.send(&arp(2, RESOLVER, RESOLVER, MacAddr::BROADCAST));
    assert_eq!((guest.sent.0, guest.port.counters().of(Reason::GuestAddress)), (0, 1));
}

#[test]
fn a_guest_makes_others_hear_so_much_and_no_more() {
    let mut guest = Guest::new(None);
    let start = Instant::now();
    let stranger = |to: [u8; 6]| [&to[..], &MINE.0, &[0x88, 0xb5], &[7; 50]].concat();
    let flood = |guest: &mut Guest, to: [u8; 6]| {
        for _ in 0..COPIES_MAX + 10 {
            guest.port.transmit(start, &guest.fdb, &Offload::default(), &stranger(to), &mut guest.sent);
        }
        guest.port.flush(&mut guest.sent);
    };
    for (count, (to, reason)) in [
        ([0xff; 6], Reason::StormBroadcast),
        ([0x33, 0x33, 0, 0, 0, 1], Reason::StormMulticast),
        ([2, 0, 0, 0, 0, 9], Reason::StormUnknown),
    ]
    .into_iter()
    .enumerate()
    {
        flood(&mut guest, to);
        assert_eq!((guest.port.counters().of(reason), guest.sent.0), (10, (count + 1) * COPIES_MAX as usize), "{}", reason.name());
    }
    // Whom it knows it reaches all the same.
    let before = guest.sent.0;
    guest.port.transmit(start, &guest.fdb, &Offload::default(), &stranger(THEIRS.0), &mut guest.sent);
    guest.port.flush(&mut guest.sent);
    assert_eq!(guest.sent.0, before + 1);
}
