//! The saved form of a virtio device: its registers, where its rings stand, its own part, and the PCI function in front of it.
//! `docs/formats/saved-devices.md` lists the fields. What is read back is hostile until [`restore`] has checked it against the device, the
//! function and RAM.

use rebec_vmm_saved::{Part, PartKind, SavedError};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1};

use super::{
    common::{Common, Inner},
    config::ConfigSpace,
    msix::{NO_VECTOR, State, Vector},
    registers::{QueueRegisters, Registers, STATUS_STEPS},
    signals::ISR_BITS,
};
use crate::virtio::ring;

/// Version of the part. 1 was a device behind virtio-mmio.
const VERSION: u16 = 2;

#[derive(Debug, Serialize, Deserialize)]
struct SavedDevice {
    kind: u32,
    status: u32,
    needs_reset: bool,
    isr: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue: u32,
    queues: Vec<SavedQueue>,
    device: Vec<u8>,
    /// The function's configuration space.
    space: Vec<u8>,
    config_vector: u16,
    vectors: Vec<SavedVector>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedVector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedQueue {
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    next_avail: u16,
    next_used: u16,
    vector: u16,
}

/// A part that has been checked.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) registers: Registers,
    pub(super) isr: u32,
    pub(super) needs_reset: bool,
    pub(super) device: Vec<u8>,
    pub(super) space: ConfigSpace,
    pub(super) msix: State,
}

pub(super) fn save(slot: u16, common: &Common, inner: &Inner, space: &ConfigSpace, msix: &State) -> Part {
    let registers = &inner.registers;
    let queues = registers.queues.iter().zip(&msix.queues).map(|(queue, vector)| SavedQueue {
        size: queue.size,
        ready: queue.ready,
        desc_table: queue.desc_table,
        avail_ring: queue.avail_ring,
        used_ring: queue.used_ring,
        next_avail: queue.next_avail,
        next_used: queue.next_used,
        vector: *vector,
    });
    let vectors = msix.vectors.iter().map(|vector| SavedVector {
        address: vector.address,
        data: vector.data,
        masked: vector.masked,
        pending: vector.pending,
    });
    let saved = SavedDevice {
        kind: common.kind as u32,
        status: registers.status,
        needs_reset: common.signals.needs_reset(),
        isr: common.signals.isr(),
        device_features_page: registers.device_features_page,
        driver_features_page: registers.driver_features_page,
        driver_features: registers.driver_features,
        queue: registers.queue,
        queues: queues.collect(),
        device: inner.device.save(),
        space: space.saved(),
        config_vector: msix.config,
        vectors: vectors.collect(),
    };
    Part::encode(PartKind::Virtio, slot, VERSION, &saved)
}

pub(super) fn restore(part: &Part, common: &Common, inner: &Inner, space: &ConfigSpace) -> Result<Restored, SavedError> {
    let saved: SavedDevice = part.decode(VERSION)?;
    let refuse = |what: String| Err(part.invalid(what));
    let (kind, sizes) = (common.kind, inner.device.queue_sizes());
    if saved.kind != kind as u32 {
        return refuse(format!("is a device of type {}, here is a {kind:?} device", saved.kind));
    }
    let status = saved.status;
    let features_ok = status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
    let missing = saved.driver_features & !common.offered;
    if features_ok && (missing != 0 || saved.driver_features & 1 << VIRTIO_F_VERSION_1 == 0) {
        return refuse(format!("its driver uses features {missing:#x} that this {kind:?} device does not have"));
    }
    if status & !(STATUS_STEPS | VIRTIO_CONFIG_S_FAILED) != 0 || status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !features_ok {
        return refuse(format!("status {status:#x} cannot be"));
    }
    if saved.isr & !ISR_BITS != 0 {
        return refuse(format!("ISR status {:#x} cannot be", saved.isr));
    }
    if saved.queues.len() != sizes.len() {
        return refuse(format!("{} queues, this {kind:?} device has {}", saved.queues.len(), sizes.len()));
    }
    let queues: Vec<_> = saved.queues.iter().zip(sizes).map(|(queue, size_max)| queue.registers(*size_max)).collect();
    // A driver that wrote nonsense and broke its device may travel; one whose rings run must be sound.
    if status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !saved.needs_reset {
        for (index, queue) in queues.iter().enumerate().filter(|(_, queue)| queue.ready) {
            ring::check_state(queue.state(), &common.ram, common.blocks.as_deref())
                .map_err(|what| part.invalid(format!("queue {index}: {what}")))?;
        }
    }
    let mut space = space.clone();
    space.restore(&saved.space).map_err(|what| part.invalid(what))?;
    let msix = vectors(&saved, &space).map_err(|what| part.invalid(what))?;
    let registers = Registers {
        status,
        device_features_page: saved.device_features_page,
        driver_features_page: saved.driver_features_page,
        driver_features: saved.driver_features,
        queue: saved.queue,
        queues,
    };
    Ok(Restored { registers, isr: saved.isr, needs_reset: saved.needs_reset, device: saved.device, space, msix })
}

fn vectors(saved: &SavedDevice, space: &ConfigSpace) -> Result<State, String> {
    let count = saved.queues.len() + 1;
    if saved.vectors.len() != count {
        return Err(format!("{} vectors, this function has {count}", saved.vectors.len()));
    }
    let queues: Vec<u16> = saved.queues.iter().map(|queue| queue.vector).collect();
    if let Some(vector) = queues.iter().chain([&saved.config_vector]).find(|vector| **vector != NO_VECTOR && usize::from(**vector) >= count)
    {
        return Err(format!("vector {vector}, this function has {count}"));
    }
    let vectors = saved.vectors.iter().map(|vector| Vector {
        address: vector.address,
        data: vector.data,
        masked: vector.masked,
        pending: vector.pending,
    });
    let (enabled, masked) = space.msix();
    Ok(State { enabled, masked, vectors: vectors.collect(), config: saved.config_vector, queues })
}

impl SavedQueue {
    fn registers(&self, size_max: u16) -> QueueRegisters {
        QueueRegisters {
            size_max,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
            next_avail: self.next_avail,
            next_used: self.next_used,
        }
    }
}
