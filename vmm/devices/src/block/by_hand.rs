//! Requests carried out one at a time on the queue's thread, through a buffer of a fixed size, so that the largest costs no more memory than the smallest:
//! what imago has to do itself, and all where there is no ring.

use std::io;

use vm_memory::GuestAddress;

use super::request::{HEADER_BYTES, SEGMENT_BYTES_MAX, Work};
use crate::{
    GuestRam,
    disk::Disk,
    virtio::chain::{Chain, Cursor},
};

/// Carried at once between guest and disk: the largest segment.
pub(super) const BUFFER_BYTES: usize = SEGMENT_BYTES_MAX as usize;

static ZEROS: [u8; 4096] = [0; 4096];

/// The hands: a buffer, made when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Hands {
    buffer: Vec<u8>,
}

impl Hands {
    /// Carries out a request.
    pub(super) fn carry(&mut self, disk: &Disk, work: Work, chain: &Chain, ram: &GuestRam) -> io::Result<()> {
        match work {
            Work::Read { offset, bytes } => self.read(disk, offset, data(work, chain, ram, 0), bytes),
            Work::Write { offset, bytes } => self.write(disk, offset, data(work, chain, ram, 0), bytes),
            Work::Flush => disk.flush(),
            Work::Discard { offset, bytes } => disk.discard_at(offset, bytes),
            Work::Zero { offset, bytes } => disk.zero_at(offset, bytes),
        }
    }

    fn read(&mut self, disk: &Disk, mut offset: u64, mut into: Cursor<'_>, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        while offset < end {
            let piece = self.buffer(end - offset);
            disk.read_at(offset, piece)?;
            into.write(piece);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, disk: &Disk, mut offset: u64, mut from: Cursor<'_>, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        while offset < end {
            let piece = self.buffer(end - offset);
            from.read(piece);
            disk.write_at(offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn buffer(&mut self, bytes: u64) -> &mut [u8] {
        self.buffer.resize(BUFFER_BYTES, 0);
        &mut self.buffer[..bytes.min(BUFFER_BYTES as u64) as usize]
    }
}

/// The data of a read or write, from its byte `at` on.
pub(super) fn data<'a>(work: Work, chain: &'a Chain, ram: &'a GuestRam, at: u64) -> Cursor<'a> {
    let (mut cursor, before) = match work {
        Work::Write { .. } => (chain.reader(ram), HEADER_BYTES as u64),
        _ => (chain.writer(ram), 0),
    };
    cursor.skip(before + at);
    cursor
}

/// Where some of the data lies.
pub(super) fn pieces(work: Work, chain: &Chain, ram: &GuestRam, at: u64, bytes: u64, into: &mut Vec<(GuestAddress, u32)>) {
    into.clear();
    data(work, chain, ram, at).pieces(bytes, into);
}

/// Fills some of what is read with zeros.
pub(super) fn zeros(work: Work, chain: &Chain, ram: &GuestRam, at: u64, bytes: u64) {
    let (mut cursor, mut left) = (data(work, chain, ram, at), bytes);
    while left > 0 {
        let length = left.min(ZEROS.len() as u64);
        if cursor.write(&ZEROS[..length as usize]) == 0 {
            break;
        }
        left -= length;
    }
}
