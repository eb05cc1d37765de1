//! The XSAVE area as CPUID describes it: which parts a guest may have, where they lie, and how large the area is with them. Intel SDM 1 §13.4.

use crate::{
    XSAVE_LEAF,
    entry::Entry,
    names::{EAX, EBX, ECX, EDX},
};

/// Legacy region and header.
const BYTES_MIN: u32 = 576;
/// Parts from here on have an entry each; x87 and SSE lie in the legacy region.
pub(crate) const FIRST_PART: u32 = 2;
/// Parts that a guest may have at most: one for each bit of the lower half of XCR0 and XSS.
pub(crate) const PARTS_MAX: usize = 30;

/// One part of the area: number, bytes, offset, and whether it is a supervisor's or wants alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub number: u32,
    pub bytes: u32,
    pub offset: u32,
    pub kind: u32,
}

/// The parts that a CPUID has places for.
pub(crate) fn parts(entries: &[Entry]) -> Vec<Part> {
    let places = entries.iter().filter(|entry| entry.leaf == XSAVE_LEAF && (FIRST_PART..32).contains(&entry.subleaf));
    let parts = places.filter(|entry| entry.registers[EAX] != 0);
    parts
        .map(|entry| {
            let [bytes, offset, kind, _] = entry.registers;
            Part { number: entry.subleaf, bytes, offset, kind }
        })
        .take(PARTS_MAX)
        .collect()
}

/// Cuts the leaf to the parts that XCR0 and XSS may have, by the places that their own entries say.
pub(crate) fn cut(entries: &mut [Entry], xcr0: u32, xss: u32) {
    let ends = parts(entries).into_iter().filter(|part| xcr0 >> part.number & 1 == 1).map(|part| part.offset.saturating_add(part.bytes));
    let bytes = ends.max().unwrap_or(0).max(BYTES_MIN);
    for entry in entries.iter_mut().filter(|entry| entry.leaf == XSAVE_LEAF) {
        match entry.subleaf {
            // The upper half of XCR0 has no part that any guest is given; what XCR0 enables now is KVM's to say.
            0 if xcr0 != 0 => (entry.registers[EBX], entry.registers[ECX], entry.registers[EDX]) = (BYTES_MIN, bytes, 0),
            1 if xcr0 != 0 => entry.registers[EDX] = 0,
            0 | 1 => entry.registers = [0; 4],
            part if (xcr0 | xss).checked_shr(part).is_some_and(|rest| rest & 1 == 1) => {}
            _ => entry.registers = [0; 4],
        }
    }
}
