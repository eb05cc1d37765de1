//! Messages of the control connection, and their frames. Bytes in, checked values out; no I/O.
//!
//! ```text
//! frame = length:u32 crc32:u32 bytes                 little endian; length and CRC are those of the bytes, which are postcard
//! ```
//! Both sides have sent a [`crate::frame::Preamble`] before the first message.

use std::net::SocketAddrV4;

use rebec_layout::{DISK_BYTES_MAX, PAGE_BYTES, RAM_BYTES_MAX, SLOTS, VCPUS_MAX, room_bytes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    base::BaseName,
    bytes::array,
    ledger::{MoveId, Record, VmId},
    unit::{DISKS_MAX, STREAMS_MAX, units_of},
};

/// Longest message: a saved machine of sixteen vCPUs is below 1 MiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes before each message.
pub const MESSAGE_HEAD_BYTES: usize = 8;
/// Most NICs: one for each virtio slot.
pub const NETS_MAX: usize = SLOTS;
/// Longest description of a CPU.
pub const CPU_MODEL_BYTES_MAX: usize = 64 * 1024;
/// Most ranges of one [`FromSource::Blank`].
pub const BLANK_RANGES_MAX: usize = 4096;
/// Bytes of the filter in one [`FromTarget::Have`].
pub const HAVE_BYTES_MAX: usize = 64 * 1024;
/// Longest reason.
const REASON_BYTES_MAX: usize = 4096;

/// One NIC: it must be the same at the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetShape {
    /// Its address.
    pub mac: [u8; 6],
    /// Its LAN.
    pub vni: u32,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskShape {
    /// Virtual size.
    pub bytes: u64,
    /// Whether the guest may not write it. Such a disk must already be at the target: it is compared, never written.
    pub read_only: bool,
    /// Name of the base that it stands on, where the source knows it.
    pub base: Option<BaseName>,
}

/// What a machine is, before anything of it moves. The target builds exactly this or refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The VM.
    pub vm: VmId,
    /// The epoch at which the source holds it.
    pub epoch: u64,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// NICs in order.
    pub nets: Vec<NetShape>,
    /// Disks in order.
    pub disks: Vec<DiskShape>,
    /// What the guest may use of the CPU; read by `rebec_kvm`.
    pub cpu_model: Vec<u8>,
    /// Most that the guest's memory may become while it runs; none, where it stays as it is. It travels in an offer of its own.
    #[serde(skip)]
    pub memory_max_bytes: Option<u64>,
}

/// What the source says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSource {
    /// The machine that wants to come, and the key of this move's digests.
    Offer {
        /// What it is.
        shape: Shape,
        /// Key of the wire digests.
        key: [u8; 32],
    },
    /// These units of a disk are zero (answered by [`FromTarget::Blanked`] before any frame is sent).
    Blank {
        /// Which disk.
        disk: u8,
        /// First unit and count, ascending.
        ranges: Vec<(u64, u64)>,
    },
    /// The VM is paused and nothing follows: how many frames each stream carried in all, and the state of the machine.
    Final {
        /// Frames of each stream.
        frames: Vec<u64>,
        /// `SavedMachine` bytes.
        saved: Vec<u8>,
    },
    /// The target may run the VM at this epoch. Durable at the source before it is sent.
    Granted {
        /// The new epoch.
        epoch: u64,
        /// The move that it is granted to.
        move_id: MoveId,
    },
    /// The source runs on and will never grant this move.
    Abort {
        /// Why.
        reason: String,
    },
    /// The first message after a cut: the source's ledger.
    Resume {
        /// Its last record.
        record: Record,
    },
    /// An offer of a machine whose memory changes while it runs. From version 4 on.
    OfferWithRoom {
        /// What it is.
        shape: Shape,
        /// Key of the wire digests.
        key: [u8; 32],
        /// Most that its memory may become.
        memory_max_bytes: u64,
    },
}

/// What the target says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromTarget {
    /// The machine is built. What follows until [`FromTarget::Have`] is complete is the index.
    Accept {
        /// Where each NIC's port listens, in order: the source sends late frames there once the VM has moved.
        ports: Vec<SocketAddrV4>,
        /// For each disk, whether it is a new layer on the base that the source named: what the VM never wrote is there.
        on_base: Vec<bool>,
    },
    /// It cannot be built here, or this target is taken.
    Refuse {
        /// Why, and what to do.
        reason: String,
    },
    /// A piece of the filter over the contents that the target holds.
    Have {
        /// Bytes of the whole filter: 0 or a power of two. The piece that completes it is the last.
        filter_bytes: u32,
        /// Where this piece belongs.
        offset: u32,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// A [`FromSource::Blank`] is applied.
    Blanked,
    /// A frame is verified and applied.
    Applied {
        /// Its stream.
        stream: u8,
        /// Its place on the stream.
        sequence: u64,
        /// Units that came as digests and are not held after all: send their bytes.
        wanted: Vec<u64>,
    },
    /// Memory, disks and state are complete and verified; durable before it is sent.
    Prepared {
        /// The epoch that is asked for.
        epoch: u64,
    },
    /// The VM runs here; durable before its first instruction.
    Running {
        /// Its epoch.
        epoch: u64,
        /// From the grant's arrival to the first vCPU running; 0 in an answer to [`FromSource::Resume`].
        after_grant_us: u64,
    },
    /// It has not run one instruction here and never will; durable before it is sent.
    Released {
        /// The epoch that is given back.
        epoch: u64,
    },
    /// The target gave up before it was prepared.
    Abort {
        /// Why.
        reason: String,
    },
}

