//! ACPI tables: how a stock kernel finds its processors, interrupts, serial port, PCI devices, power-off and reset.
//!
//! ```text
//! RSDP -> XSDT -> FADT -> DSDT (namespace: `dsdt`)
//!              |       -> FACS
//!              -> MADT
//!              -> MCFG: PCI's configuration spaces
//! ```
//!
//! It is a full (not hardware-reduced) ACPI machine: PIC, PIT and IOAPIC are there, power-off is PM1a_CNT, reset is the reset
//! register. SMI_CMD is 0, by which the machine is in ACPI mode always (ACPI 6.5 §5.2.9): Linux then skips the handover and only expects
//! SCI_EN to read as set. There is a fixed power button, and no PM timer, GPE block, sleep button, 8042, VGA or CMOS clock, and the tables say so, so that no
//! driver probes for them. Pure: vCPUs in, bytes out; the bytes lie from `rebec_layout::ACPI` on.

mod dsdt;

use acpi_tables::{
    Aml,
    facs::FACS,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, ProcessorLocalApic},
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use rebec_layout::{ACPI, ECAM, IOAPIC_ADDRESS, LAPIC_ADDRESS, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, RESET_PORT, RESET_VALUE, SCI_GSI};

const OEM_ID: [u8; 6] = *b"REBEC ";
const OEM_TABLE_ID: [u8; 8] = *b"REBECVMM";
const OEM_REVISION: u32 = 1;
/// Bytes of the header that every table begins with.
const HEADER_BYTES: u32 = 36;
/// The strictest wish: the FACS wants 64.
const ALIGN: usize = 64;

const PM1_EVENT_BYTES: u8 = 4;
const PM1_CONTROL_BYTES: u8 = 2;
/// IAPC_BOOT_ARCH (ACPI 6.5 table 5.11): COM1 is a legacy device; there is no VGA and no CMOS clock; the bit of the 8042 is clear.
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_CLOCK: u16 = 1 << 5;
/// Latencies above these say that there is no C2 and no C3.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// MADT flag PCAT_COMPAT: there is a pair of 8259s.
const MADT_DUAL_8259: u32 = 1;
/// MADT entries that acpi_tables does not have (ACPI 6.5 §5.2.12.5 and §5.2.12.7).
const MADT_SOURCE_OVERRIDE: u8 = 2;
const MADT_LOCAL_NMI: u8 = 4;
/// MPS INTI flags: active high, edge.
const ACTIVE_HIGH_EDGE: u16 = 0b0101;
const ALL_PROCESSORS: u8 = 0xff;

/// All tables, to be written at the start of `rebec_layout::ACPI`; the RSDP is the first.
pub(crate) fn tables(vcpus: u8) -> Vec<u8> {
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt = area.push(&dsdt::table());
    let facs = area.push(&FACS::new());
    let fadt = area.push(&fadt(dsdt, facs));
    let madt = area.push(&madt(vcpus));
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, 0);
    let mcfg = area.push(&mcfg);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.into());
    xsdt.add_entry(madt.into());
    xsdt.add_entry(mcfg.into());
    let xsdt = area.push(&xsdt);

    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt.into()).to_aml_bytes(&mut rsdp);
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    area.bytes
}

/// The reserved area while it fills.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Adds a table and tells its guest address.
    fn push(&mut self, table: &dyn Aml) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = ACPI.start as u32 + self.bytes.len() as u32;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn fadt(dsdt: u32, facs: u32) -> impl Aml {
    let io = |bytes: u8, access, port: u16| GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        // WBINVD works; C1 is HLT; no fixed sleep button or wake from the clock; the reset register works. A power button is there because
        // no flag says that it is not.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.firmware_ctrl = facs.into();
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT_PORT).into();
    fadt.pm1_evt_len = PM1_EVENT_BYTES;
    fadt.x_pm1a_evt_blk = io(PM1_EVENT_BYTES, AccessSize::WordAccess, PM1A_EVENT_PORT);
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL_PORT).into();
    fadt.pm1_cnt_len = PM1_CONTROL_BYTES;
    fadt.x_pm1a_cnt_blk = io(PM1_CONTROL_BYTES, AccessSize::WordAccess, PM1A_CONTROL_PORT);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch = (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_CLOCK).into();
    fadt.reset_reg = io(1, AccessSize::ByteAccess, RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"REBECVMM").into();
    fadt.finalize()
}

