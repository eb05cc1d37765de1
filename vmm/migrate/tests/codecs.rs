//! The bytes of a move: golden bytes of every message and of a frame, round trips, and hostile bytes.

#![expect(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use rebec_migrate::{
    MoveId, Record, Space, UNIT_BYTES, VmId,
    base::BaseName,
    frame::{Content, ENTRY_BYTES, Entry, FRAME_BYTES_MAX, FrameError, FrameHead, HEAD_BYTES, Preamble, RawHead, Role},
    ledger::Right,
    message::{
        DiskShape, FromSource, FromTarget, MESSAGE_BYTES_MAX, MESSAGE_HEAD_BYTES, Message, MessageError, MessageHead, NetShape, Shape,
    },
    page::{self, Form, Key, Packer, Unpacker, Verdict},
};
use rebec_vmm_api::Versions;

const KEY: Key = Key([1; 32]);

fn head(bytes: &[u8]) -> MessageHead {
    MessageHead::from_bytes(bytes[..MESSAGE_HEAD_BYTES].try_into().unwrap()).unwrap()
}

fn read<M: Message>(bytes: &[u8]) -> Result<M, MessageError> {
    head(bytes).read(&bytes[MESSAGE_HEAD_BYTES..])
}

fn shape() -> Shape {
    Shape {
        vm: VmId([2; 16]),
        epoch: 3,
        memory_bytes: 1 << 20,
        vcpus: 2,
        nets: vec![NetShape { mac: [4; 6], vni: 5 }],
        disks: vec![DiskShape { bytes: 512, read_only: true, base: Some(BaseName([6; 32])) }],
        cpu_model: vec![6],
        memory_max_bytes: None,
    }
}

/// The body of a message, without its head, and back.
fn golden<M: Message + PartialEq + std::fmt::Debug>(message: M, expected: &[u8]) {
    let bytes = message.to_frame();
    assert_eq!(&bytes[MESSAGE_HEAD_BYTES..], expected, "{message:?}");
    assert_eq!(bytes[..4], (expected.len() as u32).to_le_bytes());
    assert_eq!(read::<M>(&bytes), Ok(message));
}

#[test]
fn golden_messages_of_the_source() {
    let offer = [&[0][..], &[2; 16], &[3, 128, 128, 64, 2, 1], &[4; 6], &[5, 1, 128, 4, 1, 1], &[6; 32], &[1, 6], &[7; 32]].concat();
    golden(FromSource::Offer { shape: shape(), key: [7; 32] }, &offer);
    golden(FromSource::Blank { disk: 1, ranges: vec![(2, 300)] }, &[1, 1, 1, 2, 172, 2]);
    golden(FromSource::Final { frames: vec![4, 5], saved: vec![9] }, &[2, 2, 4, 5, 1, 9]);
    golden(FromSource::Granted { epoch: 4, move_id: MoveId([8; 16]) }, &[&[3, 4][..], &[8; 16]].concat());
    golden(FromSource::Abort { reason: "no".into() }, &[4, 2, b'n', b'o']);
    let record = Record { right: Right::Granted, vm: VmId([2; 16]), epoch: 4, move_id: MoveId([8; 16]) };
    let with_room = [&[6][..], &offer[1..], &[128, 128, 128, 2]].concat();
    golden(FromSource::OfferWithRoom { shape: shape(), key: [7; 32], memory_max_bytes: 4 << 20 }, &with_room);
    assert!(matches!(
        FromSource::offer(Shape { memory_max_bytes: Some(1), ..shape() }, [0; 32]),
        FromSource::OfferWithRoom { memory_max_bytes: 1, .. }
    ));
    golden(FromSource::Resume { record }, &[&[5, 1][..], &[2; 16], &[4], &[8; 16]].concat());
}

