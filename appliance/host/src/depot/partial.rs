//! The file of a part that is on its way. One flight has it open; what comes is written in large pieces, by threads that may block.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
};

use bytes::Bytes;
use rebec_book::record::PartRef;

use super::shelf::Shelf;

/// Gathered before it is written.
const WRITE_BYTES: usize = 1 << 20;

/// The file.
pub struct Partial {
    /// None after a failed write.
    file: Option<File>,
    /// Bytes that it has, also those that are not written yet.
    pub at: u64,
    pending: Vec<Bytes>,
    pending_bytes: usize,
}

impl Partial {
    /// Opens or makes it.
    pub fn open(shelf: &Shelf, part: &PartRef) -> io::Result<Self> {
        let mut options = File::options();
        let mut file = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(shelf.partial(part))?;
        if file.metadata()?.len() > part.bytes {
            file.set_len(0)?;
        }
        let at = file.seek(SeekFrom::End(0))?;
        Ok(Self { file: Some(file), at, pending: vec![], pending_bytes: 0 })
    }

    /// Takes what has come. Whether it should be written now.
    pub fn push(&mut self, piece: Bytes) -> bool {
        self.at += piece.len() as u64;
        self.pending_bytes += piece.len();
        self.pending.push(piece);
        self.pending_bytes >= WRITE_BYTES
    }

    /// Writes what was taken.
    pub async fn flush(&mut self) -> io::Result<()> {
        let (pieces, mut file) = (std::mem::take(&mut self.pending), self.take()?);
        self.pending_bytes = 0;
        let write = move || -> io::Result<File> {
            for piece in pieces {
                file.write_all(&piece)?;
            }
            Ok(file)
        };
        self.file = Some(tokio::task::spawn_blocking(write).await??);
        Ok(())
    }

    /// Forgets all after a byte.
    pub async fn cut(&mut self, at: u64) -> io::Result<()> {
        self.flush().await?;
        if let Some(file) = &mut self.file {
            file.set_len(at)?;
            self.at = file.seek(SeekFrom::Start(at))?;
        }
        Ok(())
    }

    /// The file alone: nothing else writes there any more.
    pub fn into_file(mut self) -> io::Result<File> {
        self.take()
    }

    fn take(&mut self) -> io::Result<File> {
        self.file.take().ok_or_else(|| io::Error::other("an earlier write of it failed"))
    }
}
