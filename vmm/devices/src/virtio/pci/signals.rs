//! From queue threads to the driver: messages, and what is kept for a driver that wants none.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use super::msix::{Cause, Msix};
use crate::virtio::Signals;

/// Bits of the ISR status (§4.1.4.5).
const ISR_QUEUE: u32 = 1 << 0;
const ISR_CONFIG: u32 = 1 << 1;
pub(super) const ISR_BITS: u32 = ISR_QUEUE | ISR_CONFIG;

#[derive(Debug)]
pub(super) struct PciSignals {
    /// Set only while MSI-X is off.
    isr: AtomicU32,
    needs_reset: AtomicBool,
    msix: Arc<Msix>,
}

impl PciSignals {
    pub(super) fn new(msix: Arc<Msix>) -> Self {
        Self { isr: AtomicU32::new(0), needs_reset: AtomicBool::new(false), msix }
    }

    pub(super) fn isr(&self) -> u32 {
        self.isr.load(Ordering::Acquire)
    }

    /// Reads the ISR status as a driver does, which clears it.
    pub(super) fn take_isr(&self) -> u32 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, isr: u32, needs_reset: bool) {
        self.isr.store(isr, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// The device's configuration space is another.
    pub(super) fn changed(&self) {
        self.raise(Cause::Config, ISR_CONFIG);
    }

    fn raise(&self, cause: Cause, bit: u32) {
        if !self.msix.raise(cause) {
            self.isr.fetch_or(bit, Ordering::AcqRel);
        }
    }
}

impl Signals for PciSignals {
    fn used(&self, queue: u16) {
        self.raise(Cause::Used(queue), ISR_QUEUE);
    }

    fn broken(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(Cause::Config, ISR_CONFIG);
    }
}
