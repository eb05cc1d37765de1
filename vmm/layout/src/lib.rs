//! What is the same in every machine: its limits, and where everything lies in the guest's physical address space and port space.
//! Constants only, each told once.
//!
//! Who uses it: the boot crate (ACPI tables, memory map), the KVM crate (RAM regions, TSS), the devices (power, disks), the engine of
//! moves (what a peer may offer), the command line and the process (bus, eventfds).
//!
//! ```text
//! 0x0000_0000  start_info, memory map, module list, command line     RAM, reused by the guest once it has read them
//! 0x000a_0000  legacy hole; ACPI tables from 0x000e_0000             reserved
//! 0x0010_0000  kernel ... initramfs ends where low RAM ends          RAM
//! 0xc000_0000  end of low RAM at the latest
//! 0xd000_0000  PCI: window for BARs, 32 KiB for each slot when the machine starts
//! 0xe000_0000  PCI: configuration spaces of bus 0 (ECAM), one function a slot, from device 1 on
//! 0xfec0_0000  IOAPIC   0xfee0_0000 local APIC   0xfffb_c000 KVM's own four pages
//! 0x1_0000_0000  RAM beyond 3 GiB
//! behind it, at the next multiple of 2 GiB: room for memory that a guest takes in while it runs
//! ```

use std::ops::Range;

/// Most vCPUs of a machine.
pub const VCPUS_MAX: u8 = 16;
/// Most RAM of a machine. A set of its pages takes 32 MiB.
pub const RAM_BYTES_MAX: u64 = 1 << 40;
/// Largest disk. A set of its units takes 256 MiB.
pub const DISK_BYTES_MAX: u64 = 8 << 40;
/// Most queues of a disk.
pub const DISK_QUEUES_MAX: u8 = 4;

/// Size of a page: the unit of every RAM size, of dirty tracking in memory and on disks, and of what a move sends.
pub const PAGE_BYTES: u64 = 4096;
/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_BYTES_MAX: u64 = 3 << 30;
/// RAM that does not fit below continues here.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// Memory that a guest takes in or gives back while it runs does so in blocks of this size.
pub const ROOM_BLOCK_BYTES: u64 = 2 << 20;
/// The room for such memory ends at a multiple of this: Linux takes in nothing of a piece that is not whole.
pub const ROOM_PIECE_BYTES: u64 = 128 << 20;
/// It begins at a multiple of this, the largest piece that Linux thinks in.
const ROOM_ALIGN: u64 = 2 << 30;

/// `hvm_start_info`.
pub const START_INFO: u64 = 0x6000;
/// Table of `hvm_memmap_table_entry`.
pub const MEMMAP: u64 = 0x7000;
/// Table of `hvm_modlist_entry`.
pub const MODULES: u64 = 0x8000;
/// Command line, ended by a zero byte.
pub const CMDLINE: u64 = 0x9000;
/// Longest command line without its zero byte: Linux's COMMAND_LINE_SIZE is 2048 and longer ones are cut silently.
pub const CMDLINE_BYTES_MAX: usize = 2047;
/// Never RAM to the guest. Linux reserves it for any PVH guest (`init_pvh_bootparams`).
pub const LEGACY_HOLE: Range<u64> = 0x000a_0000..0x0010_0000;
/// ACPI tables, the RSDP first. It lies where an ACPI 1.0 guest would search for it as well.
pub const ACPI: Range<u64> = 0x000e_0000..0x0010_0000;
/// Kernel segments begin here at the earliest; what is below belongs to the tables above.
pub const KERNEL_START: u64 = 0x0010_0000;

/// Device slots of a machine: PCI devices 1 to 16 of bus 0, one function each.
pub const SLOTS: usize = 16;
/// Where BARs may lie.
pub const PCI_WINDOW: Range<u64> = 0xd000_0000..0xe000_0000;
/// Bytes from one slot's BAR to the next one's when the machine starts; a guest may move them.
pub const BAR_STRIDE: u64 = 0x8000;
/// Configuration spaces of bus 0 (PCI Express 5.0 §7.2.2).
pub const ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// Bytes from one device's configuration space to the next one's: eight functions.
const ECAM_STRIDE: u64 = 0x8000;