/// Processors and interrupt controllers. Interrupts 0 to 15 arrive at the IOAPIC pins of the same number, the timer's too: that is
/// KVM's default routing; an SCI is level and active low unless an entry says that it is as ISA's interrupts are.
fn madt(vcpus: u8) -> impl Aml {
    let mut entries = Vec::new();
    for vcpu in 0..vcpus {
        ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
    }
    IoApic::new(0, IOAPIC_ADDRESS, 0).to_aml_bytes(&mut entries);
    let isa_bus = 0;
    entries.extend_from_slice(&[MADT_SOURCE_OVERRIDE, 10, isa_bus, SCI_GSI as u8]);
    entries.extend_from_slice(&SCI_GSI.to_le_bytes());
    entries.extend_from_slice(&ACTIVE_HIGH_EDGE.to_le_bytes());
    let (conforming, lint1) = ([0, 0], 1);
    entries.extend_from_slice(&[MADT_LOCAL_NMI, 6, ALL_PROCESSORS, conforming[0], conforming[1], lint1]);

    let mut madt = Sdt::new(*b"APIC", HEADER_BYTES, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&LAPIC_ADDRESS.to_le_bytes());
    madt.append_slice(&MADT_DUAL_8259.to_le_bytes());
    madt.append_slice(&entries);
    madt
}

#[cfg(test)]
mod tests {
    use super::*;
    use rebec_layout::VCPUS_MAX;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest address, its length and checksum verified.
    fn table(area: &[u8], address: u64, signature: &[u8]) -> Vec<u8> {
        let at = (address - ACPI.start) as usize;
        let length = u32_at(area, at + 4) as usize;
        let bytes = area[at..at + length].to_vec();
        assert_eq!(&bytes[..4], signature);
        assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum of {}", String::from_utf8_lossy(signature));
        bytes
    }

    /// Follows the pointers as a guest does.
    fn walk(area: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!(area[..20].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(area[..36].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let xsdt = table(area, u64_at(area, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 3 * 8);
        let fadt = table(area, u64_at(&xsdt, 36), b"FACP");
        let madt = table(area, u64_at(&xsdt, 44), b"APIC");
        let mcfg = table(area, u64_at(&xsdt, 52), b"MCFG");
        assert_eq!((u64_at(&mcfg, 44), &mcfg[52..56]), (ECAM.start, &[0; 4][..]), "segment 0, bus 0 alone");
        let dsdt = table(area, u64_at(&fadt, 140), b"DSDT");
        assert_eq!(u64::from(u32_at(&fadt, 40)), u64_at(&fadt, 140));
        let facs = u32_at(&fadt, 36);
        assert_eq!(facs % 64, 0);
        assert_eq!(&area[facs as usize - ACPI.start as usize..][..4], b"FACS");
        (fadt, madt, dsdt)
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        for vcpus in [1, 2, VCPUS_MAX] {
            let area = tables(vcpus);
            assert!(area.len() as u64 <= ACPI.end - ACPI.start);
            walk(&area);
        }
    }

    #[test]
    fn fadt_tells_how_to_power_off_and_reset() {
        let (fadt, ..) = walk(&tables(1));
        assert_eq!(fadt.len(), 276);
        assert_eq!(u32_at(&fadt, 48), 0, "SMI_CMD 0: always in ACPI mode");
        assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 9);
        assert_eq!((u32_at(&fadt, 56), u32_at(&fadt, 64)), (0x600, 0x604));
        assert_eq!((fadt[88], fadt[89]), (4, 2));
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), 0b10_0101);
        let flags = u32_at(&fadt, 112);
        assert_eq!(flags & (1 << 10), 1 << 10, "reset register");
        assert_eq!(flags & (1 << 4), 0, "a fixed power button");
        assert_eq!(flags & (1 << 20), 0, "not hardware-reduced");
        assert_eq!(fadt[116..129], [1, 8, 0, 1, 0x08, 0x06, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(fadt[148..160], [1, 32, 0, 2, 0x00, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[172..184], [1, 16, 0, 2, 0x04, 0x06, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn madt_lists_processors_ioapic_and_the_sci() {
        let (_, madt, _) = walk(&tables(3));
        assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xfee0_0000, 1));
        let entries = [
            &[0, 8, 0, 0, 1, 0, 0, 0][..],
            &[0, 8, 1, 1, 1, 0, 0, 0],
            &[0, 8, 2, 2, 1, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            &[2, 10, 0, 9, 9, 0, 0, 0, 0b0101, 0],
            &[4, 6, 0xff, 0, 0, 1],
        ]
        .concat();
        assert_eq!(madt[44..], entries);
    }
}
