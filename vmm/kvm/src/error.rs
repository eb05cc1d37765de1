//! Why something at the border to KVM failed. Each variant names the operation and the object; the source is chained.

use std::io;

use rebec_vmm_saved::SavedError;
use vmm_sys_util::errno;

/// Results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What KVM, the memory under it or saved state refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` cannot be opened.
    #[error("open /dev/kvm: {advice}")]
    Open {
        /// What the user can do.
        advice: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor is not KVM's, or KVM is of another age.
    #[error("the KVM descriptor answers API version {found}, needed is {needed}: is it /dev/kvm?")]
    ApiVersion {
        /// What it answered; negative when it is not KVM at all.
        found: i32,
        /// What this program speaks.
        needed: u32,
    },
    /// KVM lacks something that every machine needs.
    #[error("this host's KVM lacks {missing}: a newer kernel is needed")]
    Capabilities {
        /// The missing capabilities by KVM's names.
        missing: String,
    },
    /// A CPU model that cannot be had.
    #[error("this host lacks {lacks}, which the CPU model has: take a lesser model, or another host")]
    Model {
        /// What is missing.
        lacks: String,
    },
    /// A vCPU count that cannot be had.
    #[error("{count} vCPUs: this host allows 1 to {max}")]
    VcpuCount {
        /// What was asked for.
        count: u8,
        /// The most there can be.
        max: usize,
    },
    /// A RAM size that cannot be had.
    #[error("{bytes} bytes of RAM: must be a multiple of 4096 between 4096 and {max}")]
    RamSize {
        /// What was asked for.
        bytes: u64,
        /// The most there can be.
        max: u64,
    },
    /// The memory behind guest RAM.
    #[error("guest RAM: {operation}")]
    Ram {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Guest RAM could not be mapped.
    #[error("guest RAM: map it")]
    Map(#[source] vm_memory::mmap::FromRangesError),
    /// A page number or its bytes cannot be reached.
    #[error("guest RAM: page {number} of {pages}")]
    Page {
        /// The page.
        number: u64,
        /// How many there are.
        pages: u64,
        /// Why, where memory said so.
        source: Option<vm_memory::GuestMemoryError>,
    },
    /// An operation on the virtual machine.
    #[error("virtual machine: {operation}")]
    Machine {
        /// What was tried.
        operation: &'static str,
        /// What KVM said.
        source: errno::Error,
    },
    /// An operation on one vCPU.
    #[error("vCPU {index}: {operation}")]
    Vcpu {
        /// The vCPU.
        index: u8,
        /// What was tried.
        operation: &'static str,
        /// What KVM said.
        source: errno::Error,
    },
    /// KVM could not carry on with the guest.
    #[error("vCPU {index} stopped at rip {rip:#x}: {what}")]
    Stopped {
        /// The vCPU.
        index: u8,
        /// Where the guest was.
        rip: u64,
        /// What KVM reported.
        what: String,
    },
    /// The process could not be split or signalled as asked.
    #[error("{operation}")]
    Process {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Saved state was refused before it reached KVM.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The bytes of a CPU model make no sense.
    #[error("CPU model: {what}")]
    CpuModel {
        /// What is wrong.
        what: String,
    },
}

/// Names the operation of a failed call on the virtual machine.
pub(crate) fn machine(operation: &'static str) -> impl FnOnce(errno::Error) -> Error {
    move |source| Error::Machine { operation, source }
}

/// Names the operation of a failed call on a vCPU.
pub(crate) fn vcpu(index: u8, operation: &'static str) -> impl FnOnce(errno::Error) -> Error {
    move |source| Error::Vcpu { index, operation, source }
}

/// Names the operation of a failed call about this process.
pub(crate) fn process(operation: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Process { operation, source }
}
