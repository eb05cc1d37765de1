//! Hostile bytes from both sides, and golden bytes of one segment.

#![expect(clippy::unwrap_used, reason = "a test's own constants")]

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Instant,
};

use proptest::prelude::*;
use rebec_offload::{Accepts, Checksum, Offload, SegmentKind, Segmentation};
use rebec_overlay::{Fdb, Inbound, Port, PortConfig, Reason, Wire, vxlan::Vni};
use rebec_vmm_api::MacAddr;

const MINE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const THEIRS: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
const LOCAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4789);
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 4789);

#[derive(Default)]
struct Sent(Vec<Vec<u8>>);

impl Wire for Sent {
    fn send(&mut self, _to: SocketAddrV4, datagrams: &mut [u8], stride: usize) {
        assert!(datagrams.len() <= 65_507 && datagrams.len().div_ceil(stride) <= 64);
        self.0.extend(datagrams.chunks(stride).map(<[u8]>::to_vec));
    }
}

fn port() -> (Port, Fdb) {
    let mut fdb = Fdb::default();
    fdb.add(LOCAL, THEIRS, PEER).unwrap();
    (Port::new(PortConfig::plain(Vni::new(0x12_3456).unwrap(), MINE, 1400), Arc::default()), fdb)
}

/// The same LAN seen from the other side.
fn there() -> (Port, Fdb) {
    let mut fdb = Fdb::default();
    fdb.add(LOCAL, MINE, PEER).unwrap();
    (Port::new(PortConfig::plain(Vni::new(0x12_3456).unwrap(), THEIRS, 1400), Arc::default()), fdb)
}

fn transmit(offload: Offload, frame: &[u8]) -> (Vec<Vec<u8>>, Port) {
    let ((mut port, fdb), mut sent) = (port(), Sent::default());
    port.transmit(Instant::now(), &fdb, &offload, frame, &mut sent);
    port.flush(&mut sent);
    (sent.0, port)
}

fn receive(port: &mut Port, fdb: &Fdb, datagrams: &[u8], stride: usize) -> Vec<(Offload, Vec<u8>)> {
    let mut inbound = Inbound::new(PEER, datagrams.len(), stride);
    let mut frames = Vec::new();
    while let Some(ready) = port.next_frame(Instant::now(), fdb, &mut inbound, datagrams) {
        frames.push((ready.offload, port.frame(&ready, datagrams).to_vec()));
    }
    frames
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A TSO frame of 8 payload bytes, as Linux would give it, lengths and partial checksum included.
fn tso_frame() -> (Offload, Vec<u8>) {
    let frame = bytes(
        "525400000002 525400000001 0800
         45000030 abcd4000 40067af8 0a000001 0a000002
         8001 1f90 00000064 00000009 50 18 0102 1425 0000
         6162636465666768",
    );
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, ecn: false, header_bytes: 54, segment_bytes: 5 };
    (Offload { checksum: Checksum::Partial { start: 34, offset: 16 }, segmentation: Some(segmentation) }, frame)
}

#[test]
fn golden_bytes_of_vxlan_tcp_segments() {
    let (offload, frame) = tso_frame();
    let (sent, _) = transmit(offload, &frame);
    // Checksums by an independent hand: a few lines of Python over the same words.
    let first = "08000000 12345600
         525400000002 525400000001 0800
         4500002d abcd4000 40067afb 0a000001 0a000002
         8001 1f90 00000064 00000009 50 10 0102 d105 0000
         6162636465";
    let second = "08000000 12345600
         525400000002 525400000001 0800
         4500002b abce4000 40067afc 0a000001 0a000002
         8001 1f90 00000069 00000009 50 18 0102 2c5a 0000
         666768";
    assert_eq!(sent, [bytes(first), bytes(second)]);
}

#[test]
fn what_was_sent_can_be_received() {
    let (offload, frame) = tso_frame();
    let (sent, _) = transmit(offload, &frame);
    let (mut port, fdb) = there();
    port.set_accepts(Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true });
    let received = receive(&mut port, &fdb, &sent.concat(), sent[0].len());
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].0, offload);
    assert_eq!(received[0].1, frame);
}

#[test]
fn segments_of_another_lan_join_nothing() {
    let (offload, frame) = tso_frame();
    let (mut sent, _) = transmit(offload, &frame);
    sent[1][6] ^= 1;
    let (mut port, fdb) = there();
    port.set_accepts(Accepts { checksum: true, tcp4: true, tcp6: true, ecn: true });
    let received = receive(&mut port, &fdb, &sent.concat(), sent[0].len());
    assert_eq!(received, [(Offload { checksum: Checksum::Valid, segmentation: None }, sent[0][8..].to_vec())]);
    assert_eq!(port.counters().of(Reason::WireOtherLan), 1);
}

