//! What arrives for a vCPU, held against what this host would have given it. A source is believed in nothing: KVM lets whoever owns a vCPU give it
//! nested virtualisation, a PMU or Hyper-V, whatever was compared before the move began, and those are the largest doors into a host's kernel.
//!
//! Pure: entries and values in, reasons out. What has no reason may be set.

use std::ops::RangeInclusive;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use rebec_cpu::{Entry, beyond};

use crate::cpuid as synthesis;

/// SCE, LME, LMA, NXE, FFXSR, TCE, automatic IBRS. Not SVME: with it a guest runs guests of its own, whatever its CPUID says.
const EFER_KNOWN: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 21;
const MSR_EFER: u32 = 0xc000_0080;
const MSR_FEATURE_CONTROL: u32 = 0x3a;
/// VMX inside and outside of SMX, and what enables SENTER.
const FEATURE_CONTROL_REFUSED: u64 = 0xff06;
pub(crate) const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
/// Bits that say that something is needed (RSBA, RRSBA); all others say that something is not.
const ARCH_CAPABILITIES_WARNINGS: u64 = 1 << 2 | 1 << 19;

/// MSRs of what no guest is given (`cpuid`): performance counters, last branches, processor trace, nested virtualisation. They do not travel.
const NOT_GIVEN: [RangeInclusive<u32>; 17] = [
    0xc1..=0xc8,
    0x186..=0x18d,
    0x1c8..=0x1c9,
    0x309..=0x30c,
    0x345..=0x345,
    0x38d..=0x390,
    0x3f1..=0x3f2,
    0x480..=0x491,
    0x4c1..=0x4c8,
    0x570..=0x587,
    0x600..=0x600,
    0xc000_0300..=0xc000_0303,
    0xc001_0000..=0xc001_0007,
    0xc001_0114..=0xc001_0114,
    0xc001_0117..=0xc001_0117,
    0xc001_0200..=0xc001_020b,
    0x14ce..=0x14cf,
];

/// Whether an MSR belongs to something that a guest of this program does not have.
pub(super) fn is_given(index: u32) -> bool {
    !NOT_GIVEN.iter().any(|range| range.contains(&index))
}

/// Why these CPUID entries may not be given to a vCPU that has `own` here; none: they may.
pub(super) fn cpuid(theirs: &[kvm_cpuid_entry2], own: &[kvm_cpuid_entry2]) -> Vec<String> {
    let is_indexed = |entry: &kvm_cpuid_entry2| entry.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let mut why = Vec::new();
    for (at, entry) in theirs.iter().enumerate() {
        let (leaf, subleaf) = (entry.function, entry.index);
        let others = || theirs.iter().enumerate().filter(|(other, e)| *other != at && e.function == leaf).map(|(_, other)| other);
        // An entry that is not indexed answers for every subleaf: it must be the only one, and where subleaves count there may be none.
        let is_sound = match entry.flags {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX => others().all(|other| is_indexed(other) && other.index != subleaf),
            0 => subleaf == 0 && others().next().is_none() && !own.iter().any(|here| here.function == leaf && is_indexed(here)),
            _ => false,
        };
        if !is_sound {
            why.push(format!("CPUID {leaf:x}.{subleaf:x} is not one entry of its kind"));
        }
    }
    let entries = |all: &[kvm_cpuid_entry2]| all.iter().map(synthesis::entry).collect::<Vec<Entry>>();
    why.extend(beyond(&entries(theirs), &entries(own)));
    why
}

/// Why EFER may not be this.
pub(super) fn efer(value: u64) -> Option<String> {
    (value & !EFER_KNOWN != 0).then(|| format!("EFER of {value:#x}"))
}

