//! Where the bytes of a range lie: in which file and at which place, as far as they lie there as they are.
//!
//! imago says so layer by layer; which of the opened files a layer is, is known by where imago keeps it. What has to be computed (compressed clusters), and
//! what has no place of its own yet (clusters still to be allocated, a raw file's first bytes, what lies behind the end that imago knows of its file), is
//! left to imago itself.

use std::io;

use imago::{Mapping, Storage};

use super::Image;

/// Parts of one request at most. One that is scattered more is left to imago.
pub(crate) const PARTS_MAX: usize = 8;

/// A part of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// So many bytes of a file, at this place. 0 is the image, 1 its backing image and so on.
    File {
        /// Which file.
        file: u32,
        /// Where in it.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// So many zeros, to be read.
    Zeros {
        /// How many.
        bytes: u64,
    },
}

/// What tells an image's file from others: where imago keeps it, which is the same as long as the image is open.
pub(super) fn identity(image: &Image) -> usize {
    // Those of its backing images come first.
    image.inner().collect_storage_dependencies().last().map_or(0, |storage| std::ptr::from_ref(*storage).addr())
}

/// The parts of a range, into `parts`; false where imago has to do it. `files` are the identities of the files.
pub(super) fn find(image: &Image, files: &[usize], offset: u64, bytes: u64, writes: bool, parts: &mut Vec<Part>) -> io::Result<bool> {
    parts.clear();
    let (mut at, end) = (offset, offset + bytes);
    while at < end {
        if parts.len() == PARTS_MAX {
            return Ok(false);
        }
        let (mapping, length) = image.get_mapping(at, end - at)?;
        let length = length.min(end - at);
        match mapping {
            _ if length == 0 => return Ok(false),
            Mapping::Raw { storage, offset, writable, .. } => {
                let identity = std::ptr::from_ref(storage).addr();
                let Some(file) = files.iter().position(|file| *file == identity) else { return Ok(false) };
                // imago must not be surprised by a file that grew without it: it cuts files to what it knows.
                let is_inside = || storage.size().is_ok_and(|size| offset.checked_add(length).is_some_and(|end| end <= size));
                if writes && !(writable && file == 0 && is_inside()) {
                    return Ok(false);
                }
                parts.push(Part::File { file: file as u32, offset, bytes: length });
            }
            Mapping::Zero { .. } | Mapping::Eof { .. } if !writes => parts.push(Part::Zeros { bytes: length }),
            _ => return Ok(false),
        }
        at += length;
    }
    Ok(true)
}
