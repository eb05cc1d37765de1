//! The virtio-mmio transport, version 2 (virtio 1.2 §4.2): a page of registers in front of a device that does not know of it.
//!
//! ```text
//!   vCPU ──read/write──► registers ──DRIVER_OK──► device.start_queues ──► queue threads
//!                            ▲                                               │
//!   irqfd ◄── interrupt status, atomic, no lock ◄────────── used, broken ────┘
//! ```
//!
//! The state machine of §3.1.1, as seen in the status register:
//!
//! ```text
//!   0 ─► ACKNOWLEDGE ─► +DRIVER ─► +FEATURES_OK ─► +DRIVER_OK: queues run ─► +DEVICE_NEEDS_RESET: a ring is broken
//!   ▲         (refused unless the features are offered and VERSION_1 is among them)            │
//!   └──────────────────────────── 0 written: stop, forget ─────────────────────────────────────┘
//! ```
//!
//! The lock guards registers. It is held while a reset or pause waits for the queue threads, which never take it; interrupt status, kicks
//! and the configuration space, all that a running driver uses, do without it.

mod registers;
mod saved;
mod signals;

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rebec_vmm_saved::{Part, SavedError};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
    },
    virtio_mmio as offsets,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{DeviceKind, QueueEnvironment, QueueSetup, Signals, VirtioDevice, ring};
use crate::{GuestRam, Threads};
use registers::Registers;
use signals::MmioSignals;

/// Size of a device's register window.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Where the driver's kicks go: what ioeventfd is to match, with the queue's number as data.
pub const KICK_OFFSET: u64 = offsets::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"RBEC");
const CONFIG: u64 = offsets::VIRTIO_MMIO_CONFIG as u64;

/// A device behind its registers. Shared by all vCPUs; every method takes `&self`.
pub struct MmioTransport {
    kind: DeviceKind,
    offered: u64,
    config: Vec<u8>,
    kicks: Vec<EventFd>,
    signals: Arc<MmioSignals>,
    ram: GuestRam,
    threads: Arc<dyn Threads>,
    inner: Mutex<Inner>,
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    registers: Registers,
    running: bool,
    paused: bool,
    /// Restored from a part and not run since.
    arrived: bool,
}

