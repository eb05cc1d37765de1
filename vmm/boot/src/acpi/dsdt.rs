//! The DSDT: COM1, one `LNRO0005` device for each virtio-mmio slot in use, and the sleep type of power-off.
//!
//! Stock kernels have no virtio_mmio command line; this is how they find their disks and network cards.

use acpi_tables::{
    Aml, AmlSink,
    aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope, ZERO},
    sdt::Sdt,
};

use super::{HEADER_BYTES, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{COM1_END, COM1_GSI, COM1_PORT, S5_SLEEP_TYPE, VIRTIO_MMIO_STRIDE, slot_address, slot_gsi};

/// From revision 2 on, AML integers have 64 bits.
const REVISION: u8 = 2;

pub(super) fn table(slots: usize) -> Sdt {
    let mut aml = Vec::new();
    let s5 = Package::new(vec![&S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut aml);

    let slots: Vec<Slot> = (0..slots).map(Slot).collect();
    let mut devices: Vec<&dyn Aml> = vec![&Com1];
    devices.extend(slots.iter().map(|slot| slot as &dyn Aml));
    Scope::new("\\_SB_".into(), devices).to_aml_bytes(&mut aml);

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

/// A virtio-mmio slot, as Linux's virtio_mmio driver and QEMU's microvm know it.
struct Slot(usize);

impl Aml for Slot {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let registers = Memory32Fixed::new(true, slot_address(self.0) as u32, VIRTIO_MMIO_STRIDE as u32);
        let interrupt = edge(slot_gsi(self.0));
        let hid = Name::new("_HID".into(), &"LNRO0005");
        let uid = Name::new("_UID".into(), &self.0);
        let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt]));
        let name = format!("V{:03}", self.0);
        Device::new(name.as_str().into(), vec![&hid, &uid, &resources]).to_aml_bytes(sink);
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
    fn every_slot_has_a_device_with_its_registers_and_interrupt() {
        let aml = table(9);
        let aml = aml.as_slice();
        assert_eq!(count(aml, b"LNRO0005\0"), 9);
        for (name, address, gsi) in [(b"V000", 0xd000_0000u32, 16u8), (b"V007", 0xd000_7000, 23), (b"V008", 0xd000_8000, 5)] {
            assert_eq!(count(aml, name), 1);
            let registers = [&[0x86, 9, 0, 1][..], &address.to_le_bytes(), &0x1000u32.to_le_bytes()].concat();
            let interrupt = [0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0, 0x79, 0];
            assert_eq!(count(aml, &[&registers[..], &interrupt].concat()), 1, "{address:#x}");
        }
        assert_eq!(count(aml, b"V009"), 0);
    }

    #[test]
    fn power_off_is_sleep_type_five() {
        let s5 = [&[0x08][..], b"\\_S5_", &[0x12, 0x07, 4, 0x0a, 5, 0, 0, 0]].concat();
        assert_eq!(count(table(0).as_slice(), &s5), 1);
    }

    #[test]
    fn com1_has_its_eight_ports_and_interrupt_four() {
        let resources = [0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 0b0011, 1, 4, 0, 0, 0];
        assert_eq!(count(table(0).as_slice(), &resources), 1);
    }
}
