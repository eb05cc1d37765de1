//! Data connections: one worker thread each. At the source it copies, judges, packs and writes; at the target it reads,
//! unpacks, verifies and applies. Both do what the engine says, one batch after another.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::TcpStream,
    ops::Range,
    sync::mpsc::{Receiver, SyncSender},
};

use anyhow::{Context, Result};
use rebec_migrate::{
    SourceInput, Space, TargetInput, UNIT_BYTES,
    frame::{Content, Entry, FrameHead, HEAD_BYTES, RawHead},
    index::{Holder, Place},
    page::{self, Digest, Key, Packer, Unpacker},
    source::{BatchId, ReadBatch, SendBatch},
    unit::BATCH_BYTES,
};

use super::{donor::DonorHandle, spaces::Spaces};

/// What the source's engine wants of a stream's worker.
pub enum Work {
    Read(ReadBatch),
    Send(SendBatch),
}

/// The source's worker of one stream.
pub struct SendWorker {
    pub spaces: Spaces,
    pub key: Key,
    pub stream: TcpStream,
    pub work: Receiver<Work>,
    pub events: SyncSender<SourceInput>,
}

impl SendWorker {
    /// Works until the engine's side hangs up.
    pub fn run(self) {
        if let Err(error) = self.work() {
            // Nobody listens any more when the move is over.
            self.events.send(SourceInput::Failed(format!("{error:#}"))).unwrap_or_default();
        }
    }

