//! One answer of CPUID.

use serde::{Deserialize, Serialize};

/// One CPUID entry: leaf, subleaf, and EAX, EBX, ECX, EDX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What was asked in EAX.
    pub leaf: u32,
    /// What was asked in ECX.
    pub subleaf: u32,
    /// EAX, EBX, ECX, EDX.
    pub registers: [u32; 4],
}

/// Zero where there is no such entry, as CPUID itself answers. Of several entries of one kind the first one counts.
pub(crate) fn register(entries: &[Entry], leaf: u32, subleaf: u32, register: usize) -> u32 {
    entries.iter().find(|e| (e.leaf, e.subleaf) == (leaf, subleaf)).map_or(0, |e| e.registers[register])
}

/// The twelve letters of a processor's maker.
pub(crate) fn vendor(entries: &[Entry]) -> [u8; 12] {
    let mut letters = [0; 12];
    for (place, number) in letters.chunks_exact_mut(4).zip([1, 3, 2]) {
        place.copy_from_slice(&register(entries, 0, 0, number).to_le_bytes());
    }
    letters
}

/// Letters of a maker as people see them.
pub(crate) fn vendor_text(letters: [u8; 12]) -> String {
    String::from_utf8_lossy(&letters).escape_debug().collect()
}
