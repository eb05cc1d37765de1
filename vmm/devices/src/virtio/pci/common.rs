//! The common configuration structure (virtio 1.3 §4.1.4.3): what a driver agrees on with a device, and the queues that run by it.
//!
//! The state machine of §3.1.1, as seen in the status field:
//!
//! ```text
//!   0 ─► ACKNOWLEDGE ─► +DRIVER ─► +FEATURES_OK ─► +DRIVER_OK: queues run ─► +DEVICE_NEEDS_RESET: a ring is broken
//!   ▲         (refused unless the features are offered and VERSION_1 is among them)            │
//!   └──────────────────────────── 0 written: stop, forget ─────────────────────────────────────┘
//! ```
//!
//! The lock guards registers. It is held while a reset or pause waits for the queue threads, which never take it; messages, kicks
//! and the configuration space, all that a running driver uses, do without it.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    copy,
    msix::{Cause, Msix},
    registers::{self, Field, Registers},
    signals::PciSignals,
};
use crate::{
    GuestRam, Threads,
    room::Blocks,
    virtio::{DeviceKind, LiveConfig, QueueEnvironment, QueueSetup, Signals, VirtioDevice, ring},
};

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (§5.15.3): a driver that has not this one may look at memory that it has not taken in.
pub(crate) const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// A device and what its driver has agreed on with it.
pub(super) struct Common {
    pub(super) kind: DeviceKind,
    pub(super) offered: u64,
    /// The device's configuration space: locked for a copy.
    config: Mutex<Vec<u8>>,
    live: Option<Arc<dyn LiveConfig>>,
    /// How often that has changed (§4.1.4.3.1).
    generation: AtomicU32,
    pub(super) kicks: Vec<EventFd>,
    pub(super) signals: Arc<PciSignals>,
    msix: Arc<Msix>,
    pub(super) ram: GuestRam,
    /// Which blocks of its room the guest has, where there is one.
    pub(super) blocks: Option<Arc<Blocks>>,
    threads: Arc<dyn Threads>,
    inner: Mutex<Inner>,
}

pub(super) struct Inner {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) registers: Registers,
    running: bool,
    paused: bool,
    /// Restored from a part and not run since.
    pub(super) arrived: bool,
}

impl Common {
    pub(super) fn new(device: Box<dyn VirtioDevice>, ram: GuestRam, msix: Arc<Msix>, threads: Arc<dyn Threads>) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let kicks = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<_>>()?;
        Ok(Self {
            kind: device.kind(),
            offered: device.features() | ring::RING_FEATURES,
            config: Mutex::new(device.config()),
            live: device.live_config(),
            generation: AtomicU32::new(0),
            kicks,
            signals: Arc::new(PciSignals::new(msix.clone())),
            msix,
            ram,
            blocks: None,
            threads,
            inner: Mutex::new(Inner { registers: Registers::new(sizes), device, running: false, paused: false, arrived: false }),
        })
    }

    /// Fields are read whole (§4.1.3.1); what else is asked for reads as zeros.
    pub(super) fn read(&self, field: Field) -> u32 {
        match field {
            registers::DEVICE_FEATURES => match self.lock().registers.device_features_page {
                page @ 0..=1 => (self.offered >> (32 * page)) as u32,
                _ => 0,
            },
            registers::STATUS => {
                let status = self.lock().registers.status;
                if self.signals.needs_reset() { status | VIRTIO_CONFIG_S_NEEDS_RESET } else { status }
            }
            registers::CONFIG_VECTOR => self.msix.state().vector(Cause::Config).into(),
            registers::QUEUE_VECTOR => {
                let queue = self.selected();
                self.msix.state().vector(Cause::Used(queue)).into()
            }
            registers::QUEUE_COUNT => self.kicks.len() as u32,
            registers::CONFIG_GENERATION => self.generation.load(Ordering::Acquire) & 0xff,
            _ => self.lock().registers.read(field),
        }
    }

    /// What makes no sense is ignored; what breaks the device's rings ends in DEVICE_NEEDS_RESET.
    pub(super) fn write(&self, field: Field, value: u32) {
        match field {
            registers::STATUS => self.write_status(value),
            registers::QUEUE_ENABLE => self.write_enable(value),
            registers::CONFIG_VECTOR => self.msix.set_vector(Cause::Config, value as u16),
            registers::QUEUE_VECTOR => self.msix.set_vector(Cause::Used(self.selected()), value as u16),
            _ => {
                if !self.lock().registers.write(field, value) {
                    log::debug!("{:?}: {value:#x} written to field {field:?} is ignored", self.kind);
                }
            }
        }
    }

    /// A kick that came as a write: the road where there is no ioeventfd. Takes no lock.
    pub(super) fn kick(&self, queue: u64) {
        match self.kicks.get(queue as usize).map(|kick| kick.write(1)) {
            // A full counter has woken the thread long since.
            Some(_) => {}
            None => log::debug!("{:?}: kick of queue {queue}, which is not there", self.kind),
        }
    }

    /// A part of the device's configuration space, as far as there is one. A driver that reads it in pieces holds the generation before against the one
    /// after (§2.5.1).
    pub(super) fn read_config(&self, at: u64, data: &mut [u8]) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = &self.live {
            live.overlay(&mut config);
        }
        copy(data, config.get(at as usize..).unwrap_or_default());
    }

    /// A driver writes the device's configuration space: few devices have something to write there.
    pub(super) fn write_config(&self, at: u64, data: &[u8]) {
        if let Some(live) = &self.live {
            live.write(at, data);
        }
    }

    /// Takes over a configuration space that has changed, and says so to a driver that is there.
    pub(super) fn reconfigure(&self) {
        let inner = self.lock();
        let new = inner.device.config();
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if *config == new {
            return;
        }
        *config = new;
        self.generation.fetch_add(1, Ordering::AcqRel);
        drop(config);
        if inner.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.signals.changed();
        }
    }

    /// The configuration space of a device that was restored: it says what came along, and its driver knows it so.
    pub(super) fn restored(&self, device: &dyn VirtioDevice) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = device.config();
    }

    /// Stops the queues; no request is in flight when it returns.
    pub(super) fn pause(&self) {
        let mut inner = self.lock();
        inner.paused = true;
        self.stop_queues(&mut inner);
    }

    pub(super) fn resume(&self) {
        let mut inner = self.lock();
        inner.paused = false;
        if inner.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.start_queues(&mut inner);
        }
    }

    fn selected(&self) -> u16 {
        self.lock().registers.queue as u16
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
        let needed = 1 << VIRTIO_F_VERSION_1 | if self.kind == DeviceKind::Mem { UNPLUGGED_INACCESSIBLE } else { 0 };
        features & !self.offered == 0 && features & needed == needed
    }

    /// A driver enables queues before the device runs, and gives them up by a reset alone (§4.1.4.3.2).
    fn write_enable(&self, value: u32) {
        let mut inner = self.lock();
        if value == 1 && !inner.running {
            inner.registers.set_selected_ready();
        }
    }

    fn reset(&self, inner: &mut Inner) {
        self.stop_queues(inner);
        inner.registers = Registers::new(inner.device.queue_sizes());
        inner.arrived = false;
        self.signals.set(0, false);
        self.msix.reset();
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
            blocks: self.blocks.clone(),
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

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
