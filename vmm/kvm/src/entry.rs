//! The state in which a vCPU enters a kernel: PVH (Xen's `hvm_start_info` boot ABI, xen/docs/misc/pvh.pandoc), 32-bit
//! protected mode without paging. The kernel and the start info are in guest memory already.

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use zerocopy::IntoBytes;

const CR0_PROTECTED_MODE: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const RFLAGS_RESERVED: u64 = 2;
const FLAT_LIMIT: u32 = 0xffff_ffff;

const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 3;
const SEGMENT_BUSY_TSS: u8 = 0xb;
/// What the ABI asks of TR.
const TSS_LIMIT: u32 = 0x67;

/// Where the entry's selectors would lie in a table; the kernel loads its own before it uses one.
const CODE_SELECTOR: u16 = 0x8;
const DATA_SELECTOR: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x18;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back where none says otherwise: what firmware leaves behind.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const APIC_MODE_EXTINT: u32 = 7 << 8;
const APIC_MODE_NMI: u32 = 4 << 8;

/// MSRs that firmware would have set.
pub(crate) fn boot_msrs() -> [kvm_msr_entry; 2] {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    [msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK)]
}

/// Virtual wire mode (Intel MultiProcessor Specification 1.4 §3.6.2.2): the PIC on LINT0, NMI on LINT1.
pub(crate) fn wire_local_apic(apic: &mut kvm_lapic_state) {
    for (register, mode) in [(APIC_LVT0, APIC_MODE_EXTINT), (APIC_LVT1, APIC_MODE_NMI)] {
        apic.regs.as_mut_bytes()[register..register + 4].copy_from_slice(&mode.to_le_bytes());
    }
}

/// General registers at the entry.
pub(crate) fn pvh_regs(rip: u32, start_info: u32) -> kvm_regs {
    kvm_regs { rip: rip.into(), rbx: start_info.into(), rflags: RFLAGS_RESERVED, ..Default::default() }
}

/// Turns the reset state's system registers into the entry's.
pub(crate) fn pvh_sregs(sregs: &mut kvm_sregs) {
    sregs.cs = flat(CODE_SELECTOR, SEGMENT_CODE);
    let data = flat(DATA_SELECTOR, SEGMENT_DATA);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: TSS_LIMIT, selector: TSS_SELECTOR, type_: SEGMENT_BUSY_TSS, present: 1, ..Default::default() };
    (sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit) = (0, 0, 0, 0);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0_PROTECTED_MODE | CR0_EXTENSION_TYPE, 0, 0, 0);
}

/// The state of every vCPU but the first: it waits to be started.
pub(crate) fn waiting() -> kvm_mp_state {
    kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED }
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { limit: FLAT_LIMIT, selector, type_, present: 1, db: 1, s: 1, g: 1, ..Default::default() }
}