#[test]
fn a_short_frame_is_completed_without_its_padding() {
    let (_, frame) = tso_frame();
    let padded = [&Vni::new(0x12_3456).unwrap().header()[..], &frame, &[9; 3]].concat();
    let (mut port, fdb) = there();
    let received = receive(&mut port, &fdb, &padded, padded.len());
    let mut whole = frame;
    whole[50..52].copy_from_slice(&[0x69, 0x2c]);
    assert_eq!(received, [(Offload::default(), whole)]);
}

#[test]
fn a_guest_is_told_by_counters_why_nothing_went_out() {
    let (tso, frame) = tso_frame();
    let mut spoofed = frame.clone();
    spoofed[6..12].copy_from_slice(&[2; 6]);
    let mut stranger = frame.clone();
    stranger[0..6].copy_from_slice(&[4; 6]);
    let beyond = Offload { checksum: Checksum::Partial { start: 60, offset: 1 }, segmentation: None };
    for (offload, frame, reason) in [
        (tso, frame[..13].to_vec(), Reason::GuestShort),
        (tso, spoofed, Reason::GuestSource),
        (Offload::default(), [&frame[..14], &[0; 1401]].concat(), Reason::GuestOversize),
        (beyond, frame.clone(), Reason::GuestOffload),
        (
            Offload { segmentation: tso.segmentation.map(|s| Segmentation { kind: SegmentKind::Tcp6, ..s }), ..tso },
            frame.clone(),
            Reason::GuestOffload,
        ),
    ] {
        let (sent, port) = transmit(offload, &frame);
        assert!(sent.is_empty(), "{}", reason.name());
        assert_eq!((port.counters().of(reason), port.counters().lost(), port.counters().tx_frames), (1, 1, 0), "{}", reason.name());
    }
    let (full, _) = transmit(Offload::default(), &[&frame[..14], &[0; 1400]].concat());
    assert_eq!(full[0].len(), 8 + 14 + 1400);
    let mut lonely = port().0;
    lonely.transmit(Instant::now(), &Fdb::default(), &tso, &stranger, &mut Sent::default());
    assert_eq!(lonely.counters().of(Reason::NoPeer), 1);
}

#[test]
fn what_is_not_for_the_guest_does_not_reach_it() {
    let (mut port, fdb) = port();
    let header = Vni::new(0x12_3456).unwrap().header();
    let frame = [&MINE.0[..], &THEIRS.0, &[0x88, 0xb5], &[9; 40]].concat();
    for (datagram, reason) in [
        ([&[0, 0, 0, 0, 0x12, 0x34, 0x56, 0], &frame[..]].concat(), Reason::WireNoVni),
        ([&Vni::new(1).unwrap().header()[..], &frame].concat(), Reason::WireOtherLan),
        ([&header[..], &frame[..13]].concat(), Reason::WireShort),
        (header[..5].to_vec(), Reason::WireShort),
        ([&header[..], &THEIRS.0, &frame[6..]].concat(), Reason::WireOtherStation),
        ([&header[..], &MINE.0, &MINE.0, &frame[12..]].concat(), Reason::WireOwnSource),
        ([&header[..], &frame, &[0; 1400]].concat(), Reason::WireOversize),
    ] {
        assert!(receive(&mut port, &fdb, &datagram, datagram.len()).is_empty(), "{}", reason.name());
        assert_eq!(
            port.counters().of(reason),
            if reason == Reason::WireShort { port.counters().of(reason) } else { 1 },
            "{}",
            reason.name()
        );
    }
    assert_eq!(port.counters().of(Reason::WireShort), 2);
    let good = [&header[..], &frame].concat();
    assert_eq!(receive(&mut port, &fdb, &good, 62).len(), 1);
    // From a machine of which nobody has told.
    assert_eq!((receive(&mut port, &Fdb::default(), &good, 62).len(), port.counters().of(Reason::WireSource)), (0, 1));
    // Whoever has just come gets what its old place sends on, for some seconds.
    port.announce(Instant::now());
    assert_eq!(receive(&mut port, &Fdb::default(), &good, 62).len(), 1);
}

