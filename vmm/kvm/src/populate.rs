//! Fills KVM's own page tables ahead of the guest: each page that a guest touches for the first time on a machine costs an exit, and a
//! machine that has just arrived touches all it works with at once.
//!
//! KVM_PRE_FAULT_MEMORY (Linux 6.11) does on a vCPU's behalf what such an exit does. Where KVM has it not, nothing is lost but time.

use std::ops::Range;

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use rebec_layout::{LOW_RAM_BYTES_MAX, PAGE_BYTES};
use vmm_sys_util::{errno, ioctl::ioctl_with_mut_ref, ioctl_iowr_nr};

use crate::{Vcpu, error::Result};

ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// How far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Populated {
    /// All that was asked for.
    Done,
    /// Up to this page: the vCPU was kicked.
    Until(u64),
    /// This KVM cannot.
    Unsupported,
}

impl Vcpu {
    /// Maps pages of RAM into the tables by which the guest will reach them; of its room nothing, for what it may reach of that is not known before the
    /// machine is restored. Pages that nobody populated become so: ask only for those that are. A kick ends it early.
    pub fn populate(&mut self, pages: Range<u64>) -> Result<Populated> {
        if !self.host.pre_faults {
            return Ok(Populated::Unsupported);
        }
        let kicks = self.kicks.clone();
        let _entered = kicks.enter();
        let end = pages.end.min(self.host.ram.boot_pages());
        let mut at = pages.start;
        while at < end {
            let hole = LOW_RAM_BYTES_MAX / PAGE_BYTES;
            let piece_end = if at < hole { end.min(hole) } else { end };
            let gpa = self.host.ram.page_address(at).0;
            let mut request = kvm_pre_fault_memory { gpa, size: (piece_end - at) * PAGE_BYTES, ..Default::default() };
            // SAFETY: KVM reads and writes this structure only, and maps memory that the machine's slots keep alive.
            let result = unsafe { ioctl_with_mut_ref(&self.fd, KVM_PRE_FAULT_MEMORY(), &mut request) };
            // It says how much is left, also when it was interrupted on the way.
            at = piece_end - (request.size / PAGE_BYTES).min(piece_end - at);
            if result == 0 {
                continue;
            }
            let error = errno::Error::last();
            match error.errno() {
                libc::EINTR | libc::EAGAIN => {
                    kicks.take();
                    return Ok(Populated::Until(at));
                }
                libc::EOPNOTSUPP => return Ok(Populated::Unsupported),
                _ => return Err(self.failed("map its memory ahead")(error)),
            }
        }
        Ok(Populated::Done)
    }
}