/// Why a message was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageError {
    /// A length past the limit.
    #[error("a message of {0} bytes exceeds the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// Bytes that are no message.
    #[error("a message is malformed")]
    Malformed,
    /// A number out of range.
    #[error("a message is refused: {0}")]
    Refused(&'static str),
}

/// A message of one direction.
pub trait Message: Serialize + DeserializeOwned {
    /// Checks what the form alone does not.
    ///
    /// # Errors
    /// When a number is out of range.
    fn check(&self) -> Result<(), MessageError>;

    /// The framed bytes that travel.
    fn to_frame(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(self).expect("invariant: messages have known lengths");
        let mut frame = (body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        frame.extend_from_slice(&body);
        frame
    }
}

/// The head of a framed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageHead {
    length: usize,
    crc: u32,
}

impl MessageHead {
    /// Reads a head.
    ///
    /// # Errors
    /// When it announces more than a message may have.
    pub fn from_bytes(bytes: &[u8; MESSAGE_HEAD_BYTES]) -> Result<Self, MessageError> {
        let length = u32::from_le_bytes(array(bytes, 0)) as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLong(length));
        }
        Ok(Self { length, crc: u32::from_le_bytes(array(bytes, 4)) })
    }

    /// Bytes that follow.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Reads the message that these bytes are.
    ///
    /// # Errors
    /// When the checksum is wrong, bytes are left over, or a number is out of range.
    pub fn read<M: Message>(&self, bytes: &[u8]) -> Result<M, MessageError> {
        if bytes.len() != self.length || crc32fast::hash(bytes) != self.crc {
            return Err(MessageError::Malformed);
        }
        let (message, rest) = postcard::take_from_bytes::<M>(bytes).map_err(|_| MessageError::Malformed)?;
        if !rest.is_empty() {
            return Err(MessageError::Malformed);
        }
        message.check()?;
        Ok(message)
    }
}

impl FromSource {
    /// The offer of a machine, as it has to travel.
    pub fn offer(shape: Shape, key: [u8; 32]) -> Self {
        match shape.memory_max_bytes {
            None => Self::Offer { shape, key },
            Some(memory_max_bytes) => Self::OfferWithRoom { shape, key, memory_max_bytes },
        }
    }
}

fn limit(within: bool, what: &'static str) -> Result<(), MessageError> {
    if within { Ok(()) } else { Err(MessageError::Refused(what)) }
}

impl Shape {
    /// Units of its memory, with the room for what may come.
    pub fn memory_units(&self) -> u64 {
        units_of(self.memory_bytes + self.memory_max_bytes.map_or(0, |max| room_bytes(self.memory_bytes, max)))
    }

    fn check(&self) -> Result<(), MessageError> {
        limit(self.epoch < u64::MAX - 2, "epoch out of range")?;
        limit(
            self.memory_bytes.is_multiple_of(PAGE_BYTES) && (PAGE_BYTES..=RAM_BYTES_MAX).contains(&self.memory_bytes),
            "memory size out of range",
        )?;
        limit((1..=VCPUS_MAX).contains(&self.vcpus), "vCPU count out of range")?;
        limit(self.nets.len() <= NETS_MAX, "too many NICs")?;
        limit(self.disks.len() <= DISKS_MAX, "too many disks")?;
        limit(self.disks.iter().all(|disk| disk.bytes <= DISK_BYTES_MAX), "disk too large")?;
        limit(self.cpu_model.len() <= CPU_MODEL_BYTES_MAX, "CPU description too long")
    }
}

impl Message for FromSource {
    fn check(&self) -> Result<(), MessageError> {
        match self {
            Self::Offer { shape, .. } => shape.check(),
            Self::OfferWithRoom { shape, memory_max_bytes: max, .. } => {
                shape.check()?;
                let fits = max.is_multiple_of(PAGE_BYTES) && (shape.memory_bytes..=RAM_BYTES_MAX).contains(max);
                limit(fits && shape.memory_bytes + room_bytes(shape.memory_bytes, *max) <= RAM_BYTES_MAX, "memory may become too large")
            }
            Self::Blank { ranges, .. } => limit(ranges.len() <= BLANK_RANGES_MAX, "too many ranges"),
            Self::Final { frames, .. } => limit(frames.len() <= STREAMS_MAX, "too many streams"),
            Self::Abort { reason } => limit(reason.len() <= REASON_BYTES_MAX, "reason too long"),
            Self::Granted { .. } | Self::Resume { .. } => Ok(()),
        }
    }
}

impl Message for FromTarget {
    fn check(&self) -> Result<(), MessageError> {
        match self {
            Self::Refuse { reason } | Self::Abort { reason } => limit(reason.len() <= REASON_BYTES_MAX, "reason too long"),
            Self::Have { bytes, .. } => limit(bytes.len() <= HAVE_BYTES_MAX, "piece too long"),
            Self::Applied { wanted, .. } => limit(wanted.len() <= crate::unit::RUN_UNITS as usize, "too many units wanted"),
            Self::Accept { ports, on_base } => {
                limit(ports.len() <= NETS_MAX, "too many ports")?;
                limit(on_base.len() <= DISKS_MAX, "too many disks")
            }
            Self::Blanked | Self::Prepared { .. } | Self::Running { .. } | Self::Released { .. } => Ok(()),
        }
    }
}

/// Cuts a reason to what a message may carry, at a character's border.
pub fn bounded(mut reason: String) -> String {
    if reason.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX).rev().find(|&at| reason.is_char_boundary(at)).unwrap_or(0);
        reason.truncate(end);
    }
    reason
}
