//! The device's side of one split virtqueue (virtio 1.3 §2.7): chains out of the available ring, heads into the used ring, and both kinds of
//! notification suppression.
//!
//! ```text
//! available = flags:u16 idx:u16 ring:[head:u16; size] used_event:u16          written by the driver
//! used      = flags:u16 idx:u16 ring:[(head:u32, bytes:u32); size] avail_event:u16      written by the device
//! ```
//!
//! State and its alignment rules are virtio-queue's. The walk is ours for two reasons: there what is broken looks like an empty ring, and
//! each used element is published alone, so that a driver could see the first of a frame's merged buffers without the rest.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY},
};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{
    QueueEnvironment, QueueSetup, Signals, StartError,
    chain::{BrokenRing, Chain, DescriptorTable},
};
use crate::{GuestRam, room::Blocks};

/// Feature bits that every device has through its rings.
pub(crate) const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Why a queue thread gives up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The ring or a chain in it cannot be followed.
    #[error(transparent)]
    Ring(#[from] BrokenRing),
    /// A chain is no request of this device.
    #[error("{0}")]
    Request(&'static str),
    /// The host refuses what the thread needs to run.
    #[error("the host: {0}")]
    Host(#[from] std::io::Error),
}

/// A ring that a queue thread works on. It owns the ring's position until [`Ring::state`] gives it back.
#[derive(Debug)]
pub(crate) struct Ring {
    index: u16,
    ram: GuestRam,
    signals: Arc<dyn Signals>,
    state: QueueState,
    table: DescriptorTable,
    blocks: Option<Arc<Blocks>>,
    /// Where the used index stood when the driver was last asked about.
    asked_used: u16,
}

/// Whether a ring can run from this state: what a driver or a saved part says is not to be trusted.
pub(crate) fn check_state(state: QueueState, ram: &GuestRam, blocks: Option<&Blocks>) -> Result<(), String> {
    let size = u64::from(state.size);
    Queue::try_from(state).map_err(|error| error.to_string())?;
    for (what, address, bytes) in [
        ("descriptor table", state.desc_table, 16 * size),
        ("available ring", state.avail_ring, 6 + 2 * size),
        ("used ring", state.used_ring, 6 + 8 * size),
    ] {
        if !ram.check_range(GuestAddress(address), bytes as usize) || blocks.is_some_and(|blocks| !blocks.have(address, bytes)) {
            return Err(format!("the {what} ({bytes} bytes at {address:#x}) is not in RAM"));
        }
    }
    Ok(())
}

impl Ring {
    /// Checks a state against memory and takes it over.
    pub(crate) fn new(setup: &QueueSetup, environment: &QueueEnvironment) -> Result<Self, StartError> {
        let QueueSetup { index, mut state, .. } = *setup;
        check_state(state, &environment.ram, environment.blocks.as_deref()).map_err(|what| StartError::Queue { index, what })?;
        state.event_idx_enabled = environment.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let indirect_allowed = environment.features & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0;
        let table = DescriptorTable { address: state.desc_table, entries: state.size, indirect_allowed };
        let (ram, signals, blocks) = (environment.ram.clone(), Arc::clone(&environment.signals), environment.blocks.clone());
        Ok(Self { index, ram, signals, state, table, blocks, asked_used: state.next_used })
    }

    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Whether the guest has all of this memory.
    pub(crate) fn reaches(&self, addresses: &Range<u64>) -> bool {
        self.blocks.as_ref().is_none_or(|blocks| blocks.have(addresses.start, addresses.end - addresses.start))
    }

    pub(crate) fn state(&self) -> (u16, QueueState) {
        (self.index, self.state)
    }

    pub(crate) fn size(&self) -> u16 {
        self.state.size
    }

    /// How many chains are available.
    pub(crate) fn waiting(&self) -> Result<u16, BrokenRing> {
        let waiting = self.available_index(Ordering::Acquire)?.wrapping_sub(self.state.next_avail);
        // A driver never offers more than the ring holds; believing one that does would serve old chains for ever.
        if waiting > self.state.size { Err(BrokenRing::Ring) } else { Ok(waiting) }
    }

    /// Takes the next available chain into `chain`; false if there is none.
    pub(crate) fn pop(&mut self, chain: &mut Chain) -> Result<bool, BrokenRing> {
        if self.waiting()? == 0 {
            return Ok(false);
        }
        let slot = u64::from(self.state.next_avail % self.state.size);
        let head: u16 = self.load(self.state.avail_ring + 4 + 2 * slot, Ordering::Relaxed)?;
        chain.load(&self.ram, self.blocks.as_deref(), self.table, head)?;
        self.state.next_avail = self.state.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Gives back the last `count` chains taken, unused, to be taken again.
    pub(crate) fn push_back(&mut self, count: u16) {
        self.state.next_avail = self.state.next_avail.wrapping_sub(count);
    }

    /// Returns chains to the driver, given as (head, bytes written). It sees all of them at once.
    pub(crate) fn add_used(&mut self, used: &[(u16, u32)]) -> Result<(), BrokenRing> {
        for (head, bytes) in used {
            let slot = u64::from(self.state.next_used % self.state.size);
            let element = u64::from(*head) | u64::from(*bytes) << 32;
            let address = GuestAddress(self.state.used_ring + 4 + 8 * slot);
            self.ram.write_slice(&element.to_le_bytes(), address).map_err(|_| BrokenRing::Ring)?;
            self.state.next_used = self.state.next_used.wrapping_add(1);
        }
        self.store(self.state.used_ring + 2, self.state.next_used, Ordering::Release)
    }

    /// Tells the driver of used chains, if there are any since the last call and it wants to know (§2.7.7.2, §2.7.10).
    pub(crate) fn notify(&mut self) -> Result<(), BrokenRing> {
        let (old, new) = (self.asked_used, self.state.next_used);
        if old == new {
            return Ok(());
        }
        self.asked_used = new;
        // The driver writes used_event (or its flag) and then reads the used index; we do the reverse. One of both sees the other.
        fence(Ordering::SeqCst);
        let wanted = if self.state.event_idx_enabled {
            let event: u16 = self.load(self.state.avail_ring + 4 + 2 * u64::from(self.state.size), Ordering::Relaxed)?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 = self.load(self.state.avail_ring, Ordering::Relaxed)?;
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted {
            self.signals.used(self.index);
        }
        Ok(())
    }

    /// Asks the driver not to kick while the ring is being worked on anyway.
    pub(crate) fn suppress_kicks(&mut self) -> Result<(), BrokenRing> {
        // With event indexes, kicks stop by themselves after the one that was asked for.
        if self.state.event_idx_enabled {
            Ok(())
        } else {
            self.store(self.state.used_ring, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed)
        }
    }

    /// Asks for a kick at the next available chain. True if there is one already: work on, since its kick may never come.
    pub(crate) fn want_kick(&mut self) -> Result<bool, BrokenRing> {
        self.want_kick_beyond(0)
    }

    /// The same while `known` chains are left available because they are not enough: true if there are others by now.
    pub(crate) fn want_kick_beyond(&mut self, known: u16) -> Result<bool, BrokenRing> {
        let seen = self.state.next_avail.wrapping_add(known);
        if self.state.event_idx_enabled {
            let avail_event = self.state.used_ring + 4 + 8 * u64::from(self.state.size);
            self.store(avail_event, seen, Ordering::Relaxed)?;
        } else {
            self.store(self.state.used_ring, 0_u16, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.available_index(Ordering::Relaxed)? != seen)
    }

    /// Reports that the ring cannot be worked on any more.
    pub(crate) fn report_broken(&self, why: &Broken) {
        log::warn!("queue {}: {why}; the device waits for a reset", self.index);
        self.signals.broken();
    }

    fn available_index(&self, order: Ordering) -> Result<u16, BrokenRing> {
        self.load(self.state.avail_ring + 2, order)
    }

    fn load(&self, address: u64, order: Ordering) -> Result<u16, BrokenRing> {
        self.ram.load(GuestAddress(address), order).map(u16::from_le).map_err(|_| BrokenRing::Ring)
    }

    fn store(&self, address: u64, value: u16, order: Ordering) -> Result<(), BrokenRing> {
        self.ram.store(value.to_le(), GuestAddress(address), order).map_err(|_| BrokenRing::Ring)
    }
}