/// A Linux vxlan device on the same machine sends large frames uncut and with partial checksums.
#[test]
fn large_frames_from_the_same_machine_reach_any_guest() {
    let header = Vni::new(0x12_3456).unwrap().header();
    let payload: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
    let mut frame = [
        &MINE.0[..],
        &THEIRS.0,
        &bytes("0800 45000000 abcd4000 40060000 0a000001 0a000002 8001 1f90 00000064 00000009 50 18 0102 0000 0000"),
    ]
    .concat();
    frame.extend(&payload);
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    let sum = rebec_overlay::checksum::Sum::default().bytes(&frame[14..34]).finish();
    frame[24..26].copy_from_slice(&sum);
    let sum = rebec_overlay::checksum::Sum::default().bytes(&frame[26..34]).word(6).word(total - 20).partial();
    frame[50..52].copy_from_slice(&sum);
    let datagram = [&header[..], &frame].concat();

    let (mut port, fdb) = port();
    let pieces = receive(&mut port, &fdb, &datagram, datagram.len());
    assert_eq!(pieces.iter().map(|(_, frame)| frame.len()).collect::<Vec<_>>(), [1414, 1414, 1414, 54 + 5000 - 3 * 1360]);
    let cut: Vec<u8> = pieces.iter().flat_map(|(_, frame)| frame[54..].to_vec()).collect();
    assert_eq!(cut, payload);
    for (offload, piece) in &pieces {
        assert_eq!(*offload, Offload::default());
        let length = (piece.len() - 34) as u16;
        assert!(rebec_overlay::checksum::Sum::default().bytes(&piece[26..34]).word(6).word(length).bytes(&piece[34..]).is_right());
    }
    port.set_accepts(Accepts { checksum: true, tcp4: true, tcp6: false, ecn: false });
    let whole = receive(&mut port, &fdb, &datagram, datagram.len());
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].1, frame);
    assert_eq!(whole[0].0.segmentation.map(|s| (s.kind, s.segment_bytes, s.header_bytes)), Some((SegmentKind::Tcp4, 1360, 54)));
    let mut corrupt = datagram.clone();
    corrupt[3000] ^= 1;
    corrupt[8 + 50] ^= 1;
    assert!(receive(&mut port, &fdb, &corrupt, corrupt.len()).is_empty());
}

fn offloads() -> impl Strategy<Value = Offload> {
    let kind = prop_oneof![Just(SegmentKind::Tcp4), Just(SegmentKind::Tcp6), Just(SegmentKind::Udp)];
    let segmentation = (kind, any::<bool>(), any::<u16>(), prop_oneof![0..20_u16, any::<u16>()])
        .prop_map(|(kind, ecn, header_bytes, segment_bytes)| Segmentation { kind, ecn, header_bytes, segment_bytes });
    let place = prop_oneof![0..80_u16, any::<u16>()];
    let checksum = prop_oneof![
        Just(Checksum::InFrame),
        Just(Checksum::Valid),
        (place.clone(), place).prop_map(|(start, offset)| Checksum::Partial { start, offset })
    ];
    (checksum, prop::option::of(segmentation)).prop_map(|(checksum, segmentation)| Offload { checksum, segmentation })
}

/// A frame that looks right at first and is wrong somewhere.
fn damaged_frames() -> impl Strategy<Value = Vec<u8>> {
    let tail = prop::collection::vec(any::<u8>(), 0..4000);
    let edits = prop::collection::vec((12..60_usize, any::<u8>()), 0..6);
    (any::<bool>(), tail, edits, 0..4100_usize).prop_map(|(six, tail, edits, length)| {
        let (_, mut frame) = tso_frame();
        if six {
            let v6 = "86dd 60000000 0014 06 40 fd000000000000000000000000000001 fd000000000000000000000000000002";
            frame = [&frame[..12], &bytes(v6), &frame[34..]].concat();
        }
        frame.extend(tail);
        for (at, byte) in edits {
            frame[at] = byte;
        }
        frame.truncate(length);
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_hostile_guest_does_no_harm(offload in offloads(), frame in prop_oneof![damaged_frames(), prop::collection::vec(any::<u8>(), 0..100)]) {
        let (sent, port) = transmit(offload, &frame);
        prop_assert_eq!(port.counters().tx_frames + port.counters().lost(), 1);
        prop_assert!(sent.len() <= 1365);
        for datagram in sent {
            prop_assert!(datagram.len() <= 8 + 22 + 1400);
        }
    }

    #[test]
    fn a_hostile_network_does_no_harm(
        frames in prop::collection::vec(damaged_frames(), 0..6), rest in prop::collection::vec(any::<u8>(), 0..100),
        stride in prop_oneof![0..5000_usize, 1414..1430_usize], checksum: bool, tcp: bool, header in any::<u8>(),
    ) {
        let (mut port, fdb) = port();
        port.set_accepts(Accepts { checksum, tcp4: tcp, tcp6: tcp, ecn: tcp });
        let mut datagrams = Vec::new();
        for (at, mut frame) in frames.into_iter().enumerate() {
            // Turned round: for this port.
            if frame.len() >= 12 {
                frame[..6].copy_from_slice(&MINE.0);
                frame[6..12].copy_from_slice(&THEIRS.0);
            }
            let mut datagram = [&[8, 0, 0, 0, 0x12, 0x34, 0x56, 0], &frame[..]].concat();
            if at == 3 {
                datagram[usize::from(header & 7)] = header;
            }
            if stride > 100 && at != 4 {
                datagram.resize(stride, 0);
            }
            datagrams.extend(datagram);
        }
        datagrams.extend(rest);
        for (_, frame) in receive(&mut port, &fdb, &datagrams, stride) {
            prop_assert!(frame.len() <= 65_536 + 18);
        }
    }
}
