//! What a peer of a move sends: frames on the streams, the preamble of every connection, messages on the control connection.
//!
//! ```text
//! input = choice:u8 rest        0 a frame with its checksum put right, 1 as it is; 2 preamble; 3, 4 a message's body; 5 a message as it is
//! ```

use std::{cell::RefCell, fmt::Debug, net::SocketAddrV4};

use rebec_migrate::{
    MoveId, RUN_UNITS, Record, Space, UNIT_BYTES, VmId,
    base::BaseName,
    frame::{Content, FRAME_BYTES_MAX, FrameHead, HEAD_BYTES, PREAMBLE_BYTES, Preamble, RawHead, Role, VERSIONS},
    ledger::Right,
    message::{DiskShape, FromSource, FromTarget, MESSAGE_HEAD_BYTES, Message, MessageHead, NetShape, Shape},
    page::{self, Form, Key, Packer, Unpacker, Verdict},
};

use crate::input::Input;

const KEY: Key = Key([1; 32]);

thread_local! {
    static UNPACKER: RefCell<Unpacker> = RefCell::new(Unpacker::new().expect("memory for zstd"));
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() {
        0 => frame_put_right(input),
        1 => frame(input.rest(), 0, 1),
        2 => preamble(input.rest()),
        3 => message::<FromSource>(&framed(input.rest())),
        4 => message::<FromTarget>(&framed(input.rest())),
        _ => {
            message::<FromSource>(input.rest());
        }
    }
}

/// A checksum hides what lies behind it from a fuzzer that cannot compute one.
fn frame_put_right(mut input: Input<'_>) {
    let streams = usize::from(input.u8() % 16) + 1;
    let stream = usize::from(input.u8()) % streams;
    let mut bytes = input.rest().to_vec();
    let Some(Ok(raw)) = bytes.first_chunk::<HEAD_BYTES>().map(RawHead::from_bytes) else { return };
    let Some(entries) = bytes.get(HEAD_BYTES..HEAD_BYTES + raw.entries_bytes()) else { return };
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..HEAD_BYTES - 4]);
    crc.update(entries);
    bytes[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&crc.finalize().to_le_bytes());
    frame(&bytes, stream, streams);
}

fn frame(bytes: &[u8], stream: usize, streams: usize) {
    let Some(Ok(raw)) = bytes.first_chunk::<HEAD_BYTES>().map(RawHead::from_bytes) else { return };
    assert!(raw.frame_bytes() <= FRAME_BYTES_MAX, "a frame of {} bytes was let in", raw.frame_bytes());
    let Some((entry_bytes, rest)) = bytes[HEAD_BYTES..].split_at_checked(raw.entries_bytes()) else { return };
    let Ok(entries) = raw.entries(entry_bytes, stream, streams) else { return };
    assert!(entries.len() as u64 <= RUN_UNITS);
    for pair in entries.windows(2) {
        assert!(pair[0].unit < pair[1].unit, "{entries:?}");
    }
    let Some(body) = rest.get(..raw.body_bytes()) else { return };

    let mut again = Vec::new();
    raw.head.write(&entries, raw.compressed.then_some(body.len()), body, &mut again);
    assert!(bytes[..HEAD_BYTES + entry_bytes.len()] == again[..HEAD_BYTES + entry_bytes.len()] || !is_canonical(entry_bytes));
    let unpacked = UNPACKER.with_borrow_mut(|unpacker| unpacker.unpack(&KEY, &entries, raw.compressed, body.to_vec()));
    if let Ok(units) = unpacked {
        let wanted = entries.iter().filter(|entry| matches!(entry.content, Content::Bytes(_))).count();
        assert_eq!(units.len(), wanted * UNIT_BYTES);
    }
}

/// Whether zero ranges carry the zero digest that is written for them; readers ignore it.
fn is_canonical(entries: &[u8]) -> bool {
    entries.chunks_exact(24).all(|entry| entry[0] != 0 || entry[8..].iter().all(|byte| *byte == 0))
}

fn preamble(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<PREAMBLE_BYTES>() else { return };
    if let Ok(preamble) = Preamble::from_bytes(bytes) {
        assert_eq!(preamble.to_bytes(), *bytes);
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], &crc32fast::hash(body).to_le_bytes(), body].concat()
}

