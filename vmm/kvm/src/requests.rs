//! The ioctl requests by which this crate speaks to KVM, for who lets a sealed process make these and no others. A request that is added
//! elsewhere in the crate is added here.
//!
//! The numbers are the kernel's (`include/uapi/linux/kvm.h`): direction, size of the structure, KVM's letter and a number.

use std::ffi::c_uint;

use kvm_bindings::{
    KVMIO, kvm_clear_dirty_log, kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_device_attr, kvm_dirty_log, kvm_enable_cap, kvm_ioeventfd,
    kvm_irqchip, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_list, kvm_msrs, kvm_pit_config, kvm_pit_state2,
    kvm_pre_fault_memory, kvm_regs, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// Runs the guest: the one that is made all the time.
pub const KVM_RUN: u32 = bare(0x80);
/// Raises an interrupt by message; whoever serves a queue does.
pub const KVM_SIGNAL_MSI: u32 = write::<kvm_msi>(0xa5);
/// Connects an event to guest addresses; follows a guest that moves a device's registers.
pub const KVM_IOEVENTFD: u32 = write::<kvm_ioeventfd>(0x79);

/// State of one vCPU: what boots, saves, restores and describes it.
pub const VCPU: [u32; 26] = [
    read::<kvm_regs>(0x81),             // KVM_GET_REGS
    write::<kvm_regs>(0x82),            // KVM_SET_REGS
    read::<kvm_sregs>(0x83),            // KVM_GET_SREGS
    write::<kvm_sregs>(0x84),           // KVM_SET_SREGS
    both::<kvm_msrs>(0x88),             // KVM_GET_MSRS
    write::<kvm_msrs>(0x89),            // KVM_SET_MSRS
    read::<kvm_lapic_state>(0x8e),      // KVM_GET_LAPIC
    write::<kvm_lapic_state>(0x8f),     // KVM_SET_LAPIC
    write::<kvm_cpuid2>(0x90),          // KVM_SET_CPUID2
    both::<kvm_cpuid2>(0x91),           // KVM_GET_CPUID2
    read::<kvm_mp_state>(0x98),         // KVM_GET_MP_STATE
    write::<kvm_mp_state>(0x99),        // KVM_SET_MP_STATE
    read::<kvm_vcpu_events>(0x9f),      // KVM_GET_VCPU_EVENTS
    write::<kvm_vcpu_events>(0xa0),     // KVM_SET_VCPU_EVENTS
    read::<kvm_debugregs>(0xa1),        // KVM_GET_DEBUGREGS
    write::<kvm_debugregs>(0xa2),       // KVM_SET_DEBUGREGS
    bare(0xa2),                         // KVM_SET_TSC_KHZ
    bare(0xa3),                         // KVM_GET_TSC_KHZ
    write::<kvm_xsave>(0xa5),           // KVM_SET_XSAVE
    read::<kvm_xsave>(0xcf),            // KVM_GET_XSAVE2
    read::<kvm_xcrs>(0xa6),             // KVM_GET_XCRS
    write::<kvm_xcrs>(0xa7),            // KVM_SET_XCRS
    bare(0xad),                         // KVM_KVMCLOCK_CTRL
    both::<kvm_pre_fault_memory>(0xd5), // KVM_PRE_FAULT_MEMORY
    write::<kvm_device_attr>(0xe1),     // KVM_SET_DEVICE_ATTR
    write::<kvm_device_attr>(0xe2),     // KVM_GET_DEVICE_ATTR
];

/// The machine: what is asked of KVM before there is one, what makes it, logs its writes, saves and restores it.
pub const MACHINE: [u32; 22] = [
    bare(0x00),                                 // KVM_GET_API_VERSION
    bare(0x01),                                 // KVM_CREATE_VM
    both::<kvm_msr_list>(0x02),                 // KVM_GET_MSR_INDEX_LIST
    bare(0x03),                                 // KVM_CHECK_EXTENSION
    bare(0x04),                                 // KVM_GET_VCPU_MMAP_SIZE
    both::<kvm_cpuid2>(0x05),                   // KVM_GET_SUPPORTED_CPUID
    bare(0x41),                                 // KVM_CREATE_VCPU
    write::<kvm_dirty_log>(0x42),               // KVM_GET_DIRTY_LOG
    write::<kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
    bare(0x47),                                 // KVM_SET_TSS_ADDR
    write::<u64>(0x48),                         // KVM_SET_IDENTITY_MAP_ADDR
    bare(0x60),                                 // KVM_CREATE_IRQCHIP
    both::<kvm_irqchip>(0x62),                  // KVM_GET_IRQCHIP
    read::<kvm_irqchip>(0x63),                  // KVM_SET_IRQCHIP
    write::<kvm_irqfd>(0x76),                   // KVM_IRQFD
    write::<kvm_pit_config>(0x77),              // KVM_CREATE_PIT2
    write::<kvm_clock_data>(0x7b),              // KVM_SET_CLOCK
    read::<kvm_clock_data>(0x7c),               // KVM_GET_CLOCK
    read::<kvm_pit_state2>(0x9f),               // KVM_GET_PIT2
    write::<kvm_pit_state2>(0xa0),              // KVM_SET_PIT2
    write::<kvm_enable_cap>(0xa3),              // KVM_ENABLE_CAP
    both::<kvm_clear_dirty_log>(0xc0),          // KVM_CLEAR_DIRTY_LOG
];

const fn bare(number: c_uint) -> u32 {
    ioctl_expr(_IOC_NONE, KVMIO, number, 0) as u32
}

const fn read<T>(number: c_uint) -> u32 {
    ioctl_expr(_IOC_READ, KVMIO, number, size_of::<T>() as c_uint) as u32
}

const fn write<T>(number: c_uint) -> u32 {
    ioctl_expr(_IOC_WRITE, KVMIO, number, size_of::<T>() as c_uint) as u32
}

const fn both<T>(number: c_uint) -> u32 {
    ioctl_expr(_IOC_READ | _IOC_WRITE, KVMIO, number, size_of::<T>() as c_uint) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!((KVM_RUN, KVM_SIGNAL_MSI, KVM_IOEVENTFD), (0xae80, 0x4020_aea5, 0x4040_ae79));
        assert_eq!((VCPU[0], VCPU[4], VCPU[17]), (0x8090_ae81, 0xc008_ae88, 0xaea3), "KVM_GET_REGS, KVM_GET_MSRS, KVM_GET_TSC_KHZ");
        assert_eq!((MACHINE[8], MACHINE[21]), (0x4020_ae46, 0xc018_aec0), "KVM_SET_USER_MEMORY_REGION, KVM_CLEAR_DIRTY_LOG");
    }

    #[test]
    fn no_request_is_listed_twice() {
        let all: Vec<u32> = [KVM_RUN, KVM_SIGNAL_MSI, KVM_IOEVENTFD].into_iter().chain(VCPU).chain(MACHINE).collect();
        for (at, request) in all.iter().enumerate() {
            assert!(!all[..at].contains(request), "{request:#x}");
        }
    }
}