    fn work(&self) -> Result<()> {
        let mut packer = Packer::new().context("zstd")?;
        let mut held: VecDeque<(BatchId, Vec<u64>, Vec<u8>)> = VecDeque::new();
        let mut spare: Vec<Vec<u8>> = vec![];
        let mut frame = Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 8);
        while let Ok(work) = self.work.recv() {
            let input = match work {
                Work::Read(batch) => {
                    let mut copy = spare.pop().unwrap_or_default();
                    self.spaces.read(batch.space, &batch.units, &mut copy)?;
                    let verdicts = page::judge(&self.key, &copy);
                    held.push_back((batch.id, batch.units, copy));
                    SourceInput::Prepared { id: batch.id, verdicts }
                }
                Work::Send(batch) => {
                    let (id, units, copy) = held.pop_front().context("invariant: batches are sent in the order they were read")?;
                    let Some(head) = batch.head.filter(|_| id == batch.id) else {
                        spare.push(copy);
                        continue;
                    };
                    frame.clear();
                    let packed = packer.pack(head, &units, &batch.forms, &copy, &mut frame);
                    spare.push(copy);
                    (&self.stream).write_all(&frame).context("write a stream")?;
                    SourceInput::Sent { id, bytes: frame.len() as u64, packed }
                }
            };
            if self.events.send(input).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The target's worker of one stream.
pub struct ReceiveWorker {
    pub spaces: Spaces,
    pub key: Key,
    pub number: usize,
    pub streams: usize,
    pub stream: TcpStream,
    pub places: Receiver<Vec<Option<Place>>>,
    pub donors: Vec<DonorHandle>,
    pub events: SyncSender<TargetInput>,
}

/// A frame whose entries are checked; its units are not.
struct Frame {
    head: FrameHead,
    compressed: bool,
    entries: Vec<Entry>,
    body: Vec<u8>,
}

impl ReceiveWorker {
    /// Works until the stream or the engine's side ends.
    pub fn run(self) {
        if let Err(error) = self.work() {
            self.events.send(TargetInput::Failed(format!("stream {}: {error:#}", self.number))).unwrap_or_default();
        }
    }

    fn work(&self) -> Result<()> {
        let mut unpacker = Unpacker::new().context("zstd")?;
        loop {
            let frame = self.read_frame()?;
            let input = TargetInput::Frame { stream: self.number, head: frame.head, entries: frame.entries.clone() };
            if self.events.send(input).is_err() {
                return Ok(());
            }
            // Unpacking and verifying need no decision, so they overlap with the engine's.
            let units = unpacker.unpack(&self.key, &frame.entries, frame.compressed, frame.body)?;
            let Ok(places) = self.places.recv() else { return Ok(()) };
            let missed = self.apply(frame.head.space, &frame.entries, &units, &places)?;
            if self.events.send(TargetInput::Applied { stream: self.number, missed }).is_err() {
                return Ok(());
            }
        }
    }

    fn read_frame(&self) -> Result<Frame> {
        let mut stream = &self.stream;
        let mut head = [0; HEAD_BYTES];
        stream.read_exact(&mut head).context("closed by the source")?;
        let raw = RawHead::from_bytes(&head)?;
        let mut entries = vec![0; raw.entries_bytes()];
        stream.read_exact(&mut entries).context("closed within a frame")?;
        let entries = raw.entries(&entries, self.number, self.streams)?;
        let mut body = vec![0; raw.body_bytes()];
        stream.read_exact(&mut body).context("closed within a frame")?;
        Ok(Frame { head: raw.head, compressed: raw.compressed, entries, body })
    }

    /// Writes the frame's units; the numbers of those whose content was not found.
    fn apply(&self, space: Space, entries: &[Entry], units: &[u8], places: &[Option<Place>]) -> Result<Vec<u64>> {
        let lent = self.borrow(places);
        let mut with_bytes = units.chunks_exact(UNIT_BYTES);
        let mut missed = vec![];
        for ((entry, place), lent) in entries.iter().zip(places).zip(lent) {
            match entry.content {
                Content::Zero { count } => self.spaces.clear(space, zero_range(entry.unit, count))?,
                Content::Bytes(_) => {
                    let bytes = with_bytes.next().context("invariant: unpacked what the entries name")?;
                    self.spaces.write(space, entry.unit, bytes)?;
                }
                Content::Held(digest) if self.is_there(space, entry.unit, digest)? => {}
                Content::Held(digest) => match self.find(digest, *place, lent)? {
                    Some(copy) if !self.is_read_only(space) => self.spaces.write(space, entry.unit, &copy)?,
                    _ => missed.push(entry.unit),
                },
            }
        }
        Ok(missed)
    }

    /// A disk may hold the content in its place already; memory is fresh, and looking at it would populate it.
    fn is_there(&self, space: Space, unit: u64, digest: Digest) -> Result<bool> {
        if space == Space::MEMORY {
            return Ok(false);
        }
        let mut copy = vec![];
        self.spaces.read(space, &[unit], &mut copy)?;
        Ok(page::digest(&self.key, &copy) == digest)
    }

    fn is_read_only(&self, space: Space) -> bool {
        space.disk_index().and_then(|index| self.spaces.disks.get(index)).is_some_and(|disk| disk.read_only())
    }

    /// A verified copy from where the engine saw the content.
    fn find(&self, digest: Digest, place: Option<Place>, lent: Option<Vec<u8>>) -> Result<Option<Vec<u8>>> {
        let copy = match place {
            None => None,
            Some(Place { holder: Holder::Donor(_), .. }) => lent,
            Some(Place { holder: Holder::Memory, unit }) => Some(self.copy(Space::MEMORY, unit)?),
            Some(Place { holder: Holder::Disk(disk), unit }) => Some(self.copy(Space::disk(usize::from(disk)), unit)?),
        };
        Ok(copy.filter(|copy| page::digest(&self.key, copy) == digest))
    }

    fn copy(&self, space: Space, unit: u64) -> Result<Vec<u8>> {
        let mut copy = vec![];
        self.spaces.read(space, &[unit], &mut copy)?;
        Ok(copy)
    }

    /// Copies from donors, one request to each for the whole frame. A donor that is gone lends nothing.
    fn borrow(&self, places: &[Option<Place>]) -> Vec<Option<Vec<u8>>> {
        let mut lent = vec![None; places.len()];
        for (number, donor) in (0..).zip(&self.donors) {
            let of_donor = |place: &Option<Place>| place.filter(|place| place.holder == Holder::Donor(number)).map(|place| place.unit);
            let wanted: Vec<(usize, u64)> = places.iter().enumerate().filter_map(|(at, place)| Some((at, of_donor(place)?))).collect();
            if wanted.is_empty() {
                continue;
            }
            let Some(copies) = donor.pages(wanted.iter().map(|&(_, unit)| unit).collect()) else { continue };
            for ((at, _), copy) in wanted.into_iter().zip(copies.chunks_exact(UNIT_BYTES)) {
                lent[at] = Some(copy.to_vec());
            }
        }
        lent
    }
}

fn zero_range(unit: u64, count: u8) -> Range<u64> {
    unit..unit + u64::from(count)
}