#[test]
fn golden_messages_of_the_target() {
    golden(
        FromTarget::Accept { ports: vec!["10.0.0.2:4789".parse().unwrap()], on_base: vec![true, false] },
        &[0, 1, 10, 0, 0, 2, 0xb5, 0x25, 2, 1, 0],
    );
    golden(FromTarget::Refuse { reason: "no".into() }, &[1, 2, b'n', b'o']);
    golden(FromTarget::Have { filter_bytes: 2, offset: 0, bytes: vec![3, 4] }, &[2, 2, 0, 2, 3, 4]);
    golden(FromTarget::Blanked, &[3]);
    golden(FromTarget::Applied { stream: 1, sequence: 2, wanted: vec![300] }, &[4, 1, 2, 1, 172, 2]);
    golden(FromTarget::Prepared { epoch: 4 }, &[5, 4]);
    golden(FromTarget::Running { epoch: 4, after_grant_us: 5 }, &[6, 4, 5]);
    golden(FromTarget::Released { epoch: 4 }, &[7, 4]);
    golden(FromTarget::Abort { reason: "no".into() }, &[8, 2, b'n', b'o']);
}

#[test]
fn golden_preamble_and_frame() {
    let preamble = Preamble { speaks: Versions::new(3, 4), role: Role::Stream(1), streams: 2, move_id: MoveId([8; 16]) };
    let expected = [&b"RBMV\x04\x03\x01\x02"[..], &[8; 16]].concat();
    assert_eq!(preamble.to_bytes()[..], expected);
    assert_eq!(Preamble::from_bytes(&preamble.to_bytes()), Ok(preamble));
    let mut turned = preamble.to_bytes();
    turned[5] = 5;
    assert!(matches!(Preamble::from_bytes(&turned), Err(FrameError::Malformed(_))));

    let units = [7; UNIT_BYTES];
    let digest = page::digest(&KEY, &units);
    let mut bytes = vec![];
    let head = FrameHead { space: Space::disk(0), round: 2, sequence: 3 };
    let entries = [
        Entry { unit: 64, content: Content::Zero { count: 2 } },
        Entry { unit: 67, content: Content::Held(digest) },
        Entry { unit: 68, content: Content::Bytes(digest) },
    ];
    head.write(&entries, None, &units, &mut bytes);
    let mut expected = b"RBF1\x01\x00\x03\x00\x02\0\0\0\x03\0\0\0\0\0\0\0\x00\x10\0\0".to_vec();
    expected.extend(crc32fast::hash(&[&expected, &bytes[HEAD_BYTES..HEAD_BYTES + 3 * ENTRY_BYTES]].concat()).to_le_bytes());
    expected.extend(
        [&[0, 2, 64, 0, 0, 0, 0, 0][..], &[0; 16], &[1, 1, 67, 0, 0, 0, 0, 0], &digest.0, &[2, 1, 68, 0, 0, 0, 0, 0], &digest.0].concat(),
    );
    expected.extend(units);
    assert_eq!(bytes, expected);
    let raw = RawHead::from_bytes(bytes[..HEAD_BYTES].try_into().unwrap()).unwrap();
    assert_eq!((raw.head, raw.compressed, raw.frame_bytes()), (head, false, bytes.len()));
    assert_eq!(raw.entries(&bytes[HEAD_BYTES..HEAD_BYTES + 72], 0, 1), Ok(entries.to_vec()));
    assert!(raw.entries(&bytes[HEAD_BYTES..HEAD_BYTES + 72], 1, 3).is_err(), "its run belongs to stream 2");
}

#[test]
fn two_sides_agree_on_a_version_or_say_which_is_behind() {
    let of = |speaks| Preamble { speaks, role: Role::Control, streams: 1, move_id: MoveId([8; 16]) };
    assert_eq!(of(Versions::new(3, 4)).agree(Versions::only(3)), Ok(3));
    assert_eq!(of(Versions::only(3)).agree(Versions::new(3, 4)), Ok(3));
    let refusal = |theirs: &str, ours: &str| of(theirs.parse().unwrap()).agree(ours.parse().unwrap()).unwrap_err().to_string();
    assert!(refusal("5-6", "3-4").contains("version 5-6 of the move protocol, this one 3-4: upgrade this host"));
    assert!(refusal("3", "4-5").contains("version 3 of the move protocol, this one 4-5: upgrade the other host"));
}

