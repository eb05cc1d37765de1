//! virtio-mem (virtio 1.3 §5.15): memory that the guest takes in and gives back, in blocks of 2 MiB, as it is asked to.
//!
//! ```text
//! user ──ask──► Room.asked ──configuration change──► driver ──plug, unplug──► checked here ──► blocks, host's memory
//! ```
//! The driver decides which blocks and when; what it has is in [`Room`], which says how much of what was asked it has taken. It gets no block more than was
//! asked for, so a guest cannot lift its limit, and a driver must know that it may not look at what it has not taken in (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE).

mod request;
mod saved;

#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rebec_layout::ROOM_BLOCK_BYTES;

use crate::{
    GuestRam,
    room::{Blocks, HostMemory},
    virtio::{
        DeviceKind, LiveConfig, QueueEnvironment, QueueSetup, QueueState, StartError, VirtioDevice,
        chain::Chain,
        pci::UNPLUGGED_INACCESSIBLE,
        ring::Broken,
        single::{Answer, OneByOne, SingleQueue},
    },
};
use request::{Outcome, Request};
use saved::SavedMem;

const QUEUE_SIZES: [u16; 1] = [64];
/// Where the configuration says how much is plugged (§5.15.4).
const PLUGGED_AT: usize = 40;

/// What is asked of a guest and what it has done: shared by the device and whoever asks.
#[derive(Debug)]
pub struct Room {
    blocks: Arc<Blocks>,
    asked: AtomicU64,
    refused: AtomicU64,
    host: Arc<dyn HostMemory>,
}

impl Room {
    /// At these addresses; nothing is asked for yet.
    pub fn new(addresses: Range<u64>, host: Arc<dyn HostMemory>) -> Self {
        let blocks = Arc::new(Blocks::new(addresses));
        Self { blocks, asked: AtomicU64::new(0), refused: AtomicU64::new(0), host }
    }

    /// Asks the guest to have so much of the room, in whole blocks and at most all of it; its device is to be told by `reconfigure`.
    pub fn ask(&self, bytes: u64) {
        let all = self.blocks.count() * ROOM_BLOCK_BYTES;
        self.asked.store((bytes / ROOM_BLOCK_BYTES * ROOM_BLOCK_BYTES).min(all), Ordering::Release);
    }

    /// How much it was asked to have.
    pub fn asked_bytes(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// What it has.
    pub fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    /// How many of its requests made no sense or wanted more than was asked of it.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Carries a request out, or says why not (§5.15.6).
    fn answer(&self, request: Request) -> Outcome {
        let outcome = match request {
            Request::Plug { address, blocks } => self.plug(address, blocks),
            Request::Unplug { address, blocks } => self.unplug(address, blocks),
            Request::UnplugAll => self.unplug_all(),
            Request::State { address, blocks } => match self.range(address, blocks) {
                Some(range) if self.blocks.are(range.clone(), true) => Outcome::Plugged,
                Some(range) if self.blocks.are(range.clone(), false) => Outcome::Unplugged,
                Some(_) => Outcome::Mixed,
                None => Outcome::Error,
            },
            Request::Unknown => Outcome::Error,
        };
        if matches!(outcome, Outcome::Error | Outcome::Refused) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    fn plug(&self, address: u64, blocks: u16) -> Outcome {
        let Some(range) = self.range(address, blocks).filter(|range| self.blocks.are(range.clone(), false)) else { return Outcome::Error };
        if self.blocks.taken_bytes() + u64::from(blocks) * ROOM_BLOCK_BYTES > self.asked_bytes() {
            return Outcome::Refused;
        }
        // A device of the guest's may have written there while the blocks went.
        let opened = self.host.discard(self.addresses(&range)).and_then(|()| self.host.open(self.addresses(&range)));
        if let Err(error) = opened {
            log::warn!("memory: let the guest take in {blocks} blocks: {error}");
            return Outcome::Busy;
        }
        self.blocks.set(range, true);
        Outcome::Done
    }

    fn unplug(&self, address: u64, blocks: u16) -> Outcome {
        match self.range(address, blocks).filter(|range| self.blocks.are(range.clone(), true)) {
            Some(range) => self.take_back(range),
            None => Outcome::Error,
        }
    }

    fn unplug_all(&self) -> Outcome {
        let start = self.blocks.addresses().start;
        let block = |address: u64| (address - start) / ROOM_BLOCK_BYTES;
        for run in self.blocks.runs(true) {
            if self.take_back(block(run.start)..block(run.end)) == Outcome::Busy {
                return Outcome::Busy;
            }
        }
        Outcome::Done
    }

    /// No buffer is accepted there before the memory goes.
    fn take_back(&self, range: Range<u64>) -> Outcome {
        self.blocks.set(range.clone(), false);
        if let Err(error) = self.host.close(self.addresses(&range)) {
            log::warn!("memory: take back what the guest gives: {error}");
            self.blocks.set(range, true);
            return Outcome::Busy;
        }
        Outcome::Done
    }

    /// The blocks that a request means, if it means some, all of them in the room.
    fn range(&self, address: u64, blocks: u16) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.blocks.addresses().start)?;
        let first = offset / ROOM_BLOCK_BYTES;
        let end = first + u64::from(blocks);
        (offset.is_multiple_of(ROOM_BLOCK_BYTES) && blocks > 0 && end <= self.blocks.count()).then_some(first..end)
    }

