//! The virtio-pci transport, modern only (virtio 1.3 §4.1): a PCI function in front of a device that does not know of it.
//!
//! ```text
//!   vCPU ──configuration space──► header, BAR, capabilities, MSI-X on or off
//!        ──BAR──► +0x0000 common     `common`: features, status, queues ──DRIVER_OK──► device.start_queues
//!                 +0x1000 ISR        interrupt status, read and cleared; set while MSI-X is off
//!                 +0x2000 device     the device's configuration space
//!                 +0x3000 notify     kicks: four bytes for each queue, matched by ioeventfd
//!                 +0x4000 table      MSI-X messages      +0x5000 pending
//!   queue thread ──used, broken──► the queue's message, sent to a local APIC: the driver reads and writes no register for it
//! ```
//!
//! The function has no interrupt pin: a driver without MSI-X polls.

mod common;
mod config;
mod msix;
pub(crate) mod registers;
mod saved;
mod signals;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    fmt::Debug,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rebec_vmm_saved::{Part, SavedError};
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use crate::{GuestRam, Threads, room::Blocks};
use common::Common;
pub(crate) use common::UNPLUGGED_INACCESSIBLE;
use config::ConfigSpace;
use msix::Msix;

/// Bytes of a function's BAR.
pub const BAR_BYTES: u64 = 0x8000;
/// Bytes of the configuration space that a function answers; what is beyond reads as all ones.
pub const CONFIG_BYTES: u64 = config::BYTES as u64;

const REGION_BYTES: u64 = 0x1000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const NOTIFY_STRIDE: u64 = 4;
/// No BAR is decoded here.
const NOWHERE: u64 = u64::MAX;

/// What the machine does for a function.
pub trait PciHost: Send + Sync + Debug {
    /// Sends an interrupt message.
    fn interrupt(&self, address: u64, data: u32);
    /// Has the guest's writes to an address signal an event, without leaving the kernel.
    fn watch(&self, address: u64, kick: &EventFd) -> io::Result<()>;
    /// Ends [`PciHost::watch`].
    fn forget(&self, address: u64, kick: &EventFd) -> io::Result<()>;
}

/// A device behind a PCI function. Shared by all vCPUs; every method takes `&self`.
pub struct PciTransport {
    common: Common,
    msix: Arc<Msix>,
    host: Arc<dyn PciHost>,
    config: Mutex<ConfigSpace>,
    /// Where the BAR is decoded, or [`NOWHERE`].
    address: AtomicU64,
}

impl PciTransport {
    /// Puts a device behind a function whose BAR lies at `address`, as firmware would leave it.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: GuestRam,
        host: Arc<dyn PciHost>,
        address: u32,
        threads: Arc<dyn Threads>,
    ) -> io::Result<Self> {
        let (kind, queues) = (device.kind(), device.queue_sizes().len());
        let msix = Arc::new(Msix::new(host.clone(), queues));
        let common = Common::new(device, ram, msix.clone(), threads)?;
        let config = ConfigSpace::new(kind, queues as u16, address);
        let function = Self { common, msix, host, address: NOWHERE.into(), config: Mutex::new(config) };
        function.decode(&function.config());
        Ok(function)
    }

    /// The same function, in a machine with room for more memory: what its guest does not have of that is no RAM to the device.
    pub fn within(mut self, blocks: Arc<Blocks>) -> Self {
        self.common.blocks = Some(blocks);
        self
    }

    /// A vCPU reads the configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let config = self.config();
        config.read(offset as usize, data);
        let window = config.window(offset as usize, data.len());
        drop(config);
        if let Some(offset) = window {
            self.read(offset, data);
        }
    }

    /// A vCPU writes the configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        config.write(offset as usize, data);
        self.decode(&config);
        let (enabled, masked) = config.msix();
        self.msix.change(|state| (state.enabled, state.masked) = (enabled, masked));
        let window = config.window(offset as usize, data.len());
        drop(config);
        if let Some(offset) = window {
            self.write(offset, data);
        }
    }

    /// How far into the BAR an address is, if the function answers there.
    pub fn offset_of(&self, address: u64) -> Option<u64> {
        address.checked_sub(self.address.load(Ordering::Acquire)).filter(|offset| *offset < BAR_BYTES)
    }

    /// A vCPU reads the BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let at = offset % REGION_BYTES;
        match offset - at {
            COMMON => {
                let value = self.common.read((at, data.len()));
                copy(data, &value.to_le_bytes());
            }
            ISR if at == 0 => copy(data, &self.common.signals.take_isr().to_le_bytes()),
            DEVICE => self.common.read_config(at, data),
            TABLE => self.msix.read_table(at, data),
            PENDING => self.msix.read_pending(at, data),
            _ => {}
        }
    }

    /// A vCPU writes the BAR.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let at = offset % REGION_BYTES;
        match offset - at {
            COMMON => {
                let value = data.iter().take(4).rev().fold(0, |value: u32, byte| value << 8 | u32::from(*byte));
                self.common.write((at, data.len()), value);
            }
            DEVICE => self.common.write_config(at, data),
            NOTIFY => self.common.kick(at / NOTIFY_STRIDE),
            TABLE => self.msix.write_table(at, data),
            _ => {}
        }
    }

    /// Tells the driver that the device's configuration space has changed.
    pub fn reconfigure(&self) {
        self.common.reconfigure();
    }

    /// Stops the queues; no request is in flight when it returns. The vCPUs must not run.
    pub fn pause(&self) {
        self.common.pause();
    }

    /// Runs on from where [`PciTransport::pause`] or [`PciTransport::restore`] left it.
    pub fn resume(&self) {
        self.common.resume();
    }

    /// Pauses and says everything.
    pub fn save(&self, slot: u16) -> Part {
        self.pause();
        let (space, inner) = (self.config(), self.common.lock());
        saved::save(slot, &self.common, &inner, &space, &self.msix.state())
    }

    /// Takes what [`PciTransport::save`] said into a device that has not run yet, and stays paused.
    pub fn restore(&self, part: &Part) -> Result<(), SavedError> {
        self.pause();
        let (mut space, mut inner) = (self.config(), self.common.lock());
        let restored = saved::restore(part, &self.common, &inner, &space)?;
        inner.device.restore(&restored.device).map_err(|what| part.invalid(what))?;
        self.common.restored(&*inner.device);
        inner.registers = restored.registers;
        inner.arrived = true;
        self.common.signals.set(restored.isr, restored.needs_reset);
        *self.msix.state() = restored.msix;
        *space = restored.space;
        self.decode(&space);
        Ok(())
    }

    /// Answers where the configuration space says, and has the kicks watched there.
    fn decode(&self, config: &ConfigSpace) {
        let new = config.address().unwrap_or(NOWHERE);
        let old = self.address.swap(new, Ordering::AcqRel);
        if old == new {
            return;
        }
        for (at, kick) in (NOTIFY..).step_by(NOTIFY_STRIDE as usize).zip(&self.common.kicks) {
            let forgotten = if old == NOWHERE { Ok(()) } else { self.host.forget(old + at, kick) };
            let watched = if new == NOWHERE { Ok(()) } else { self.host.watch(new + at, kick) };
            // The guest chose the place; what is not watched still comes by `write`.
            if let Err(error) = forgotten.and(watched) {
                log::debug!("watch for kicks at {:#x}: {error}", new.wrapping_add(at));
            }
        }
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies as much as both have.
fn copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
