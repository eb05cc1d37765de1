//! virtio-blk (virtio 1.3 §5.2): requests from one ring to a [`Disk`], carried out in order by one thread.
//!
//! Bytes pass through one buffer of a fixed size, so that a guest's largest request costs no more memory than its smallest.
//! Errors of the disk, a full host among them, are the guest's to see as VIRTIO_BLK_S_IOERR.

mod request;
mod saved;

#[cfg(test)]
mod tests;

use std::{io, sync::Arc, time::Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::{
    GuestRam,
    disk::{Disk, SECTOR_BYTES},
    limit::{Limit, Rate},
    virtio::{
        DeviceKind, LiveConfig, QueueEnvironment, QueueSetup, QueueState, StartError, VirtioDevice,
        chain::{Chain, Cursor},
        ring::Broken,
        single::{Answer, SingleQueue},
    },
};
use request::{BlockRequest, RANGE_SECTORS_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX, Status};
use saved::{ID_BYTES, SavedBlock};

const QUEUE_SIZES: [u16; 1] = [128];
/// Carried at once between guest and disk: the largest segment.
const BUFFER_BYTES: usize = SEGMENT_BYTES_MAX as usize;
/// Physical block of 8 sectors: the unit in which a move tracks a disk, and at least that of its files.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// What a discard should be aligned to: qcow2's usual cluster of 64 KiB.
const DISCARD_SECTORS: u32 = 128;

/// A block device.
#[derive(Debug)]
pub struct BlockDevice {
    disk: Arc<Disk>,
    id: [u8; ID_BYTES],
    queue: SingleQueue<BlockAnswers>,
}

impl BlockDevice {
    /// A device for a disk. The guest sees the last part of its name as the disk's identity, wherever it moves.
    pub fn new(disk: Arc<Disk>) -> Self {
        let mut id = [0; ID_BYTES];
        let name = disk.name().rsplit('/').next().unwrap_or_default();
        for (to, from) in id.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let limit = Limit::default();
        let answers = BlockAnswers { disk: Arc::clone(&disk), id, flush_writes: false, buffer: vec![0; BUFFER_BYTES], limit };
        Self { disk, id, queue: SingleQueue::Stopped(answers) }
    }

    /// The same device that does no more than this a second. Before its queues are started.
    pub fn limited(mut self, rate: Arc<Rate>) -> Self {
        if let SingleQueue::Stopped(answers) = &mut self.queue {
            answers.limit = Limit::new(rate);
        }
        self
    }
}

impl VirtioDevice for BlockDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_TOPOLOGY;
        common
            | if self.disk.read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        config(&self.disk)
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        None
    }

    fn start_queues(&mut self, queues: Vec<QueueSetup>, environment: QueueEnvironment) -> Result<(), StartError> {
        self.queue.start("virtio-blk", queues, &environment)
    }

    fn stop_queues(&mut self) -> Vec<(u16, QueueState)> {
        self.queue.stop()
    }

    fn save(&self) -> Vec<u8> {
        SavedBlock { id: self.id, bytes: self.disk.size_bytes(), read_only: self.disk.read_only() }.encode()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        self.id = SavedBlock::decode(saved, self.disk.size_bytes(), self.disk.read_only())?.id;
        if let SingleQueue::Stopped(answers) = &mut self.queue {
            answers.id = self.id;
        }
        Ok(())
    }
}

