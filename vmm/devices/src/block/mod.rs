//! virtio-blk (virtio 1.3 §5.2): requests from one or several rings to a [`Disk`], each ring served by a thread of its own.
//!
//! ```text
//!  ring ─► request (parsed) ─► flight (may it begin?) ─► queue ─┬─ where the bytes lie is known: disk's ring, straight between file and guest memory
//!                                                            └─ else, or without a ring: by hand, through a buffer and imago, one at a time
//! ```
//! Errors of the disk, a full host among them, are the guest's to see as VIRTIO_BLK_S_IOERR.

mod request;

mod flight;
mod transfer;

mod by_hand;
mod queue;
mod saved;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rebec_layout::DISK_QUEUES_MAX;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::{
    disk::{Disk, SECTOR_BYTES},
    limit::{Rate, SharedLimit},
    virtio::{DeviceKind, LiveConfig, QueueEnvironment, QueueSetup, QueueState, StartError, VirtioDevice, single::SingleQueue},
};
use queue::BlockQueue;
use request::{RANGE_SECTORS_MAX, SEGMENT_BYTES_MAX, SEGMENTS_MAX};
use saved::{ID_BYTES, SavedBlock};

const QUEUE_SIZE: u16 = 128;
const QUEUE_SIZES: [u16; DISK_QUEUES_MAX as usize] = [QUEUE_SIZE; DISK_QUEUES_MAX as usize];
/// Physical block of 8 sectors: the unit in which a move tracks a disk, and at least that of its files.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;
/// What a discard should be aligned to: qcow2's usual cluster of 64 KiB.
const DISCARD_SECTORS: u32 = 128;

/// A block device.
#[derive(Debug)]
pub struct BlockDevice {
    disk: Arc<Disk>,
    id: [u8; ID_BYTES],
    queues: Vec<SingleQueue<BlockQueue>>,
}

impl BlockDevice {
    /// A device for a disk. The guest sees the last part of its name as the disk's identity, wherever it moves.
    pub fn new(disk: Arc<Disk>) -> Self {
        let mut id = [0; ID_BYTES];
        let name = disk.name().rsplit('/').next().unwrap_or_default();
        for (to, from) in id.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let count = disk.queues().clamp(1, DISK_QUEUES_MAX);
        let queue = || SingleQueue::Stopped(BlockQueue::new(Arc::clone(&disk), id));
        let queues = std::iter::repeat_with(queue).take(count.into()).collect();
        Self { disk, id, queues }
    }

    /// The same device that does no more than this a second, all queues together. Before they are started.
    pub fn limited(mut self, rate: &Arc<Rate>) -> Self {
        let limit = Arc::new(SharedLimit::new(rate.clone()));
        self.each_stopped(|queue| queue.limit = Arc::clone(&limit));
        self
    }

    fn each_stopped(&mut self, mut change: impl FnMut(&mut BlockQueue)) {
        for queue in &mut self.queues {
            if let SingleQueue::Stopped(queue) = queue {
                change(queue);
            }
        }
    }
}

impl VirtioDevice for BlockDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_TOPOLOGY;
        common
            | if self.queues.len() > 1 { 1 << VIRTIO_BLK_F_MQ } else { 0 }
            | if self.disk.read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES[..self.queues.len()]
    }

    fn config(&self) -> Vec<u8> {
        config(&self.disk, self.queues.len() as u16)
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        None
    }

    fn start_queues(&mut self, queues: Vec<QueueSetup>, environment: QueueEnvironment) -> Result<(), StartError> {
        for setup in queues {
            let Some(queue) = self.queues.get_mut(usize::from(setup.index)) else { continue };
            if let Err(error) = queue.start("virtio-blk", setup, &environment) {
                // All or none: nobody stops a device that did not start.
                self.stop_queues();
                return Err(error);
            }
        }
        Ok(())
    }

    fn stop_queues(&mut self) -> Vec<(u16, QueueState)> {
        self.queues.iter_mut().filter_map(SingleQueue::stop).collect()
    }

    fn save(&self) -> Vec<u8> {
        SavedBlock { id: self.id, bytes: self.disk.size_bytes(), read_only: self.disk.read_only() }.encode()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        self.id = SavedBlock::decode(saved, self.disk.size_bytes(), self.disk.read_only())?.id;
        let id = self.id;
        self.each_stopped(|queue| queue.id = id);
        Ok(())
    }
}

/// struct virtio_blk_config (§5.2.4), up to the fields of the features offered.
fn config(disk: &Disk, queues: u16) -> Vec<u8> {
    let mut config = Vec::with_capacity(60);
    config.extend((disk.size_bytes() / SECTOR_BYTES).to_le_bytes());
    config.extend(SEGMENT_BYTES_MAX.to_le_bytes());
    config.extend(SEGMENTS_MAX.to_le_bytes());
    config.extend([0; 4]); // geometry
    config.extend((SECTOR_BYTES as u32).to_le_bytes());
    config.extend([PHYSICAL_BLOCK_EXPONENT, 0]); // and the alignment's offset
    config.extend((1_u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes()); // smallest I/O without a read before the write
    config.extend(0_u32.to_le_bytes()); // best I/O: nothing to say
    config.extend([0, 0]); // writeback, unused
    config.extend(queues.to_le_bytes());
    for [sectors, segments, last] in [[RANGE_SECTORS_MAX, 1, DISCARD_SECTORS], [RANGE_SECTORS_MAX, 1, 1]] {
        config.extend([sectors, segments, last].map(u32::to_le_bytes).concat());
    }
    config
}
