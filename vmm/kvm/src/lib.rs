//! KVM and the memory mapped into it: everything that needs `unsafe`, behind a safe border.
#![expect(unsafe_code, reason = "this crate is the one home of unsafe code in the VMM; each block says why it holds")]

mod cpuid;
mod dirty_log;
mod entry;
mod error;
mod kick;
mod machine;
mod page_set;
mod ram;
mod run_page;
mod system;
mod vcpu;

#[cfg(test)]
mod tests;

pub use self::{
    error::{Error, Result},
    kick::{VcpuKicker, kick_signal},
    machine::Machine,
    page_set::PageSet,
    ram::{GuestRam, PAGE_BYTES, RAM_BYTES_MAX, Ram},
    system::{VCPUS_MAX, open_kvm},
    vcpu::{Bus, Vcpu, VcpuExit},
};