/// Why an MSR may not be this. `here` is what it is in a vCPU that has not run; none: this host has no such MSR.
pub(super) fn msr(index: u32, value: u64, here: Option<u64>) -> Option<String> {
    let is_wrong = match (index, here) {
        (_, None) => value != 0,
        (MSR_EFER, _) => return efer(value),
        (MSR_FEATURE_CONTROL, _) => value & FEATURE_CONTROL_REFUSED != 0,
        (MSR_ARCH_CAPABILITIES, Some(here)) => value & !here & !ARCH_CAPABILITIES_WARNINGS != 0,
        _ => !is_given(index) && value != 0,
    };
    is_wrong.then(|| format!("MSR {index:#x} of {value:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, flags: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A host with a few leaves, one of them indexed.
    fn own() -> Vec<kvm_cpuid_entry2> {
        let kvm = entry(0x4000_0000, 0, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        vec![
            entry(0, 0, 0, [0xd, 1, 2, 3]),
            entry(1, 0, 0, [0, 0, 1, 1]),
            entry(7, 0, 1, [1, 0x20, 0, 0]),
            entry(7, 1, 1, [0x10, 0, 0, 0]),
            kvm,
            entry(0x4000_0001, 0, 0, [0x0100_0fff, 0, 0, 0]),
        ]
    }

    fn why(change: impl FnOnce(&mut Vec<kvm_cpuid_entry2>)) -> String {
        let mut theirs = own();
        change(&mut theirs);
        cpuid(&theirs, &own()).join("; ")
    }

    #[test]
    fn what_this_host_gives_may_be_given() {
        assert_eq!(why(|_| {}), "");
        assert_eq!(why(|all| all[1].ecx = 0), "");
        let without_one = why(|all| {
            all.remove(3);
        });
        assert_eq!(without_one, "");
    }

    #[test]
    fn doors_into_the_host_are_refused_by_name() {
        for (name, change) in [
            ("vmx", &(|all: &mut Vec<kvm_cpuid_entry2>| all[1].ecx |= 1 << 5) as &dyn Fn(&mut Vec<kvm_cpuid_entry2>)),
            ("svm", &|all| all.push(entry(0x8000_0001, 0, 0, [0, 0, 4, 0]))),
            ("CPUID 8000000a.0 EDX", &|all| all.push(entry(0x8000_000a, 0, 0, [0, 0, 0, 1]))),
            ("CPUID a.0 EAX", &|all| all.push(entry(0xa, 0, 0, [0x0830_0802, 0, 0, 0]))),
            ("CPUID 40000000.0 EBX", &|all| all[4].ebx = 0x7263_694d),
            ("KVM feature", &|all| all[5].eax = 0x3123_7648),
            ("CPUID 40000003.0 EAX", &|all| all.push(entry(0x4000_0003, 0, 0, [1, 0, 0, 0]))),
            ("CPUID 40010000.0 EBX", &|all| all.push(entry(0x4001_0000, 0, 0, [0, 7, 0, 0]))),
            ("CPUID 14.0 EBX", &|all| all.push(entry(0x14, 0, 1, [0, 1, 0, 0]))),
        ] {
            let why = why(change);
            assert!(why.contains(name), "{name}: {why}");
        }
    }

    /// KVM takes the first entry that fits: a second one must not say more than the one that was looked at.
    #[test]
    fn an_entry_cannot_hide_behind_another() {
        for change in [
            (|all: &mut Vec<kvm_cpuid_entry2>| all.push(all[1])) as fn(&mut Vec<kvm_cpuid_entry2>),
            |all| all.push(all[2]),
            |all| all[2].flags = 0,
            |all| {
                all.remove(3);
                all[2].flags = 0;
            },
            |all| all[1].index = 7,
            |all| all[1].flags = 2,
            |all| all[2].flags = 5,
        ] {
            assert!(why(change).contains("is not one entry of its kind"), "{}", why(change));
        }
    }

    #[test]
    fn msrs_are_those_of_this_host_and_of_what_guests_have() {
        assert_eq!(msr(0xc000_0082, 0xffff_ffff_8100_0000, Some(0)), None);
        assert_eq!(msr(0x7777, 0, None), None, "nothing is lost");
        for (index, value, here) in [
            (0x7777, 1, None),
            (MSR_EFER, 1 << 12, Some(0)),
            (MSR_FEATURE_CONTROL, 5, Some(0)),
            (0x480, 1, Some(0)),
            (0xc001_0117, 4096, Some(0)),
            (0x186, 1 << 22, Some(0)),
            (0xc001_0000, 1 << 22, Some(0)),
            (MSR_ARCH_CAPABILITIES, 3, Some(2)),
        ] {
            assert!(msr(index, value, here).is_some(), "MSR {index:#x} of {value:#x}");
        }
        assert_eq!(msr(MSR_FEATURE_CONTROL, 1, Some(0)), None);
        assert_eq!(msr(MSR_ARCH_CAPABILITIES, 2 | ARCH_CAPABILITIES_WARNINGS, Some(3)), None);
        assert_eq!(efer(0xd01), None);
        assert_eq!(efer(0x1d01).unwrap(), "EFER of 0x1d01");
    }
}
