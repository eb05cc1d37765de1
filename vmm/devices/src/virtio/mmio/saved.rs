//! The saved form of a virtio device: its registers, where its rings stand, and its own part. `docs/formats/saved-devices.md` lists the
//! fields. What is read back is hostile until [`restore`] has checked it against the device and RAM.

use rebec_vmm_saved::{Part, PartKind, SavedError};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1};

use super::{
    registers::{QueueRegisters, Registers, STATUS_STEPS},
    signals::{INTERRUPT_BITS, MmioSignals},
};
use crate::{
    GuestRam,
    virtio::{DeviceKind, ring},
};

/// Version of the part.
pub(super) const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct SavedDevice {
    kind: u32,
    status: u32,
    needs_reset: bool,
    interrupt_status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    queue: u32,
    queues: Vec<SavedQueue>,
    device: Vec<u8>,
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
}

/// A part that has been checked.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) registers: Registers,
    pub(super) interrupt_status: u32,
    pub(super) needs_reset: bool,
    pub(super) device: Vec<u8>,
}

pub(super) fn save(slot: u16, kind: DeviceKind, registers: &Registers, signals: &MmioSignals, device: Vec<u8>) -> Part {
    let queues = registers.queues.iter().map(|queue| SavedQueue {
        size: queue.size,
        ready: queue.ready,
        desc_table: queue.desc_table,
        avail_ring: queue.avail_ring,
        used_ring: queue.used_ring,
        next_avail: queue.next_avail,
        next_used: queue.next_used,
    });
    let saved = SavedDevice {
        kind: kind as u32,
        status: registers.status,
        needs_reset: signals.needs_reset(),
        interrupt_status: signals.interrupt_status(),
        device_features_page: registers.device_features_page,
        driver_features_page: registers.driver_features_page,
        driver_features: registers.driver_features,
        queue: registers.queue,
        queues: queues.collect(),
        device,
    };
    Part::encode(PartKind::Virtio, slot, VERSION, &saved)
}

pub(super) fn restore(part: &Part, kind: DeviceKind, offered: u64, sizes: &[u16], ram: &GuestRam) -> Result<Restored, SavedError> {
    let saved: SavedDevice = part.decode(VERSION)?;
    let refuse = |what: String| Err(part.invalid(what));
    if saved.kind != kind as u32 {
        return refuse(format!("is a device of type {}, here is a {kind:?} device", saved.kind));
    }
    let status = saved.status;
    let features_ok = status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
    let missing = saved.driver_features & !offered;
    if features_ok && (missing != 0 || saved.driver_features & 1 << VIRTIO_F_VERSION_1 == 0) {
        return refuse(format!("its driver uses features {missing:#x} that this {kind:?} device does not have"));
    }
    if status & !(STATUS_STEPS | VIRTIO_CONFIG_S_FAILED) != 0 || status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !features_ok {
        return refuse(format!("status {status:#x} cannot be"));
    }
    if saved.interrupt_status & !INTERRUPT_BITS != 0 {
        return refuse(format!("interrupt status {:#x} cannot be", saved.interrupt_status));
    }
    if saved.queues.len() != sizes.len() {
        return refuse(format!("{} queues, this {kind:?} device has {}", saved.queues.len(), sizes.len()));
    }
    let queues: Vec<_> = saved.queues.iter().zip(sizes).map(|(queue, size_max)| queue.registers(*size_max)).collect();
    // A driver that wrote nonsense and broke its device may travel; one whose rings run must be sound.
    if status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !saved.needs_reset {
        for (index, queue) in queues.iter().enumerate().filter(|(_, queue)| queue.ready) {
            ring::check_state(queue.state(), ram).map_err(|what| part.invalid(format!("queue {index}: {what}")))?;
        }
    }
    let registers = Registers {
        status,
        device_features_page: saved.device_features_page,
        driver_features_page: saved.driver_features_page,
        driver_features: saved.driver_features,
        queue: saved.queue,
        queues,
    };
    Ok(Restored { registers, interrupt_status: saved.interrupt_status, needs_reset: saved.needs_reset, device: saved.device })
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