impl MmioTransport {
    /// Puts a device behind registers. `irq` is what irqfd listens to.
    pub fn new(device: Box<dyn VirtioDevice>, ram: GuestRam, irq: EventFd, threads: Arc<dyn Threads>) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let kicks = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        Ok(Self {
            kind: device.kind(),
            offered: device.features() | ring::RING_FEATURES,
            config: device.config().to_vec(),
            kicks,
            signals: Arc::new(MmioSignals::new(irq)),
            ram,
            threads,
            inner: Mutex::new(Inner { registers: Registers::new(sizes), device, running: false, paused: false, arrived: false }),
        })
    }

    /// A vCPU reads. Registers want four aligned bytes (§4.2.2.2); what else is asked for reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(CONFIG) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            for (to, from) in data.iter_mut().zip(self.config.get(at..).unwrap_or_default()) {
                *to = *from;
            }
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        } else {
            log::debug!("{:?}: {} bytes read at {offset:#x}", self.kind, data.len());
        }
    }

    /// A vCPU writes. What makes no sense is ignored; what breaks the device's rings ends in DEVICE_NEEDS_RESET.
    pub fn write(&self, offset: u64, data: &[u8]) {
        match <[u8; 4]>::try_from(data) {
            Ok(bytes) if offset < CONFIG && offset.is_multiple_of(4) => self.write_register(offset as u32, u32::from_le_bytes(bytes)),
            _ => log::debug!("{:?}: {} bytes written at {offset:#x} are ignored", self.kind, data.len()),
        }
    }

    /// The descriptors to be kicked through ioeventfd at [`KICK_OFFSET`], each with its queue's number.
    pub fn kicks(&self) -> io::Result<Vec<(u16, EventFd)>> {
        self.kicks.iter().enumerate().map(|(queue, kick)| Ok((queue as u16, kick.try_clone()?))).collect()
    }

    /// Stops the queues; no request is in flight when it returns. The vCPUs must not run.
    pub fn pause(&self) {
        let mut inner = self.lock();
        inner.paused = true;
        self.stop_queues(&mut inner);
    }

    /// Runs on from where [`MmioTransport::pause`] or [`MmioTransport::restore`] left it.
    pub fn resume(&self) {
        let mut inner = self.lock();
        inner.paused = false;
        if inner.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.start_queues(&mut inner);
        }
        // An interrupt may have been on its way when the machine was saved. One too many does no harm, one too few stops the driver.
        self.signals.repeat();
    }

    /// Pauses and says everything.
    pub fn save(&self, slot: u16) -> Part {
        self.pause();
        let inner = self.lock();
        saved::save(slot, self.kind, &inner.registers, &self.signals, inner.device.save())
    }

    /// Takes what [`MmioTransport::save`] said into a device that has not run yet, and stays paused.
    pub fn restore(&self, part: &Part) -> Result<(), SavedError> {
        let mut inner = self.lock();
        inner.paused = true;
        self.stop_queues(&mut inner);
        let sizes = inner.device.queue_sizes().to_vec();
        let restored = saved::restore(part, self.kind, self.offered, &sizes, &self.ram)?;
        inner.device.restore(&restored.device).map_err(|what| part.invalid(what))?;
        self.signals.set(restored.interrupt_status, restored.needs_reset);
        inner.registers = restored.registers;
        inner.arrived = true;
        Ok(())
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            offsets::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            offsets::VIRTIO_MMIO_VERSION => VERSION,
            offsets::VIRTIO_MMIO_DEVICE_ID => self.kind as u32,
            offsets::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            offsets::VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.interrupt_status(),
            // No device here changes its configuration space while a driver is bound.
            offsets::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            // Length and base of a shared memory region that does not exist (§4.2.2): all ones.
            offsets::VIRTIO_MMIO_SHM_LEN_LOW..=offsets::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            offsets::VIRTIO_MMIO_STATUS => {
                let status = self.lock().registers.status;
                if self.signals.needs_reset() { status | VIRTIO_CONFIG_S_NEEDS_RESET } else { status }
            }
            offsets::VIRTIO_MMIO_DEVICE_FEATURES => match self.lock().registers.device_features_page {
                page @ 0..=1 => (self.offered >> (32 * page)) as u32,
                _ => 0,
            },
            offsets::VIRTIO_MMIO_QUEUE_NUM_MAX => self.lock().registers.selected().map_or(0, |queue| u32::from(queue.size_max)),
            offsets::VIRTIO_MMIO_QUEUE_READY => self.lock().registers.selected().map_or(0, |queue| u32::from(queue.ready)),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            // First, and without the lock: this is the road of kicks where there is no ioeventfd.
            offsets::VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            offsets::VIRTIO_MMIO_INTERRUPT_ACK => self.signals.acknowledge(value),
            offsets::VIRTIO_MMIO_STATUS => self.write_status(value),
            offsets::VIRTIO_MMIO_QUEUE_READY => self.write_ready(value),
            _ => {
                let mut inner = self.lock();
                if !inner.registers.write(offset, value) {
                    log::debug!("{:?}: {value:#x} written to register {offset:#x} is ignored", self.kind);
                }
            }
        }
    }

    fn kick(&self, queue: u32) {
        match self.kicks.get(queue as usize).map(|kick| kick.write(1)) {
            // A full counter has woken the thread long since.
            Some(_) => {}
            None => log::debug!("{:?}: kick of queue {queue}, which is not there", self.kind),
        }
    }

    fn write_status(&self, value: u32) {
        let mut inner = self.lock();
        if value == 0 {
            return self.reset(&mut inner);
        }
        let old = inner.registers.status;
        let known = old | value & (registers::STATUS_STEPS | VIRTIO_CONFIG_S_FAILED);
        let mut new = if value & old & !VIRTIO_CONFIG_S_FAILED == old & !VIRTIO_CONFIG_S_FAILED { known } else { old };
        if new & !old & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.accepts(inner.registers.driver_features) {
            new &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if new & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            new &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        inner.registers.status = new;
        if new & !old & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !inner.paused {
            self.start_queues(&mut inner);
        }
    }

    fn accepts(&self, features: u64) -> bool {
        features & !self.offered == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// A driver writes 0 to give a queue up (§4.2.2.2); the others go on.
    fn write_ready(&self, value: u32) {
        let mut inner = self.lock();
        let was_running = inner.running;
        if value == 0 && inner.registers.selected().is_some_and(|queue| queue.ready) {
            self.stop_queues(&mut inner);
            inner.registers.drop_selected();
            if was_running {
                self.start_queues(&mut inner);
            }
        } else if value == 1 && !was_running {
            inner.registers.set_selected_ready();
        }
    }

    fn reset(&self, inner: &mut Inner) {
        self.stop_queues(inner);
        inner.registers = Registers::new(inner.device.queue_sizes());
        inner.arrived = false;
        self.signals.set(0, false);
    }

    fn start_queues(&self, inner: &mut Inner) {
        if inner.running || self.signals.needs_reset() {
            return;
        }
        let features = inner.registers.driver_features;
        let setup = |(index, state): (u16, _)| -> io::Result<QueueSetup> {
            Ok(QueueSetup { index, state, kick: self.kicks[usize::from(index)].try_clone()? })
        };
        let environment = QueueEnvironment {
            ram: self.ram.clone(),
            signals: Arc::clone(&self.signals) as Arc<dyn Signals>,
            threads: Arc::clone(&self.threads),
            features,
            arrived: std::mem::take(&mut inner.arrived),
        };
        let started = match inner.registers.ready_states().map(setup).collect::<io::Result<Vec<_>>>() {
            Ok(queues) => inner.device.start_queues(queues, environment),
            Err(error) => Err(error.into()),
        };
        match started {
            Ok(()) => inner.running = true,
            Err(error) => {
                log::warn!("{:?}: {error}; the device waits for a reset", self.kind);
                self.signals.broken();
            }
        }
    }

    fn stop_queues(&self, inner: &mut Inner) {
        if std::mem::take(&mut inner.running) {
            for (index, state) in inner.device.stop_queues() {
                inner.registers.set_position(index, state.next_avail, state.next_used);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
