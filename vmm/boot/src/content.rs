//! Bytes on their way into guest memory: still in a file, or unpacked in this process.
//!
//! A file's content is read when it is copied, in bounded pieces, so that an ELF kernel or an initramfs is never held twice.
//! Only an opened descriptor is used, so this works after the process is sealed.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
};

/// One read from a file: large enough that its cost vanishes, small enough to stay in the cache.
const CHUNK_BYTES: u64 = 256 * 1024;

/// Bytes of known length, in a file or in memory.
#[derive(Debug)]
pub struct Content(Place);

#[derive(Debug)]
enum Place {
    File { file: File, start: u64, bytes: u64 },
    Memory(Vec<u8>),
}

impl Content {
    /// The whole of a regular file, which stays where it is. The length is fixed now; a file that shrinks later is an error of reading.
    ///
    /// # Errors
    /// If the descriptor cannot be examined or duplicated, or is not a regular file (a pipe or a device has no length).
    pub fn from_file(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            let kind = match metadata.file_type() {
                kind if kind.is_dir() => "a directory",
                kind if kind.is_block_device() || kind.is_char_device() => "a device",
                _ => "a pipe or socket",
            };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{kind}, not a regular file")));
        }
        Ok(Self(Place::File { file: file.try_clone()?, start: 0, bytes: metadata.len() }))
    }

    /// A range of a regular file.
    ///
    /// # Errors
    /// As [`Content::from_file`], or if the range is not inside.
    pub fn from_range(file: &File, range: Range<u64>) -> io::Result<Self> {
        let whole = Self::from_file(file)?;
        let is_inside = range.start <= range.end && range.end <= whole.len();
        match whole.0 {
            Place::File { file, .. } if is_inside => Ok(Self(Place::File { file, start: range.start, bytes: range.end - range.start })),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Bytes that this process holds already.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(Place::Memory(bytes))
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.0 {
            Place::File { bytes, .. } => *bytes,
            Place::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset`.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.0 {
            Place::File { file, start, bytes } => {
                let end = offset.checked_add(buffer.len() as u64).filter(|end| end <= bytes);
                end.ok_or(io::ErrorKind::UnexpectedEof)?;
                file.read_exact_at(buffer, start + offset)
            }
            Place::Memory(bytes) => {
                let bytes = slice(bytes, offset, buffer.len() as u64)?;
                buffer.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Hands `bytes` bytes from `offset` to `take` in order, with the distance of each piece from `offset`.
    pub(crate) fn pieces<E: From<io::Error>>(
        &self,
        offset: u64,
        bytes: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.0 {
            Place::Memory(held) => take(0, slice(held, offset, bytes)?),
            Place::File { file, start, bytes: length } => {
                if offset.checked_add(bytes).is_none_or(|end| end > *length) {
                    return Err(E::from(io::ErrorKind::UnexpectedEof.into()));
                }
                let mut buffer = vec![0; CHUNK_BYTES.min(bytes) as usize];
                let mut done = 0;
                while done < bytes {
                    let piece = &mut buffer[..CHUNK_BYTES.min(bytes - done) as usize];
                    file.read_exact_at(piece, start + offset + done)?;
                    take(done, piece)?;
                    done += piece.len() as u64;
                }
                Ok(())
            }
        }
    }
}

fn slice(held: &[u8], offset: u64, bytes: u64) -> io::Result<&[u8]> {
    let start = usize::try_from(offset).ok();
    let end = offset.checked_add(bytes).and_then(|end| usize::try_from(end).ok());
    start.zip(end).and_then(|(start, end)| held.get(start..end)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
