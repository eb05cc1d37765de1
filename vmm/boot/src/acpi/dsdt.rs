//! The DSDT: COM1, the PCI host bridge, what the motherboard reserves, and the sleep type of power-off.
//!
//! Stock kernels find their disks and network cards behind the bridge; how many there are is nothing that the tables say.

use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope, ZERO,
    },
    sdt::Sdt,
};
use rebec_layout::{COM1_END, COM1_GSI, COM1_PORT, ECAM, PCI_WINDOW, S5_SLEEP_TYPE};

use super::{HEADER_BYTES, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// From revision 2 on, AML integers have 64 bits.
const REVISION: u8 = 2;

pub(super) fn table() -> Sdt {
    let mut aml = Vec::new();
    let s5 = Package::new(vec![&S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut aml);
    Scope::new("\\_SB_".into(), vec![&Com1, &HostBridge, &Motherboard]).to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// The serial console.
struct Com1;

impl Aml for Com1 {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(COM1_PORT, COM1_PORT, 1, (COM1_END - COM1_PORT) as u8);
        let interrupt = edge(COM1_GSI);
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
        let uid = Name::new("_UID".into(), &ZERO);
        let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt]));
        Device::new("COM1".into(), vec![&hid, &uid, &resources]).to_aml_bytes(sink);
    }
}

/// The root of bus 0 and its window for BARs. There is no interrupt routing: no function has a pin.
struct HostBridge;

impl Aml for HostBridge {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let bus = AddressSpace::new_bus_number(0u16, 0);
        let (first, last) = (PCI_WINDOW.start as u32, (PCI_WINDOW.end - 1) as u32);
        let window = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
        let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
        let uid = Name::new("_UID".into(), &ZERO);
        let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&bus, &window]));
        Device::new("PCI0".into(), vec![&hid, &cid, &uid, &resources]).to_aml_bytes(sink);
    }
}

/// What the motherboard takes for itself: PCI's configuration spaces. Linux 6.1 uses them only where this says so, 6.12 where the memory map
/// reserves them.
struct Motherboard;

impl Aml for Motherboard {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let spaces = Memory32Fixed::new(true, ECAM.start as u32, (ECAM.end - ECAM.start) as u32);
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
        let uid = Name::new("_UID".into(), &ZERO);
        let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&spaces]));
        Device::new("MRES".into(), vec![&hid, &uid, &resources]).to_aml_bytes(sink);
    }
}

/// Consumed, edge triggered, active high, exclusive.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(haystack: &[u8], needle: &[u8]) -> usize {
        haystack.windows(needle.len()).filter(|window| *window == needle).count()
    }

    #[test]
    fn the_host_bridge_has_bus_zero_and_a_window() {
        let bus = [0x88, 13, 0, 2, 0b1100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        let window = [
            &[0x87, 23, 0, 0, 0b1100, 1, 0, 0, 0, 0][..],
            &0xd000_0000u32.to_le_bytes(),
            &0xdfff_ffffu32.to_le_bytes(),
            &[0; 4],
            &0x1000_0000u32.to_le_bytes(),
            &[0x79, 0],
        ]
        .concat();
        let aml = table();
        assert_eq!(count(aml.as_slice(), &[&bus[..], &window].concat()), 1);
        // PNP0A08 and PNP0A03, compressed.
        for id in [[0x41, 0xd0, 0x0a, 0x08], [0x41, 0xd0, 0x0a, 0x03]] {
            assert_eq!(count(aml.as_slice(), &id), 1);
        }
    }

    #[test]
    fn the_motherboard_reserves_the_configuration_spaces() {
        let spaces = [0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x10, 0, 0x79, 0];
        let (aml, id) = (table(), [0x41, 0xd0, 0x0c, 0x02]);
        assert_eq!((count(aml.as_slice(), &spaces), count(aml.as_slice(), &id)), (1, 1));
    }

    #[test]
    fn power_off_is_sleep_type_five() {
        let s5 = [&[0x08][..], b"\\_S5_", &[0x12, 0x07, 4, 0x0a, 5, 0, 0, 0]].concat();
        assert_eq!(count(table().as_slice(), &s5), 1);
    }

    #[test]
    fn com1_has_its_eight_ports_and_interrupt_four() {
        let resources = [0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 0b0011, 1, 4, 0, 0, 0];
        assert_eq!(count(table().as_slice(), &resources), 1);
    }
}
