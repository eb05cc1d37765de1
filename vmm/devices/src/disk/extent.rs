//! What a range of a disk holds, asked of the image's tables and, for a raw image, of the host's file system.

use std::{fs::File, io, ops::Range};

use imago::{Mapping, ShallowMapping};
use rustix::fs::{SeekFrom, seek};

use super::Image;

/// What a range holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that only reading tells, in this image or a backing one.
    Data,
    /// Zeros, whether written down as such or never written.
    Zero,
}

/// A range of a disk of one kind. The next one may be of the same kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Bytes of the virtual disk, never empty.
    pub range: Range<u64>,
    /// What they hold.
    pub kind: ExtentKind,
    /// Whether the image itself says nothing of them, and its backing image shows through.
    pub is_backing: bool,
}

pub(super) fn find(image: &Image, raw: Option<&File>, offset: u64, end: u64) -> io::Result<Extent> {
    if let Some(file) = raw {
        return find_in_file(file, offset, end);
    }
    let (own, own_length) = image.get_shallow_mapping(offset, end - offset)?;
    let (mapping, length) = image.get_mapping(offset, own_length)?;
    // A mapping of no length would loop for ever: take the rest as one piece of the image's own data instead.
    if length == 0 {
        return Ok(Extent { range: offset..end, kind: ExtentKind::Data, is_backing: false });
    }
    let kind = match mapping {
        Mapping::Zero { .. } | Mapping::Eof { .. } => ExtentKind::Zero,
        _ => ExtentKind::Data,
    };
    Ok(Extent { range: offset..offset + length.min(own_length), kind, is_backing: matches!(own, ShallowMapping::Indirect { .. }) })
}

fn find_in_file(file: &File, offset: u64, end: u64) -> io::Result<Extent> {
    let data = match seek(file, SeekFrom::Data(offset)) {
        Ok(at) => at.min(end),
        // No data after this offset.
        Err(rustix::io::Errno::NXIO) => end,
        // A file system or device that does not know: all of it is data.
        Err(_) => return Ok(Extent { range: offset..end, kind: ExtentKind::Data, is_backing: false }),
    };
    if data > offset {
        return Ok(Extent { range: offset..data, kind: ExtentKind::Zero, is_backing: false });
    }
    let hole = seek(file, SeekFrom::Hole(offset))?.clamp(offset + 1, end);
    Ok(Extent { range: offset..hole, kind: ExtentKind::Data, is_backing: false })
}