#[test]
fn no_flipped_bit_of_a_frame_goes_unnoticed() {
    let units = [7; UNIT_BYTES];
    let entries =
        [Entry { unit: 4, content: Content::Zero { count: 2 } }, Entry { unit: 9, content: Content::Bytes(page::digest(&KEY, &units)) }];
    let mut frame = vec![];
    FrameHead { space: Space::MEMORY, round: 1, sequence: 2 }.write(&entries, None, &units, &mut frame);
    let entries_end = HEAD_BYTES + 2 * ENTRY_BYTES;
    for bit in 0..frame.len() * 8 {
        let mut flipped = frame.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let read = RawHead::from_bytes(flipped[..HEAD_BYTES].try_into().unwrap());
        let read = read.and_then(|raw| Ok((raw, raw.entries(&flipped[HEAD_BYTES..entries_end], 0, 1)?)));
        let unpacked = read
            .and_then(|(raw, entries)| Unpacker::new().unwrap().unpack(&KEY, &entries, raw.compressed, flipped[entries_end..].to_vec()));
        assert!(unpacked.is_err(), "bit {bit}");
    }
}

#[test]
fn limits_come_before_allocation() {
    let announced = (MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes();
    let bytes = [announced, [0; 4]].concat();
    assert_eq!(MessageHead::from_bytes(bytes[..].try_into().unwrap()), Err(MessageError::TooLong(MESSAGE_BYTES_MAX + 1)));
    let too_many = Shape { disks: vec![DiskShape { bytes: 0, read_only: false, base: None }; 17], ..shape() };
    let bytes = FromSource::Offer { shape: too_many, key: [0; 32] }.to_frame();
    assert_eq!(read::<FromSource>(&bytes), Err(MessageError::Refused("too many disks")));
    let huge = Shape { memory_bytes: 1 << 50, ..shape() };
    assert!(read::<FromSource>(&FromSource::Offer { shape: huge, key: [0; 32] }.to_frame()).is_err());
    // Memory of 1 MiB that may become less, a part of a page more, or more than there may be with the last piece of its room.
    for memory_max_bytes in [4096, (1 << 20) + 1, (1 << 40) - 4096, 1 << 50, u64::MAX] {
        let offer = FromSource::OfferWithRoom { shape: shape(), key: [0; 32], memory_max_bytes };
        assert!(read::<FromSource>(&offer.to_frame()).is_err(), "{memory_max_bytes}");
    }
}

/// Packs units and takes them apart again, as the two workers do.
fn through_the_wire(forms: &[Form], numbers: &[u64], units: &[u8]) -> (Vec<Entry>, Vec<u8>, usize) {
    let mut frame = vec![];
    let head = FrameHead { space: Space::MEMORY, round: 0, sequence: 0 };
    Packer::new().unwrap().pack(head, numbers, forms, units, &mut frame);
    let raw = RawHead::from_bytes(frame[..HEAD_BYTES].try_into().unwrap()).unwrap();
    let (entries, body) = frame[HEAD_BYTES..].split_at(raw.entries_bytes());
    let entries = raw.entries(entries, 0, 1).unwrap();
    let unpacked = Unpacker::new().unwrap().unpack(&KEY, &entries, raw.compressed, body.to_vec()).unwrap();
    (entries, unpacked, frame.len())
}

#[test]
fn packing_gains_where_it_can_and_costs_little_where_not() {
    let text: Vec<u8> = (0..32 * UNIT_BYTES).map(|at| b"a line of some text, "[at % 21]).collect();
    let mut word = 1_u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (word >> 56) as u8
    })
    .take(32 * UNIT_BYTES)
    .collect();
    let numbers: Vec<u64> = (32..64).collect();
    for (units, most) in [(&text, 4096), (&random, FRAME_BYTES_MAX)] {
        let forms: Vec<Form> = page::judge(&KEY, units)
            .into_iter()
            .map(|verdict| if let Verdict::Content(digest) = verdict { Form::Bytes(digest) } else { Form::Zero })
            .collect();
        let (_, unpacked, length) = through_the_wire(&forms, &numbers, units);
        assert_eq!(&unpacked, units);
        assert!(length <= most, "{length}");
    }
}

