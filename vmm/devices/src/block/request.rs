//! A block request (virtio 1.3 §5.2.6), parsed once into what can be carried out without looking at the guest's numbers again.
//!
//! ```text
//! readable: type:u32 reserved:u32 sector:u64  [data to write | sector:u64 sectors:u32 flags:u32]
//! writable: [data read | id]  status:u8
//! ```

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::{
    GuestRam,
    disk::SECTOR_BYTES,
    virtio::{
        chain::{Chain, Cursor},
        ring::Broken,
    },
};

/// Most data segments of a request, told to the driver.
pub(super) const SEGMENTS_MAX: u32 = 126;
/// Largest segment, told to the driver.
pub(super) const SEGMENT_BYTES_MAX: u32 = 128 * 1024;
/// Largest read or write: what the two limits above allow.
pub(super) const REQUEST_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
/// Longest range of one discard or write-zeroes, so that it ends within the patience of a pause.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 21;

pub(super) const HEADER_BYTES: usize = 16;
const FLAG_UNMAP: u32 = 1;

/// How a request ended, as its last byte says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    Error = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a driver wants. Ranges lie within the disk and the limits above.
#[derive(Debug)]
pub(super) enum BlockRequest<'a> {
    Read {
        offset: u64,
        bytes: u64,
    },
    Write {
        offset: u64,
        bytes: u64,
    },
    Flush,
    Id {
        into: Cursor<'a>,
    },
    Discard {
        offset: u64,
        bytes: u64,
    },
    WriteZeroes {
        offset: u64,
        bytes: u64,
        unmap: bool,
    },
    /// Not to be carried out; the status says why.
    Refused(Status),
}

/// What is to be done for a request, as plain numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Read { offset: u64, bytes: u64 },
    Write { offset: u64, bytes: u64 },
    Flush,
    Discard { offset: u64, bytes: u64 },
    Zero { offset: u64, bytes: u64 },
}

impl<'a> BlockRequest<'a> {
    /// Bytes that it carries to or from the disk, or has written there.
    pub(super) fn data_bytes(&self) -> u64 {
        match self {
            Self::Read { bytes, .. } | Self::Write { bytes, .. } | Self::WriteZeroes { bytes, unmap: false, .. } => *bytes,
            Self::Flush | Self::Id { .. } | Self::Discard { .. } | Self::WriteZeroes { .. } | Self::Refused(_) => 0,
        }
    }

    /// Parses a chain. Only one without room for its header or its status is an error: there is no way to answer it.
    pub(super) fn parse(chain: &'a Chain, ram: &'a GuestRam, disk_bytes: u64) -> Result<Self, Broken> {
        let mut reader = chain.reader(ram);
        let into = chain.writer(ram);
        let mut header = [0; HEADER_BYTES];
        if reader.read(&mut header) < HEADER_BYTES {
            return Err(Broken::Request("a block request without a header"));
        }
        let Some(room) = into.left().checked_sub(1) else {
            return Err(Broken::Request("a block request without room for its status"));
        };
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = le64(&header[8..]);
        Ok(match kind {
            VIRTIO_BLK_T_IN => match data_range(sector, room, disk_bytes) {
                Some(offset) => Self::Read { offset, bytes: room },
                None => Self::Refused(Status::Error),
            },
            VIRTIO_BLK_T_OUT => match data_range(sector, reader.left(), disk_bytes) {
                Some(offset) => Self::Write { offset, bytes: reader.left() },
                None => Self::Refused(Status::Error),
            },
            VIRTIO_BLK_T_FLUSH => Self::Flush,
            VIRTIO_BLK_T_GET_ID => Self::Id { into },
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => parse_range(&mut reader, kind == VIRTIO_BLK_T_DISCARD, disk_bytes),
            _ => Self::Refused(Status::Unsupported),
        })
    }
}

/// One range per request is offered (max_discard_seg = 1, max_write_zeroes_seg = 1).
fn parse_range<'a>(reader: &mut Cursor<'a>, discard: bool, disk_bytes: u64) -> BlockRequest<'a> {
    let mut range = [0; 16];
    if reader.left() != range.len() as u64 || reader.read(&mut range) < range.len() {
        return BlockRequest::Refused(Status::Unsupported);
    }
    let sectors = u32::from_le_bytes([range[8], range[9], range[10], range[11]]);
    let flags = u32::from_le_bytes([range[12], range[13], range[14], range[15]]);
    // §5.2.6.2: unknown flags, and unmap with a discard, are unsupported.
    if flags & !FLAG_UNMAP != 0 || discard && flags != 0 {
        return BlockRequest::Refused(Status::Unsupported);
    }
    let bytes = u64::from(sectors) * SECTOR_BYTES;
    match byte_range(le64(&range), bytes, disk_bytes) {
        Some(offset) if sectors <= RANGE_SECTORS_MAX && discard => BlockRequest::Discard { offset, bytes },
        Some(offset) if sectors <= RANGE_SECTORS_MAX => BlockRequest::WriteZeroes { offset, bytes, unmap: flags & FLAG_UNMAP != 0 },
        _ => BlockRequest::Refused(Status::Error),
    }
}

fn data_range(sector: u64, bytes: u64, disk_bytes: u64) -> Option<u64> {
    (bytes.is_multiple_of(SECTOR_BYTES) && bytes <= REQUEST_BYTES_MAX).then(|| byte_range(sector, bytes, disk_bytes))?
}

fn byte_range(sector: u64, bytes: u64, disk_bytes: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_BYTES)?;
    (offset.checked_add(bytes)? <= disk_bytes).then_some(offset)
}

fn le64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