/// struct virtio_blk_config (§5.2.4), up to the fields of the features offered.
fn config(disk: &Disk) -> Vec<u8> {
    let mut config = Vec::with_capacity(60);
    config.extend((disk.size_bytes() / SECTOR_BYTES).to_le_bytes());
    config.extend(SEGMENT_BYTES_MAX.to_le_bytes());
    config.extend(SEGMENTS_MAX.to_le_bytes());
    config.extend([0; 4]); // geometry
    config.extend((SECTOR_BYTES as u32).to_le_bytes());
    config.extend([PHYSICAL_BLOCK_EXPONENT, 0]); // and the alignment's offset
    config.extend((1_u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes()); // smallest I/O without a read before the write
    config.extend(0_u32.to_le_bytes()); // best I/O: nothing to say
    config.extend([0, 0, 1, 0]); // writeback, unused, one queue
    for [sectors, segments, last] in [[RANGE_SECTORS_MAX, 1, DISCARD_SECTORS], [RANGE_SECTORS_MAX, 1, 1]] {
        config.extend([sectors, segments, last].map(u32::to_le_bytes).concat());
    }
    config
}

/// Carries out requests on the queue's thread.
#[derive(Debug)]
struct BlockAnswers {
    disk: Arc<Disk>,
    id: [u8; ID_BYTES],
    /// The driver will not flush (§5.2.6.2), so each write is followed by a flush.
    flush_writes: bool,
    buffer: Vec<u8>,
    limit: Limit,
}

impl Answer for BlockAnswers {
    fn not_before(&mut self) -> Option<Instant> {
        self.limit.not_before()
    }

    fn start(&mut self, features: u64) {
        self.flush_writes = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn answer(&mut self, chain: &Chain, ram: &GuestRam) -> Result<u32, Broken> {
        let request = BlockRequest::parse(chain, ram, self.disk.size_bytes())?;
        self.limit.took(request.data_bytes());
        let (status, data_bytes) = match self.execute(request) {
            Ok(done) => done,
            Err(error) => {
                log::warn!("disk {}: {error}", self.disk.name());
                (Status::Error, 0)
            }
        };
        let mut writer = chain.writer(ram);
        let data_room = writer.left() - 1;
        writer.skip(data_room);
        writer.write(&[status as u8]);
        Ok(data_bytes as u32 + 1)
    }
}

impl BlockAnswers {
    /// Carries out a request; says how it ended and how much data went to the guest.
    fn execute(&mut self, request: BlockRequest<'_>) -> io::Result<(Status, u64)> {
        let disk = &self.disk;
        match request {
            BlockRequest::Read { offset, into, bytes } => return self.read(offset, into, bytes).map(|()| (Status::Ok, bytes)),
            BlockRequest::Write { offset, from, bytes } => self.write(offset, from, bytes)?,
            BlockRequest::Flush => disk.flush()?,
            BlockRequest::Id { mut into } => {
                // The last byte of the chain is the status, whatever the driver meant to have as room for the identity.
                let room = (into.left() - 1).min(ID_BYTES as u64) as usize;
                return Ok((Status::Ok, into.write(&self.id[..room]) as u64));
            }
            BlockRequest::Discard { offset, bytes } | BlockRequest::WriteZeroes { offset, bytes, unmap: true } => {
                disk.discard_at(offset, bytes)?;
                self.flush_if_needed()?;
            }
            BlockRequest::WriteZeroes { offset, bytes, unmap: false } => {
                disk.zero_at(offset, bytes)?;
                self.flush_if_needed()?;
            }
            BlockRequest::Refused(status) => return Ok((status, 0)),
        }
        Ok((Status::Ok, 0))
    }

    fn read(&mut self, mut offset: u64, mut into: Cursor<'_>, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        while offset < end {
            let piece = &mut self.buffer[..(end - offset).min(BUFFER_BYTES as u64) as usize];
            self.disk.read_at(offset, piece)?;
            into.write(piece);
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, mut offset: u64, mut from: Cursor<'_>, bytes: u64) -> io::Result<()> {
        let end = offset + bytes;
        while offset < end {
            let piece = &mut self.buffer[..(end - offset).min(BUFFER_BYTES as u64) as usize];
            from.read(piece);
            self.disk.write_at(offset, piece)?;
            offset += piece.len() as u64;
        }
        self.flush_if_needed()
    }

    fn flush_if_needed(&self) -> io::Result<()> {
        if self.flush_writes { self.disk.flush() } else { Ok(()) }
    }
}