/// Units whose letters only their frequencies give away lie between units that do not compress.
#[test]
fn what_does_not_compress_costs_its_neighbours_little() {
    let mut word = 1_u64;
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (word >> 56) as u8
    };
    let letters: Vec<u8> = (0..16 * UNIT_BYTES).map(|_| b"etaoinshrdlucmfw"[usize::from(next() % 16)]).collect();
    let random: Vec<u8> = (0..16 * UNIT_BYTES).map(|_| next()).collect();
    let mixed: Vec<u8> =
        letters.chunks(UNIT_BYTES).zip(random.chunks(UNIT_BYTES)).flat_map(|(letters, random)| [letters, random].concat()).collect();
    let packed = |units: &[u8]| {
        let forms: Vec<Form> = units.chunks(UNIT_BYTES).map(|unit| Form::Bytes(page::digest(&KEY, unit))).collect();
        let (_, unpacked, length) = through_the_wire(&forms, &(32..64).collect::<Vec<_>>()[..forms.len()], units);
        assert_eq!(&unpacked, units);
        length
    };
    let (apart, together) = (packed(&letters) + packed(&random), packed(&mixed));
    assert!(together < apart + 16 * 256, "{together} bytes together, {apart} apart");
}

proptest! {
    #[test]
    fn batches_round_trip(kinds in proptest::collection::vec(0_u8..4, 1..32), fill in any::<u8>()) {
        let numbers: Vec<u64> = (0..kinds.len() as u64).collect();
        let mut units = vec![0; kinds.len() * UNIT_BYTES];
        let mut forms = vec![];
        let mut with_bytes = vec![];
        for (kind, unit) in kinds.iter().zip(units.chunks_exact_mut(UNIT_BYTES)) {
            unit[0] = fill | 1;
            let digest = page::digest(&KEY, unit);
            forms.push(match kind {
                0 => Form::Unchanged,
                1 => Form::Zero,
                2 => Form::Held(digest),
                _ => {
                    with_bytes.extend_from_slice(unit);
                    Form::Bytes(digest)
                }
            });
        }
        prop_assume!(kinds.iter().any(|&kind| kind != 0));
        let (entries, unpacked, _) = through_the_wire(&forms, &numbers, &units);
        prop_assert_eq!(unpacked, with_bytes);
        let zeros: u64 = entries.iter().map(|entry| if let Content::Zero { count } = entry.content { u64::from(count) } else { 0 }).sum();
        prop_assert_eq!(zeros, kinds.iter().filter(|&&kind| kind == 1).count() as u64);
    }

    #[test]
    fn hostile_messages_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        // With a right checksum, so that the decoder itself is reached.
        let frame = [&(bytes.len() as u32).to_le_bytes()[..], &crc32fast::hash(&bytes).to_le_bytes(), &bytes].concat();
        if let Ok(message) = read::<FromSource>(&frame) {
            let again = read::<FromSource>(&message.to_frame());
            prop_assert_eq!(again, Ok(message));
        }
        if let Ok(message) = read::<FromTarget>(&frame) {
            let again = read::<FromTarget>(&message.to_frame());
            prop_assert_eq!(again, Ok(message));
        }
    }

    #[test]
    fn hostile_frames_never_panic_and_never_need_much(mut bytes in proptest::collection::vec(any::<u8>(), HEAD_BYTES..HEAD_BYTES + 800), valid in any::<bool>()) {
        if valid {
            bytes[..6].copy_from_slice(b"RBF1\0\0");
            bytes[6] = bytes[6] % 32 + 1;
            bytes[7] &= 1;
            bytes[21..24].fill(0);
        }
        if let Ok(raw) = RawHead::from_bytes(bytes[..HEAD_BYTES].try_into().unwrap()) {
            prop_assert!(raw.frame_bytes() <= FRAME_BYTES_MAX);
            let mut entries = bytes[HEAD_BYTES..].to_vec();
            entries.resize(raw.entries_bytes(), 0);
            prop_assert!(raw.entries(&entries, 0, 1).is_err(), "a random checksum fits");
        }
    }

    #[test]
    fn hostile_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300), compressed in any::<bool>()) {
        let entries = [Entry { unit: 1, content: Content::Bytes(page::Digest([0; 16])) }];
        prop_assert!(Unpacker::new().unwrap().unpack(&KEY, &entries, compressed, body).is_err());
    }

    #[test]
    fn hostile_preambles_never_panic(bytes in any::<[u8; 24]>()) {
        prop_assert!(Preamble::from_bytes(&bytes).is_err() || bytes[..4] == *b"RBMV");
    }
}
