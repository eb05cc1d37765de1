//! Frames of the data connections, and the preamble that opens every connection. Bytes in, checked values out; no I/O.
//!
//! ```text
//! preamble  "RBMV" highest:u8 lowest:u8 role:u8 streams:u8 move:[16]        role: stream number, 255 is control
//! frame     "RBF1" space:u16 entries:u8 flags:u8 round:u32 sequence:u64 body_bytes:u32 crc32:u32   entry* body
//! entry     kind:u8 count:u8 unit:u48 digest:[16]                           kind: 0 zero range, 1 held, 2 bytes
//! ```
//! All little endian. The CRC covers head and entries (it guards numbers; contents are guarded by their digests). The body
//! is the bytes of the entries of kind 2 in their order, as one zstd frame if flag 1 is set.

use std::cmp::Ordering;

use rebec_vmm_api::Versions;

use crate::{
    bytes::array,
    digest::Digest,
    ledger::MoveId,
    unit::{BATCH_BYTES, RUN_UNITS, STREAMS_MAX, Space, UNIT_BYTES, stream_of},
};

/// What this program speaks of the protocol of a move: preamble, messages, frames, saved state, all under one number.
pub const VERSIONS: Versions = Versions::new(3, 4);
/// The first of them in which a machine may have more memory than it begins with.
pub const ROOM_SINCE: u16 = 4;
/// Bytes of a preamble.
pub const PREAMBLE_BYTES: usize = 24;
/// Bytes of a frame's head.
pub const HEAD_BYTES: usize = 28;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 24;
/// Longest frame.
pub const FRAME_BYTES_MAX: usize = HEAD_BYTES + RUN_UNITS as usize * ENTRY_BYTES + BATCH_BYTES;

const PREAMBLE_MAGIC: [u8; 4] = *b"RBMV";
const FRAME_MAGIC: [u8; 4] = *b"RBF1";
const ROLE_CONTROL: u8 = 255;
const FLAG_COMPRESSED: u8 = 1;
const UNIT_MASK: u64 = (1 << 48) - 1;

/// Why bytes were refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Not this protocol at all.
    #[error("the peer does not speak Rebec's move protocol")]
    Foreign,
    /// Versions of it of which none is this program's.
    #[error("the other side's VMM speaks version {theirs} of the move protocol, this one {ours}: {}", next_step(*theirs, *ours))]
    Version {
        /// What the other side speaks.
        theirs: Versions,
        /// What this side does.
        ours: Versions,
    },
    /// A head or entries that make no sense.
    #[error("a frame is malformed: {0}")]
    Malformed(&'static str),
    /// The body is not what the entries say.
    #[error("the body of a frame does not unpack to its units")]
    Body,
    /// A unit is not what its digest names.
    #[error("unit {0} does not match its digest")]
    Digest(u64),
}

/// Which side is behind.
fn next_step(theirs: Versions, ours: Versions) -> &'static str {
    match ours.age(theirs) {
        Ordering::Less => "upgrade this host, start the VM anew and move it then",
        Ordering::Equal | Ordering::Greater => "upgrade the other host, and move the VM then",
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Messages, both ways.
    Control,
    /// Frames, towards the target.
    Stream(u8),
}

/// The first bytes on every connection, from the source; on the control connection the target answers with its own, in which it has chosen
/// a version. These bytes are the same in every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// What its sender speaks; of an answer, the one version that was chosen, or, where none is common, what the target speaks.
    pub speaks: Versions,
    /// What the connection is for.
    pub role: Role,
    /// How many data connections there are in all.
    pub streams: u8,
    /// Which move.
    pub move_id: MoveId,
}