/// IOAPIC of KVM's irqchip.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// Local APIC of every vCPU.
pub const LAPIC_ADDRESS: u32 = 0xfee0_0000;
/// Three pages that KVM for Intel needs to run real mode: a task state segment (KVM_SET_TSS_ADDR).
pub const KVM_TSS_ADDRESS: u64 = 0xfffb_d000;
/// One page for the same purpose: an identity map (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// First of the 8 ports of the serial console.
pub const COM1_PORT: u16 = 0x3f8;
/// First port after the serial console.
pub const COM1_END: u16 = COM1_PORT + 8;
/// Interrupt of the serial console.
pub const COM1_GSI: u32 = 4;
/// ACPI's system control interrupt: edge, active high.
pub const SCI_GSI: u32 = 9;
/// First of the ports of power management: PM1a and the reset register.
pub const POWER_PORT: u16 = PM1A_EVENT_PORT;
/// First port after power management.
pub const POWER_END: u16 = RESET_PORT + 1;
/// PM1a status (2 bytes) and enable (2 bytes); ACPI 6.5 §4.8.3.1.
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// PM1a control (2 bytes); ACPI 6.5 §4.8.3.2.
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// Reset register (1 byte); ACPI 6.5 §4.8.3.6.
pub const RESET_PORT: u16 = 0x608;
/// The value that resets when written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of `\_S5`: a write of it with SLP_EN to [`PM1A_CONTROL_PORT`] powers the machine off.
pub const S5_SLEEP_TYPE: u8 = 5;

/// Where a slot's BAR lies when the machine starts.
///
/// # Panics
/// If there is no such slot: slots are counted when a machine is configured, never by a guest.
#[must_use]
pub const fn slot_bar(slot: usize) -> u32 {
    assert!(slot < SLOTS, "invariant: slots are numbered 0..16");
    (PCI_WINDOW.start + slot as u64 * BAR_STRIDE) as u32
}

/// The slot and the offset in its configuration space that an address within [`ECAM`] means. The slot may not exist.
#[must_use]
pub const fn slot_config(address: u64) -> Option<(usize, u64)> {
    let Some(offset) = address.checked_sub(ECAM.start) else { return None };
    if address >= ECAM.end || offset < ECAM_STRIDE {
        return None;
    }
    Some(((offset / ECAM_STRIDE - 1) as usize, offset % ECAM_STRIDE))
}

/// Bytes of `ram_bytes` that lie below 4 GiB, from address 0.
#[must_use]
pub const fn low_ram_bytes(ram_bytes: u64) -> u64 {
    if ram_bytes < LOW_RAM_BYTES_MAX { ram_bytes } else { LOW_RAM_BYTES_MAX }
}

/// Bytes of `ram_bytes` that lie from [`HIGH_RAM_START`] on.
#[must_use]
pub const fn high_ram_bytes(ram_bytes: u64) -> u64 {
    ram_bytes - low_ram_bytes(ram_bytes)
}

/// Where the room for memory that comes and goes begins, in a machine that boots with `ram_bytes`.
#[must_use]
pub const fn room_start(ram_bytes: u64) -> u64 {
    (HIGH_RAM_START + high_ram_bytes(ram_bytes)).next_multiple_of(ROOM_ALIGN)
}

/// How large the room is in a machine that boots with `ram_bytes` and may have `max_bytes`.
#[must_use]
pub const fn room_bytes(ram_bytes: u64, max_bytes: u64) -> u64 {
    max_bytes.saturating_sub(ram_bytes).next_multiple_of(ROOM_PIECE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_lies_behind_ram_in_whole_pieces() {
        let gib = 1 << 30;
        for (ram, start) in [(gib, 4 * gib), (3 * gib, 4 * gib), (4 * gib, 6 * gib), (5 * gib, 6 * gib), (6 * gib, 8 * gib)] {
            assert_eq!(room_start(ram), start, "{ram:#x}");
        }
        assert_eq!((room_bytes(gib, gib), room_bytes(2 * gib, gib), room_bytes(gib, gib + 1)), (0, 0, ROOM_PIECE_BYTES));
    }

    #[test]
    fn slots_have_a_bar_and_a_configuration_space_of_their_own() {
        let last = SLOTS - 1;
        assert_eq!((slot_bar(0), slot_bar(last)), (0xd000_0000, 0xd007_8000));
        assert!(u64::from(slot_bar(last)) + BAR_STRIDE <= PCI_WINDOW.end);
        // Device 0 is nobody's; device 1 is slot 0; function 1 of a device lies 4 KiB further.
        for (address, slot) in [
            (ECAM.start - 1, None),
            (ECAM.start + 0x7fff, None),
            (ECAM.start + 0x8010, Some((0, 0x10))),
            (ECAM.start + 0x8_1004, Some((last, 0x1004))),
            (ECAM.end, None),
        ] {
            assert_eq!(slot_config(address), slot, "{address:#x}");
        }
    }

    #[test]
    fn ram_splits_at_three_gibibytes() {
        for (ram, low, high) in [(64 << 20, 64 << 20, 0), (3 << 30, 3 << 30, 0), (5 << 30, 3 << 30, 2 << 30)] {
            assert_eq!((low_ram_bytes(ram), high_ram_bytes(ram)), (low, high));
        }
    }

    #[test]
    fn boot_tables_do_not_overlap() {
        let ends = [START_INFO, MEMMAP, MODULES, CMDLINE, CMDLINE + PAGE_BYTES, LEGACY_HOLE.start];
        assert!(ends.is_sorted_by(|a, b| a < b));
        assert!(CMDLINE_BYTES_MAX < PAGE_BYTES as usize);
    }
}
