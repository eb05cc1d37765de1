//! The bytes of a disk, read within a budget: a table that leads in circles ends in an error, whatever library walks it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    rc::Rc,
};

/// Bytes that are read of one disk at most: kernel and RAM disk at their largest, and as much again for tables.
const BYTES_MAX: u64 = 2 << 30;
/// Reads of one disk at most. A cloud image takes some thousand.
const READS_MAX: u64 = 1 << 20;
/// Small reads are served from pieces of this size...
const PIECE_BYTES: u64 = 16 << 10;
/// ...of which so many are kept.
const PIECES_MAX: usize = 32;

/// The last so many reads are remembered while a file is looked for.
const WATCHED_MAX: usize = 256;

/// A disk, by position.
pub trait ReadAt {
    /// Its size.
    fn bytes(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// If that is past the end or cannot be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let found = start.and_then(|start| self.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A disk with what may still be read of it.
pub struct Disk {
    source: Rc<dyn ReadAt>,
    bytes_left: Cell<u64>,
    reads_left: Cell<u64>,
    pieces: RefCell<VecDeque<(u64, Vec<u8>)>>,
    /// What is read, while somebody wants to know.
    watched: RefCell<Option<VecDeque<Range<u64>>>>,
    /// All that is read, if it is kept.
    trace: Option<RefCell<Vec<Range<u64>>>>,
}

impl Disk {
    pub fn new(source: Rc<dyn ReadAt>) -> Self {
        let (bytes_left, reads_left) = (Cell::new(BYTES_MAX), Cell::new(READS_MAX));
        Self { source, bytes_left, reads_left, pieces: RefCell::default(), watched: RefCell::default(), trace: None }
    }

    /// One that keeps what is read of it.
    pub fn traced(source: Rc<dyn ReadAt>) -> Self {
        Self { trace: Some(RefCell::default()), ..Self::new(source) }
    }

    /// What was read, in order of place, neighbours joined.
    pub fn trace(&self) -> Vec<Range<u64>> {
        let mut all = self.trace.as_ref().map(|trace| trace.borrow().clone()).unwrap_or_default();
        all.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = vec![];
        for range in all {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        joined
    }

    pub fn bytes(&self) -> u64 {
        self.source.bytes()
    }

    /// Does the work, and says what it read last: a small file that was read lies in one of these.
    pub fn watch<T>(&self, work: impl FnOnce() -> T) -> (T, VecDeque<Range<u64>>) {
        self.watched.replace(Some(VecDeque::new()));
        let done = work();
        (done, self.watched.take().unwrap_or_default())
    }

    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if let Some(trace) = &self.trace {
            trace.borrow_mut().push(offset..offset.saturating_add(buffer.len() as u64));
        }
        if let Some(watched) = &mut *self.watched.borrow_mut() {
            if watched.len() == WATCHED_MAX {
                watched.pop_front();
            }
            watched.push_back(offset..offset.saturating_add(buffer.len() as u64));
        }
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.bytes());
        let end = end.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the disk"))?;
        take(&self.reads_left, 1)?;
        let piece = offset - offset % PIECE_BYTES;
        if end - piece > PIECE_BYTES {
            take(&self.bytes_left, buffer.len() as u64)?;
            return self.source.read_at(offset, buffer);
        }
        let mut pieces = self.pieces.borrow_mut();
        if let Some(at) = pieces.iter().position(|(start, _)| *start == piece) {
            if at > 0
                && let Some(found) = pieces.remove(at)
            {
                pieces.push_front(found);
            }
        } else {
            let mut bytes = vec![0; PIECE_BYTES.min(self.bytes() - piece) as usize];
            take(&self.bytes_left, bytes.len() as u64)?;
            self.source.read_at(piece, &mut bytes)?;
            pieces.truncate(PIECES_MAX - 1);
            pieces.push_front((piece, bytes));
        }
        let from = (offset - piece) as usize;
        let found = pieces.front().and_then(|(_, bytes)| bytes.get(from..from + buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

fn take(left: &Cell<u64>, wanted: u64) -> io::Result<()> {
    let rest = left.get().checked_sub(wanted);
    left.set(rest.ok_or_else(|| io::Error::other("its tables lead in circles, or far more is in use than a boot loader reads"))?);
    Ok(())
}

/// Part of a disk, as libraries want it.
pub struct Window {
    disk: Rc<Disk>,
    start: u64,
    bytes: u64,
    at: u64,
}

impl Window {
    pub fn new(disk: &Rc<Disk>, start: u64, bytes: u64) -> Self {
        Self { disk: disk.clone(), start, bytes, at: 0 }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let is_inside = offset.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.bytes);
        if !is_inside {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "past the end of the partition"));
        }
        self.disk.read_at(self.start + offset, buffer)
    }
}

impl ext4_view::Ext4Read for Window {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read_at(offset, buffer)?)
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (self.bytes.saturating_sub(self.at)).min(buffer.len() as u64) as usize;
        self.read_at(self.at, &mut buffer[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// `fatfs` wants it; nothing is written.
impl Write for Window {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
