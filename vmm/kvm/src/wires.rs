//! What devices do to a machine while it runs: interrupt messages, and events in place of exits. A handle of its own, because devices are
//! rewired by vCPUs and interrupt from their threads.

use std::sync::Arc;

use kvm_bindings::kvm_msi;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    Ram,
    error::{self, Result},
};

/// Wires of one machine. KVM keeps the machine's shell until the last of them is gone, and so its memory stays mapped.
#[derive(Debug, Clone)]
pub struct Wires {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) _ram: Ram,
}

impl Wires {
    /// Sends an interrupt message (MSI); a guest that masks all interrupts drops it.
    pub fn message(&self, address: u64, data: u32) -> Result<()> {
        let msi = kvm_msi { address_lo: address as u32, address_hi: (address >> 32) as u32, data, ..Default::default() };
        self.vm.signal_msi(msi).map(drop).map_err(error::machine("send an interrupt message"))
    }

    /// Has the guest's writes to an address, whatever they are, signal an event without leaving the kernel.
    pub fn watch(&self, address: u64, event: &EventFd) -> Result<()> {
        let at = IoEventAddress::Mmio(address);
        self.vm.register_ioevent(event, &at, NoDatamatch).map_err(error::machine("register an ioeventfd"))
    }

    /// Ends [`Wires::watch`].
    pub fn forget(&self, address: u64, event: &EventFd) -> Result<()> {
        let at = IoEventAddress::Mmio(address);
        self.vm.unregister_ioevent(event, &at, NoDatamatch).map_err(error::machine("unregister an ioeventfd"))
    }
}
