//! The bytes of a move as each version sends them (`golden/vN.txt`): a later program reads these from sources and targets of the version
//! before. A line is `name hexadecimal digits`; a line that is there is never changed.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{collections::BTreeMap, fmt::Debug};

use rebec_migrate::{
    MoveId, Record, Space, UNIT_BYTES, VmId,
    base::BaseName,
    frame::{Content, Entry, FrameHead, HEAD_BYTES, PREAMBLE_BYTES, Preamble, RawHead, Role},
    ledger::Right,
    message::{DiskShape, FromSource, FromTarget, MESSAGE_HEAD_BYTES, Message, MessageHead, NetShape, Shape},
    page::{self, Key, Unpacker},
};
use rebec_vmm_api::Versions;

const KEPT: &str = include_str!("golden/v3.txt");
/// What version 4 says beside that.
const KEPT_4: &str = include_str!("golden/v4.txt");
const KEY: Key = Key([1; 32]);

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn kept(text: &'static str) -> BTreeMap<&'static str, Vec<u8>> {
    let bytes = |digits: &str| (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
    text.lines().filter_map(|line| line.split_once(' ')).map(|(name, digits)| (name, bytes(digits))).collect()
}

fn shape() -> Shape {
    Shape {
        vm: VmId([2; 16]),
        epoch: 3,
        memory_bytes: 1 << 30,
        vcpus: 2,
        nets: vec![NetShape { mac: [4; 6], vni: 5 }],
        disks: vec![
            DiskShape { bytes: 4 << 30, read_only: false, base: Some(BaseName([6; 32])) },
            DiskShape { bytes: 512, read_only: true, base: None },
        ],
        cpu_model: vec![6, 7],
        memory_max_bytes: None,
    }
}

fn source() -> Vec<(&'static str, FromSource)> {
    let record = |right| Record { right, vm: VmId([2; 16]), epoch: 4, move_id: MoveId([8; 16]) };
    vec![
        ("offer", FromSource::Offer { shape: shape(), key: [7; 32] }),
        ("blank", FromSource::Blank { disk: 1, ranges: vec![(2, 300), (400, 1)] }),
        ("final", FromSource::Final { frames: vec![4, 500], saved: b"RBS1\0\0\0\0".to_vec() }),
        ("granted", FromSource::Granted { epoch: 4, move_id: MoveId([8; 16]) }),
        ("source-abort", FromSource::Abort { reason: "cancelled".into() }),
        ("resume-granted", FromSource::Resume { record: record(Right::Granted) }),
        ("resume-holding", FromSource::Resume { record: record(Right::Holding) }),
    ]
}

fn target() -> Vec<(&'static str, FromTarget)> {
    vec![
        ("accept", FromTarget::Accept { ports: vec!["10.0.0.2:4789".parse().unwrap()], on_base: vec![true, false] }),
        ("refuse", FromTarget::Refuse { reason: "no room".into() }),
        ("have", FromTarget::Have { filter_bytes: 2, offset: 0, bytes: vec![3, 4] }),
        ("blanked", FromTarget::Blanked),
        ("applied", FromTarget::Applied { stream: 1, sequence: 2, wanted: vec![300] }),
        ("prepared", FromTarget::Prepared { epoch: 4 }),
        ("running", FromTarget::Running { epoch: 4, after_grant_us: 500 }),
        ("released", FromTarget::Released { epoch: 4 }),
        ("target-abort", FromTarget::Abort { reason: "its disk is full".into() }),
    ]
}

fn preambles() -> Vec<(&'static str, Preamble)> {
    let of = |speaks, role| Preamble { speaks, role, streams: 2, move_id: MoveId([8; 16]) };
    vec![("preamble-control", of(Versions::only(3), Role::Control)), ("preamble-stream", of(Versions::only(3), Role::Stream(1)))]
}

/// A frame of each kind of entry, its body as it is and compressed.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let unit: Vec<u8> = b"a line of text".iter().copied().cycle().take(UNIT_BYTES).collect();
    let digest = page::digest(&KEY, &unit);
    let entries = [
        Entry { unit: 64, content: Content::Zero { count: 2 } },
        Entry { unit: 67, content: Content::Held(digest) },
        Entry { unit: 68, content: Content::Bytes(digest) },
    ];
    let head = FrameHead { space: Space::disk(0), round: 2, sequence: 3 };
    let (mut plain, mut packed) = (vec![], vec![]);
    head.write(&entries, None, &unit, &mut plain);
    let small = zstd::bulk::compress(&unit, 1).unwrap();
    FrameHead { space: Space::MEMORY, ..head }.write(&entries, Some(small.len()), &small, &mut packed);
    vec![("frame-plain", plain), ("frame-packed", packed)]
}

fn read<M: Message>(bytes: &[u8]) -> M {
    let head = MessageHead::from_bytes(bytes[..MESSAGE_HEAD_BYTES].try_into().unwrap()).unwrap();
    head.read(&bytes[MESSAGE_HEAD_BYTES..]).unwrap()
}

fn message<M: Message + PartialEq + Debug>(kept: &BTreeMap<&str, Vec<u8>>, name: &str, message: &M) -> String {
    let now = message.to_frame();
    if let Some(bytes) = kept.get(name) {
        assert_eq!(read::<M>(bytes), *message, "{name}");
    }
    format!("{name} {}", digits(&now))
}

#[test]
fn what_version_4_says_beside_it_is_kept_too() {
    let offer = FromSource::OfferWithRoom { shape: shape(), key: [7; 32], memory_max_bytes: 4 << 30 };
    assert_eq!(message(&kept(KEPT_4), "offer-with-room", &offer) + "\n", KEPT_4);
    let preamble = Preamble { speaks: Versions::new(3, 4), role: Role::Control, streams: 2, move_id: MoveId([8; 16]) };
    assert_eq!(preamble.to_bytes()[4..6], [4, 3]);
}

#[test]
fn what_was_kept_is_sent_and_understood_as_it_was() {
    let kept = kept(KEPT);
    let mut lines = vec![];
    for (name, preamble) in preambles() {
        if let Some(bytes) = kept.get(name) {
            let bytes: &[u8; PREAMBLE_BYTES] = bytes[..].try_into().unwrap();
            assert_eq!(Preamble::from_bytes(bytes), Ok(preamble), "{name}");
        }
        lines.push(format!("{name} {}", digits(&preamble.to_bytes())));
    }
    lines.extend(source().iter().map(|(name, said)| message(&kept, name, said)));
    lines.extend(target().iter().map(|(name, said)| message(&kept, name, said)));
    for (name, frame) in frames() {
        if let Some(bytes) = kept.get(name) {
            let raw = RawHead::from_bytes(bytes[..HEAD_BYTES].try_into().unwrap()).unwrap();
            let (entries, body) = bytes[HEAD_BYTES..].split_at(raw.entries_bytes());
            let entries = raw.entries(entries, 0, 1).unwrap();
            assert_eq!((raw.head.round, raw.head.sequence, entries.len()), (2, 3, 3), "{name}");
            let unpacked = Unpacker::new().unwrap().unpack(&KEY, &entries, raw.compressed, body.to_vec()).unwrap();
            assert!(unpacked.starts_with(b"a line of text") && unpacked.len() == UNIT_BYTES, "{name}");
        }
        // How well zstd packs may change; what it packed may not.
        match kept.get(name) {
            Some(bytes) if name == "frame-packed" => lines.push(format!("{name} {}", digits(bytes))),
            _ => lines.push(format!("{name} {}", digits(&frame))),
        }
    }
    let now = lines.join("\n") + "\n";
    assert!(now == KEPT, "other bytes than were kept; now they are:\n{now}");
}
