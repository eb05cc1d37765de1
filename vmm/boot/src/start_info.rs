//! What a PVH kernel is told: memory map, initramfs, command line, ACPI root (xen/include/public/arch-x86/hvm/start_info.h,
//! version 1). Data comes from `load`; the addresses are `rebec_layout`'s.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry,
    hvm_start_info,
};
use rebec_layout::{
    ACPI, CMDLINE, ECAM, HIGH_RAM_START, KERNEL_START, LEGACY_HOLE, MEMMAP, MODULES, START_INFO, high_ram_bytes, low_ram_bytes,
};
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress, guest_memory};

use crate::ram::GuestRam;

/// Version 1 has the memory map.
const VERSION: u32 = 1;

/// RAM below the hole, the hole with the ACPI tables, RAM above it, PCI's configuration spaces, which Linux uses only where they are
/// reserved, RAM beyond 4 GiB.
fn memmap(ram_bytes: u64) -> Vec<hvm_memmap_table_entry> {
    let entry = |type_, addr, size| hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
    let mut map = vec![
        entry(XEN_HVM_MEMMAP_TYPE_RAM, 0, LEGACY_HOLE.start),
        entry(XEN_HVM_MEMMAP_TYPE_RESERVED, LEGACY_HOLE.start, LEGACY_HOLE.end - LEGACY_HOLE.start),
        entry(XEN_HVM_MEMMAP_TYPE_RAM, KERNEL_START, low_ram_bytes(ram_bytes) - KERNEL_START),
        entry(XEN_HVM_MEMMAP_TYPE_RESERVED, ECAM.start, ECAM.end - ECAM.start),
    ];
    if high_ram_bytes(ram_bytes) > 0 {
        map.push(entry(XEN_HVM_MEMMAP_TYPE_RAM, HIGH_RAM_START, high_ram_bytes(ram_bytes)));
    }
    map
}

/// Writes start_info and what it points to, apart from the ACPI tables.
pub(crate) fn write(ram: &GuestRam, ram_bytes: u64, cmdline: &str, initramfs: Option<&Range<u64>>) -> Result<(), guest_memory::Error> {
    let map = memmap(ram_bytes);
    for (place, entry) in (MEMMAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(&map) {
        ram.write_obj(*entry, GuestAddress(place))?;
    }
    if let Some(range) = initramfs {
        let module = hvm_modlist_entry { paddr: range.start, size: range.end - range.start, ..Default::default() };
        ram.write_obj(module, GuestAddress(MODULES))?;
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    ram.write_obj(0u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: initramfs.is_some().into(),
        modlist_paddr: if initramfs.is_some() { MODULES } else { 0 },
        cmdline_paddr: CMDLINE,
        rsdp_paddr: ACPI.start,
        memmap_paddr: MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    ram.write_obj(info, GuestAddress(START_INFO))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: usize = 1 << 30;

    /// What a guest of 5 GiB is told, byte for byte: a change of it changes what every kernel sees.
    #[test]
    fn golden_bytes_with_high_memory_and_initramfs() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 3 * GIB), (GuestAddress(HIGH_RAM_START), 2 * GIB)]).unwrap();
        write(&ram, 5 << 30, "console=ttyS0", Some(&(0xbfff_e000..0xbfff_f123))).unwrap();
        let read = |address, bytes| {
            let mut buffer = vec![0; bytes];
            ram.read_slice(&mut buffer, GuestAddress(address)).unwrap();
            buffer.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect::<Vec<u32>>()
        };
        assert_eq!(read(0x6000, 56), [0x336e_c578, 1, 0, 1, 0x8000, 0, 0x9000, 0, 0xe_0000, 0, 0x7000, 0, 5, 0]);
        let entries = [
            [0, 0, 0xa_0000, 0, 1, 0],
            [0xa_0000, 0, 0x6_0000, 0, 2, 0],
            [0x10_0000, 0, 0xbff0_0000, 0, 1, 0],
            [0xe000_0000, 0, 0x10_0000, 0, 2, 0],
            [0, 1, 0x8000_0000, 0, 1, 0],
            [0; 6],
        ];
        assert_eq!(read(0x7000, 6 * 24), entries.concat());
        assert_eq!(read(0x8000, 32), [0xbfff_e000, 0, 0x1123, 0, 0, 0, 0, 0]);
        let mut cmdline = [0xff; 14];
        ram.read_slice(&mut cmdline, GuestAddress(0x9000)).unwrap();
        assert_eq!(&cmdline, b"console=ttyS0\0");
    }

    #[test]
    fn without_initramfs_there_is_no_module_and_small_memory_has_no_high_part() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        write(&ram, 64 << 20, "", None).unwrap();
        let info: hvm_start_info = ram.read_obj(GuestAddress(START_INFO)).unwrap();
        assert_eq!((info.nr_modules, info.modlist_paddr, info.memmap_entries), (0, 0, 4));
        let last: hvm_memmap_table_entry = ram.read_obj(GuestAddress(MEMMAP + 48)).unwrap();
        assert_eq!((last.addr, last.addr + last.size), (KERNEL_START, 64 << 20));
    }
}