    fn addresses(&self, range: &Range<u64>) -> Range<u64> {
        self.blocks.address(range.start)..self.blocks.address(range.end)
    }

    /// Takes over what came with the VM, into a room of which nothing is taken in.
    fn restore(&self, saved: &SavedMem) -> Result<(), String> {
        let SavedMem { start, end, asked, taken } = saved;
        let here = self.blocks.addresses();
        if (*start, *end) != (here.start, here.end) {
            return Err(format!("its room for memory is at {start:#x} to {end:#x}, the one here at {:#x} to {:#x}", here.start, here.end));
        }
        let runs = self.blocks.runs_of(taken).ok_or("what it says of its blocks is not of this room")?;
        if asked % ROOM_BLOCK_BYTES != 0 || *asked > end - start {
            return Err(format!("{asked} bytes were asked for of a room of {}", end - start));
        }
        for run in runs {
            self.host.open(self.addresses(&run)).map_err(|error| format!("let the guest reach its memory: {error}"))?;
            self.blocks.set(run, true);
        }
        // What arrived before the source took it back.
        for run in self.blocks.runs(false) {
            self.host.close(run).map_err(|error| format!("give back what the guest does not have: {error}"))?;
        }
        self.asked.store(*asked, Ordering::Release);
        Ok(())
    }
}

impl LiveConfig for Room {
    fn overlay(&self, config: &mut [u8]) {
        if let Some(plugged) = config.get_mut(PLUGGED_AT..PLUGGED_AT + 8) {
            plugged.copy_from_slice(&self.blocks.taken_bytes().to_le_bytes());
        }
    }

    /// A driver asks by its queue.
    fn write(&self, _at: u64, _data: &[u8]) {}
}

/// The device.
#[derive(Debug)]
pub struct MemDevice {
    room: Arc<Room>,
    queue: SingleQueue<OneByOne<MemAnswers>>,
}

impl MemDevice {
    /// Over a room.
    pub fn new(room: Arc<Room>) -> Self {
        Self { queue: SingleQueue::Stopped(OneByOne::new(MemAnswers(room.clone()))), room }
    }
}

impl VirtioDevice for MemDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Mem
    }

    fn features(&self) -> u64 {
        UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// struct virtio_mem_config (§5.15.4): block size, node, address, size, usable size, plugged and requested size.
    fn config(&self) -> Vec<u8> {
        let addresses = self.room.blocks.addresses();
        let bytes = addresses.end - addresses.start;
        let (plugged, asked) = (self.room.blocks.taken_bytes(), self.room.asked_bytes());
        [ROOM_BLOCK_BYTES, 0, addresses.start, bytes, bytes, plugged, asked].into_iter().flat_map(u64::to_le_bytes).collect()
    }

    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        Some(self.room.clone())
    }

    fn start_queues(&mut self, queues: Vec<QueueSetup>, environment: QueueEnvironment) -> Result<(), StartError> {
        queues.into_iter().try_for_each(|setup| self.queue.start("virtio-mem", setup, &environment))
    }

    fn stop_queues(&mut self) -> Vec<(u16, QueueState)> {
        self.queue.stop().into_iter().collect()
    }

    fn save(&self) -> Vec<u8> {
        let addresses = self.room.blocks.addresses();
        let (asked, taken) = (self.room.asked_bytes(), self.room.blocks.to_bytes());
        SavedMem { start: addresses.start, end: addresses.end, asked, taken }.encode()
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), String> {
        self.room.restore(&SavedMem::decode(saved)?)
    }
}

#[derive(Debug)]
struct MemAnswers(Arc<Room>);

impl Answer for MemAnswers {
    fn answer(&mut self, chain: &Chain, ram: &GuestRam) -> Result<u32, Broken> {
        let request = Request::read(chain, ram)?;
        let outcome = self.0.answer(request);
        Ok(chain.writer(ram).write(&outcome.to_bytes()) as u32)
    }
}
