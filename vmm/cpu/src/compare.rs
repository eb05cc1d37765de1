//! What one CPUID promises and another cannot keep.

use crate::{
    entry::{Entry, register, vendor, vendor_text},
    names::{FEATURES, Rule},
};

/// What `theirs` promises a guest and `own` cannot keep, each in words; empty if a guest with the one can go to the other.
pub fn beyond(theirs: &[Entry], own: &[Entry]) -> Vec<String> {
    let mut missing = Vec::new();
    missing.extend(other_vendor(vendor(theirs), vendor(own)));
    for entry in theirs {
        for number in 0..entry.registers.len() {
            let [value, here] = [theirs, own].map(|entries| register(entries, entry.leaf, entry.subleaf, number));
            match Rule::of(entry.leaf, entry.subleaf, number) {
                Rule::Free => {}
                Rule::Features(row) => missing.extend(absent(row, value, here)),
                Rule::AddressBits => missing.extend(short_addresses([value, here].map(|sizes| [sizes as u8, (sizes >> 8) as u8]))),
                Rule::AtMost if value <= here => {}
                Rule::Same if value == 0 || value == here => {}
                Rule::AtMost | Rule::Same => {
                    let (leaf, subleaf, name) = (entry.leaf, entry.subleaf, ["EAX", "EBX", "ECX", "EDX"][number]);
                    missing.push(format!("CPUID {leaf:x}.{subleaf:x} {name} of {value:#x} (this host has {here:#x})"));
                }
            }
        }
    }
    missing
}

/// Features of a row that are in the first value and not in the second.
pub(crate) fn absent(row: usize, value: u32, here: u32) -> impl Iterator<Item = String> {
    let features = &FEATURES[row];
    let absent = value & !features.ignored & !here;
    (0..32).filter(move |bit| absent >> bit & 1 == 1).map(|bit| features.name(bit))
}

pub(crate) fn other_vendor(theirs: [u8; 12], own: [u8; 12]) -> Option<String> {
    (theirs != own).then(|| format!("a processor by {} (this host's is by {})", vendor_text(theirs), vendor_text(own)))
}

/// Physical and virtual addresses, as wanted and as given.
pub(crate) fn short_addresses([wanted, given]: [[u8; 2]; 2]) -> impl Iterator<Item = String> {
    let kinds = ["physical", "virtual"].into_iter().zip(wanted.into_iter().zip(given));
    let short = kinds.filter(|(_, (wanted, given))| wanted > given);
    short.map(|(kind, (wanted, given))| format!("{kind} addresses of {wanted} bits (this host has {given})"))
}