impl Preamble {
    /// The bytes that travel.
    pub fn to_bytes(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..4].copy_from_slice(&PREAMBLE_MAGIC);
        // There are no 255 versions: each program speaks two at most.
        bytes[4] = self.speaks.highest as u8;
        bytes[5] = self.speaks.lowest as u8;
        bytes[6] = match self.role {
            Role::Control => ROLE_CONTROL,
            Role::Stream(number) => number,
        };
        bytes[7] = self.streams;
        bytes[8..].copy_from_slice(&self.move_id.0);
        bytes
    }

    /// Reads what travelled.
    ///
    /// # Errors
    /// For another protocol, or numbers out of range.
    pub fn from_bytes(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, FrameError> {
        if bytes[..4] != PREAMBLE_MAGIC {
            return Err(FrameError::Foreign);
        }
        let speaks = Versions::new(bytes[5].into(), bytes[4].into());
        if !speaks.is_sound() {
            return Err(FrameError::Malformed("versions from the greatest to the least"));
        }
        let streams = bytes[7];
        if !(1..=STREAMS_MAX).contains(&usize::from(streams)) {
            return Err(FrameError::Malformed("stream count out of range"));
        }
        let role = match bytes[6] {
            ROLE_CONTROL => Role::Control,
            number if number < streams => Role::Stream(number),
            _ => return Err(FrameError::Malformed("stream number out of range")),
        };
        Ok(Self { speaks, role, streams, move_id: MoveId(array(bytes, 8)) })
    }

    /// The version that both sides speak.
    ///
    /// # Errors
    /// Where there is none.
    pub fn agree(&self, ours: Versions) -> Result<u16, FrameError> {
        ours.common(self.speaks).ok_or(FrameError::Version { theirs: self.speaks, ours })
    }
}

/// What a frame's entry says about its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// This unit and the following ones, `count` in all, are zero. They lie in one run.
    Zero {
        /// How many.
        count: u8,
    },
    /// The target is believed to hold it.
    Held(Digest),
    /// Its bytes are in the body.
    Bytes(Digest),
}

/// One unit (or zero range) of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its number; the first, for a range.
    pub unit: u64,
    /// What it holds.
    pub content: Content,
}

/// The fixed part of a frame that the engine chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Where its units belong.
    pub space: Space,
    /// The pass it belongs to, from 0.
    pub round: u32,
    /// Its place on its stream, from 0, without gaps.
    pub sequence: u64,
}

/// A head as read from the wire: how much follows is known, and bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawHead {
    /// What the engine wants to know.
    pub head: FrameHead,
    /// Whether the body is a zstd frame.
    pub compressed: bool,
    entries: usize,
    body_bytes: usize,
    bytes: [u8; HEAD_BYTES],
}

impl FrameHead {
    /// Appends a whole frame to `out`; `compressed` is the body's length if it is compressed.
    pub fn write(self, entries: &[Entry], compressed: Option<usize>, body: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&FRAME_MAGIC);
        out.extend_from_slice(&self.space.number().to_le_bytes());
        out.push(entries.len() as u8);
        out.push(if compressed.is_some() { FLAG_COMPRESSED } else { 0 });
        out.extend_from_slice(&self.round.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        let crc_at = out.len();
        out.extend_from_slice(&[0; 4]);
        for entry in entries {
            let (kind, count, digest) = match entry.content {
                Content::Zero { count } => (0, count, [0; 16]),
                Content::Held(digest) => (1, 1, digest.0),
                Content::Bytes(digest) => (2, 1, digest.0),
            };
            out.extend_from_slice(&(kind | u64::from(count) << 8 | entry.unit << 16).to_le_bytes());
            out.extend_from_slice(&digest);
        }
        let crc = checksum(&out[start..crc_at], &out[crc_at + 4..]);
        out[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(body);
    }
}

impl RawHead {
    /// Reads a frame's head.
    ///
    /// # Errors
    /// When it is not one, or names more than a frame may hold.
    pub fn from_bytes(bytes: &[u8; HEAD_BYTES]) -> Result<Self, FrameError> {
        if bytes[..4] != FRAME_MAGIC {
            return Err(FrameError::Malformed("no frame begins here"));
        }
        let space = Space::from_number(u16::from_le_bytes(array(bytes, 4))).ok_or(FrameError::Malformed("no such space"))?;
        let entries = usize::from(bytes[6]);
        if !(1..=RUN_UNITS as usize).contains(&entries) {
            return Err(FrameError::Malformed("entry count out of range"));
        }
        if bytes[7] & !FLAG_COMPRESSED != 0 {
            return Err(FrameError::Malformed("unknown flag"));
        }
        let round = u32::from_le_bytes(array(bytes, 8));
        let sequence = u64::from_le_bytes(array(bytes, 12));
        let body_bytes = u32::from_le_bytes(array(bytes, 20)) as usize;
        if body_bytes > entries * UNIT_BYTES {
            return Err(FrameError::Malformed("body too long"));
        }
        let compressed = bytes[7] & FLAG_COMPRESSED != 0;
        Ok(Self { head: FrameHead { space, round, sequence }, compressed, entries, body_bytes, bytes: *bytes })
    }

