//! Memory that changes while the machine runs: what its guest is asked to have, by two devices, and what it has made of that.
//!
//! ```text
//! asked   0 ......... what it began with ............................ max
//!         [ the balloon lends what is less ) [ virtio-mem takes in what is more, in blocks of 2 MiB, from the room behind RAM )
//! ```
//! What is more is certain: it is reached by nobody before it is asked for, nor after it was given back. What is less is the guest's good will.

use std::{io, ops::Range, sync::Arc};

use anyhow::{Result, ensure};
use rebec_devices::{
    balloon::{Balloon, BalloonDevice},
    mem::{MemDevice, Room},
    room::{Blocks, HostMemory},
    virtio::VirtioDevice,
};
use rebec_kvm::Ram;
use rebec_layout::room_bytes;
use rebec_vmm_api::{MemorySize, control::MemoryStatus};

/// RAM of a machine, with the room that it may need.
pub fn ram(begins: MemorySize, max: Option<MemorySize>) -> Result<Ram> {
    let bytes = begins.bytes();
    Ok(Ram::with_room(bytes, max.map_or(0, |max| room_bytes(bytes, max.bytes())))?)
}

/// What the guest's memory is to become and is.
pub struct Memory {
    ram: Ram,
    max_bytes: u64,
    /// None, where it may not become more than it began with.
    room: Option<Arc<Room>>,
    balloon: Arc<Balloon>,
}

impl Memory {
    /// As it begins.
    pub fn new(ram: &Ram, max_bytes: u64) -> Self {
        let host: Arc<dyn HostMemory> = Arc::new(OfRam(ram.clone()));
        let room = Some(ram.room()).filter(|room| !room.is_empty()).map(|room| Arc::new(Room::new(room, host.clone())));
        Self { ram: ram.clone(), max_bytes, room, balloon: Arc::new(Balloon::new(host)) }
    }

    /// Its devices, in the order of their slots.
    pub fn devices(&self) -> Vec<Box<dyn VirtioDevice>> {
        let balloon: Box<dyn VirtioDevice> = Box::new(BalloonDevice::new(self.balloon.clone()));
        let room = self.room.iter().map(|room| Box::new(MemDevice::new(room.clone())) as Box<dyn VirtioDevice>);
        std::iter::once(balloon).chain(room).collect()
    }

    /// What of the room the guest has.
    pub fn blocks(&self) -> Option<Arc<Blocks>> {
        self.room.as_ref().map(|room| room.blocks().clone())
    }

    /// The pages of the room that it does not have.
    pub fn absent(&self) -> Vec<Range<u64>> {
        let runs = self.room.iter().flat_map(|room| room.blocks().runs(false));
        runs.filter_map(|run| self.ram.pages_at(&run)).collect()
    }

    /// Asks for so much. The devices are to be told.
    pub fn ask(&self, bytes: u64) -> Result<()> {
        let bytes = MemorySize::from_bytes(bytes)?.bytes();
        ensure!(bytes <= self.max_bytes, "{} MiB: the VM was started with --memory-max of {} MiB", bytes >> 20, self.max_bytes >> 20);
        let boot = self.ram.boot_bytes();
        if let Some(room) = &self.room {
            room.ask(bytes.saturating_sub(boot));
        }
        self.balloon.ask(boot.saturating_sub(bytes));
        Ok(())
    }

    /// What it is asked to have.
    pub fn asked_bytes(&self) -> u64 {
        let more = self.room.as_ref().map_or(0, |room| room.asked_bytes());
        (self.ram.boot_bytes() + more).saturating_sub(self.balloon.asked_bytes())
    }

    pub fn status(&self) -> MemoryStatus {
        let (taken, refused) = self.room.as_ref().map_or((0, 0), |room| (room.blocks().taken_bytes(), room.refused()));
        let guest = self.balloon.guest().unwrap_or_default();
        let held_bytes = self.ram.held_bytes().unwrap_or_else(|error| {
            log::warn!("{error}");
            0
        });
        MemoryStatus {
            max_bytes: self.max_bytes,
            asked_bytes: self.asked_bytes(),
            taken_bytes: (self.ram.boot_bytes() + taken).saturating_sub(self.balloon.lent_bytes()),
            held_bytes,
            reported_bytes: self.balloon.reported_bytes(),
            refused: refused + self.balloon.refused(),
            guest_free_bytes: guest.free,
            guest_available_bytes: guest.available,
        }
    }
}

/// Guest RAM as the devices take from it.
#[derive(Debug)]
struct OfRam(Ram);

impl HostMemory for OfRam {
    fn open(&self, addresses: Range<u64>) -> io::Result<()> {
        let pages = self.0.pages_at(&addresses).ok_or(io::ErrorKind::InvalidInput)?;
        self.0.reach(addresses, true).map_err(io::Error::other)?;
        // A move that is under way has to say what is there now.
        self.0.mark_written(pages);
        Ok(())
    }

    fn close(&self, addresses: Range<u64>) -> io::Result<()> {
        self.0.reach(addresses.clone(), false).map_err(io::Error::other)?;
        self.discard(addresses)
    }

    fn discard(&self, addresses: Range<u64>) -> io::Result<()> {
        let pages = self.0.pages_at(&addresses).ok_or(io::ErrorKind::InvalidInput)?;
        self.0.discard(pages).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_split_between_both_devices() {
        let ram = Ram::with_room(64 << 20, 128 << 20).unwrap();
        let memory = Memory::new(&ram, 128 << 20);
        assert_eq!((memory.devices().len(), memory.asked_bytes(), memory.absent().len()), (2, 64 << 20, 1));
        let asked = |mebibytes: u64| {
            memory.ask(mebibytes << 20).unwrap();
            let room = memory.room.as_ref().unwrap().asked_bytes() >> 20;
            (room, memory.balloon.asked_bytes() >> 20, memory.asked_bytes() >> 20)
        };
        assert_eq!([asked(64), asked(128), asked(16), asked(67)], [(0, 0, 64), (64, 0, 128), (0, 48, 16), (2, 0, 66)]);
        for (bytes, why) in [((129 << 20), "--memory-max of 128 MiB"), (1 << 20, "1048576"), ((64 << 20) + 1, "67108865")] {
            let refused = memory.ask(bytes).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        let status = memory.status();
        assert_eq!((status.max_bytes, status.asked_bytes, status.taken_bytes, status.held_bytes), (128 << 20, 66 << 20, 64 << 20, 0));
        let fixed = Memory::new(&Ram::new(64 << 20).unwrap(), 64 << 20);
        assert_eq!((fixed.devices().len(), fixed.blocks().is_none()), (1, true));
    }

    #[test]
    fn what_goes_is_the_hosts_again() {
        let ram = Ram::with_room(64 << 20, 128 << 20).unwrap();
        let (host, room, first) = (OfRam(ram.clone()), ram.room(), ram.boot_pages());
        let block = room.start..room.start + (2 << 20);
        ram.write_page(first, &[1; 4096]).unwrap();
        host.open(block.clone()).unwrap();
        assert_eq!(ram.held_bytes().unwrap(), 4096, "as it is");
        (0..9).for_each(|page| ram.write_page(first + page, &[1; 4096]).unwrap());
        ram.write_page(3, &[1; 4096]).unwrap();
        host.close(block).unwrap();
        assert_eq!(ram.held_bytes().unwrap(), 4096);
        host.discard(0x3000..0x4000).unwrap();
        assert_eq!(ram.held_bytes().unwrap(), 0);
        for wrong in [(64 << 20) - 4096..(64 << 20) + 4096, room.end..room.end + 4096] {
            assert!(host.discard(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
