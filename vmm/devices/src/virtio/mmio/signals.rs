//! From queue threads to the driver: the interrupt status register, the reset request and the interrupt line, all without a lock.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::Signals;

/// Bits of the interrupt status register (§4.2.2).
pub(super) const INTERRUPT_BITS: u32 = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;

#[derive(Debug)]
pub(super) struct MmioSignals {
    status: AtomicU32,
    needs_reset: AtomicBool,
    irq: EventFd,
}

impl MmioSignals {
    pub(super) fn new(irq: EventFd) -> Self {
        Self { status: AtomicU32::new(0), needs_reset: AtomicBool::new(false), irq }
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    pub(super) fn set(&self, status: u32, needs_reset: bool) {
        self.status.store(status, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// Interrupts again for what is not acknowledged.
    pub(super) fn repeat(&self) {
        if self.interrupt_status() != 0 {
            self.pulse();
        }
    }

    fn raise(&self, bit: u32) {
        // The bit before the line: who is interrupted reads it.
        self.status.fetch_or(bit, Ordering::AcqRel);
        self.pulse();
    }

    fn pulse(&self) {
        if let Err(error) = self.irq.write(1) {
            log::error!("raise an interrupt: {error}");
        }
    }
}

impl Signals for MmioSignals {
    fn used(&self, _queue: u16) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn broken(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }
}