    /// Bytes of the entries, which follow the head.
    pub fn entries_bytes(&self) -> usize {
        self.entries * ENTRY_BYTES
    }

    /// Bytes of the body, which follow the entries.
    pub fn body_bytes(&self) -> usize {
        self.body_bytes
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        HEAD_BYTES + self.entries_bytes() + self.body_bytes
    }

    /// Reads the entries of a frame that came on `stream` of `streams`.
    ///
    /// # Errors
    /// When the checksum is wrong, units are not ascending, do not belong on this stream or are too many, or the body's length cannot be right.
    pub fn entries(&self, bytes: &[u8], stream: usize, streams: usize) -> Result<Vec<Entry>, FrameError> {
        if bytes.len() != self.entries_bytes()
            || checksum(&self.bytes[..HEAD_BYTES - 4], bytes) != u32::from_le_bytes(array(&self.bytes, 24))
        {
            return Err(FrameError::Malformed("checksum"));
        }
        let entries: Vec<Entry> = bytes.chunks_exact(ENTRY_BYTES).map(read_entry).collect::<Result<_, _>>()?;
        let (mut next, mut units, mut with_bytes) = (0, 0, 0);
        for entry in &entries {
            let count = match entry.content {
                Content::Zero { count } => u64::from(count),
                Content::Held(_) => 1,
                Content::Bytes(_) => {
                    with_bytes += 1;
                    1
                }
            };
            let last = entry.unit + count.max(1) - 1;
            if count == 0 || entry.unit < next || last / RUN_UNITS != entry.unit / RUN_UNITS {
                return Err(FrameError::Malformed("units out of order"));
            }
            if stream_of(entry.unit, streams) != stream {
                return Err(FrameError::Malformed("a unit on another unit's stream"));
            }
            next = last + 1;
            units += count;
        }
        if units > RUN_UNITS {
            return Err(FrameError::Malformed("too many units"));
        }
        let full = with_bytes * UNIT_BYTES;
        let fits = if self.compressed { self.body_bytes > 0 && self.body_bytes < full } else { self.body_bytes == full };
        if fits { Ok(entries) } else { Err(FrameError::Malformed("body length")) }
    }
}

fn read_entry(bytes: &[u8]) -> Result<Entry, FrameError> {
    let word = u64::from_le_bytes(array(bytes, 0));
    let digest = Digest(array(bytes, 8));
    let content = match (word as u8, (word >> 8) as u8) {
        (0, count) => Content::Zero { count },
        (1, 1) => Content::Held(digest),
        (2, 1) => Content::Bytes(digest),
        _ => return Err(FrameError::Malformed("unknown kind of entry")),
    };
    Ok(Entry { unit: word >> 16 & UNIT_MASK, content })
}

fn checksum(head: &[u8], entries: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(entries);
    crc.finalize()
}