fn message<M: Message + PartialEq + Debug>(bytes: &[u8]) {
    let Some((head, body)) = bytes.split_first_chunk::<MESSAGE_HEAD_BYTES>() else { return };
    let Ok(head) = MessageHead::from_bytes(head) else { return };
    let Ok(message) = head.read::<M>(body) else { return };
    let again = message.to_frame();
    let (head, body) = again.split_first_chunk::<MESSAGE_HEAD_BYTES>().expect("a written message has a head");
    let head = MessageHead::from_bytes(head).expect("a written message has a sound head");
    assert_eq!(head.read::<M>(body), Ok(message));
}

/// Frames of each kind of content, and every message.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = frames().into_iter().map(|frame| [&[0, 0, 0][..], &frame].concat()).collect();
    seeds.push([&[1][..], &frames()[0]].concat());
    let role = Preamble { speaks: VERSIONS, role: Role::Stream(1), streams: 2, move_id: MoveId([8; 16]) };
    seeds.push([&[2][..], &role.to_bytes()].concat());
    let offer = source_messages().swap_remove(0).to_frame();
    seeds.push([&[5][..], &offer].concat());
    seeds.extend(source_messages().iter().map(|message| [&[3][..], &message.to_frame()[MESSAGE_HEAD_BYTES..]].concat()));
    seeds.extend(target_messages().iter().map(|message| [&[4][..], &message.to_frame()[MESSAGE_HEAD_BYTES..]].concat()));
    seeds
}

fn frames() -> Vec<Vec<u8>> {
    let mut packer = Packer::new().expect("memory for zstd");
    // A unit of zeros, one of text, one that does not compress.
    let mut noise = 1_u32;
    let random = (0..UNIT_BYTES).map(|_| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    });
    let units: Vec<u8> = std::iter::repeat_n(0, UNIT_BYTES).chain(std::iter::repeat_n(b'a', UNIT_BYTES)).chain(random).collect();
    let form = |verdict: &Verdict, held: bool| match *verdict {
        Verdict::Zero => Form::Zero,
        Verdict::Content(digest) if held => Form::Held(digest),
        Verdict::Content(digest) => Form::Bytes(digest),
    };
    let verdicts = page::judge(&KEY, &units);
    [(vec![0, 1, 2], false), (vec![0, 1, 2], true), (vec![2], false)]
        .into_iter()
        .map(|(numbers, held): (Vec<usize>, bool)| {
            let forms: Vec<Form> = numbers.iter().map(|&number| form(&verdicts[number], held && number == 1)).collect();
            let bytes: Vec<u8> = numbers.iter().flat_map(|&number| units[number * UNIT_BYTES..][..UNIT_BYTES].to_vec()).collect();
            let numbers: Vec<u64> = numbers.into_iter().map(|number| number as u64).collect();
            let mut frame = Vec::new();
            packer.pack(FrameHead { space: Space::MEMORY, round: 1, sequence: 2 }, &numbers, &forms, &bytes, &mut frame);
            frame
        })
        .collect()
}

fn source_messages() -> Vec<FromSource> {
    let shape = Shape {
        vm: VmId([2; 16]),
        epoch: 3,
        memory_bytes: 512 << 20,
        vcpus: 2,
        nets: vec![NetShape { mac: [4; 6], vni: 5 }],
        disks: vec![DiskShape { bytes: 1 << 30, read_only: true, base: Some(BaseName([8; 32])) }],
        cpu_model: vec![6; 20],
        memory_max_bytes: None,
    };
    let record = Record { right: Right::Granted, vm: VmId([2; 16]), epoch: 4, move_id: MoveId([8; 16]) };
    vec![
        FromSource::Offer { shape, key: [7; 32] },
        FromSource::Blank { disk: 1, ranges: vec![(2, 300)] },
        FromSource::Final { frames: vec![4, 5], saved: vec![9; 40] },
        FromSource::Granted { epoch: 4, move_id: MoveId([8; 16]) },
        FromSource::Abort { reason: "no".to_owned() },
        FromSource::Resume { record },
    ]
}

fn target_messages() -> Vec<FromTarget> {
    vec![
        FromTarget::Accept { ports: vec![SocketAddrV4::new([10, 0, 0, 2].into(), 4789)], on_base: vec![true] },
        FromTarget::Refuse { reason: "no".to_owned() },
        FromTarget::Have { filter_bytes: 2, offset: 0, bytes: vec![3, 4] },
        FromTarget::Blanked,
        FromTarget::Applied { stream: 1, sequence: 2, wanted: vec![300] },
        FromTarget::Prepared { epoch: 4 },
        FromTarget::Running { epoch: 4, after_grant_us: 5 },
        FromTarget::Released { epoch: 4 },
        FromTarget::Abort { reason: "no".to_owned() },
    ]
}
