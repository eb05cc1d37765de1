//! What a guest's CPUID says, made from what this host's KVM supports: a pure function of its inputs.
//!
//! One package, one thread per core, APIC ids 0..n. What depends on the host and could not travel is taken away: the PMU,
//! nested virtualisation, the promise of an invariant TSC where another host could not keep it, and what has state that is not saved: shadow
//! stacks, indirect branch tracking and FRED.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use rebec_cpu::{Entry, Model};

const TOPOLOGY_LEAF: u32 = 0xb;
const TOPOLOGY_V2_LEAF: u32 = 0x1f;
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

const LEAF1_ECX_MONITOR: u32 = 1 << 3;
const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_PDCM: u32 = 1 << 15;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_TOPOEXT: u32 = 1 << 22;
const AMD_ECX_PERFCTR_CORE: u32 = 1 << 23;
const AMD_ECX_PERFCTR_LLC: u32 = 1 << 28;
const POWER_EDX_INVARIANT_TSC: u32 = 1 << 8;
const LEAF7_ECX_SHSTK: u32 = 1 << 7;
const LEAF7_EDX_IBT: u32 = 1 << 20;
const LEAF7_1_EAX_FRED: u32 = 1 << 17;
/// CET_U and CET_S.
const XSS_CET: u32 = 3 << 11;
const XSAVE_LEAF: u32 = 0xd;

/// What besides the supported leaves decides about a guest's CPUID.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// vCPUs of the machine.
    pub vcpus: u8,
    /// KVM offers the APIC timer's deadline mode.
    pub tsc_deadline: bool,
    /// A TSC of another rate could be scaled to the guest's.
    pub invariant_tsc: bool,
}

/// The CPUID of vCPU `index`.
pub(crate) fn synthesise(supported: &[kvm_cpuid_entry2], options: Options, index: u8) -> Vec<kvm_cpuid_entry2> {
    let amd = is_amd(supported);
    let mut entries: Vec<kvm_cpuid_entry2> = supported.iter().filter(|e| !is_rebuilt(e.function) && !is_of_cet(e)).copied().collect();
    for entry in &mut entries {
        adjust(entry, options, index, amd);
    }
    let topology_leaves = if basic_max(supported) >= TOPOLOGY_V2_LEAF { &[TOPOLOGY_LEAF, TOPOLOGY_V2_LEAF][..] } else { &[TOPOLOGY_LEAF] };
    for leaf in topology_leaves {
        entries.extend(extended_topology(*leaf, options.vcpus, index));
    }
    if amd && has_topoext(supported) {
        entries.push(amd_node_topology(index));
    }
    entries.sort_by_key(|e| (e.function, e.index));
    entries
}

/// As this program's own words have it.
pub(crate) fn entry(entry: &kvm_cpuid_entry2) -> Entry {
    Entry { leaf: entry.function, subleaf: entry.index, registers: [entry.eax, entry.ebx, entry.ecx, entry.edx] }
}

/// Cuts a vCPU's CPUID to what a model shows of it, in a machine that needs physical addresses of so many bits.
pub(crate) fn filter(cpuid: &[kvm_cpuid_entry2], model: &Model, physical_bits: u8) -> Vec<kvm_cpuid_entry2> {
    let mut shown: Vec<Entry> = cpuid.iter().map(entry).collect();
    model.filter(&mut shown, physical_bits);
    let flags = |entry: &Entry| cpuid.iter().find(|e| (e.function, e.index) == (entry.leaf, entry.subleaf)).map_or(0, |e| e.flags);
    let cut = |entry: &Entry| {
        let [eax, ebx, ecx, edx] = entry.registers;
        kvm_cpuid_entry2 { function: entry.leaf, index: entry.subleaf, flags: flags(entry), eax, ebx, ecx, edx, ..Default::default() }
    };
    shown.iter().map(cut).collect()
}

/// Bits of an APIC id that number the vCPUs of a package of this many.
fn core_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn is_rebuilt(leaf: u32) -> bool {
    matches!(leaf, TOPOLOGY_LEAF | TOPOLOGY_V2_LEAF | 0x8000_001e)
}

/// Where shadow stacks would lie in the XSAVE area.
fn is_of_cet(entry: &kvm_cpuid_entry2) -> bool {
    entry.function == XSAVE_LEAF && matches!(entry.index, 11 | 12)
}

fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    let vendor = entries.iter().find(|e| e.function == 0).map(|e| [e.ebx, e.edx, e.ecx]);
    let named = |name: &[u8; 12]| vendor.is_some_and(|v| v.iter().flat_map(|word| word.to_le_bytes()).eq(name.iter().copied()));
    named(b"AuthenticAMD") || named(b"HygonGenuine")
}

fn basic_max(entries: &[kvm_cpuid_entry2]) -> u32 {
    entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax)
}

fn has_topoext(entries: &[kvm_cpuid_entry2]) -> bool {
    entries.iter().any(|e| e.function == 0x8000_0001 && e.ecx & AMD_ECX_TOPOEXT != 0)
}

fn adjust(entry: &mut kvm_cpuid_entry2, options: Options, index: u8, amd: bool) {
    let vcpus = u32::from(options.vcpus);
    match entry.function {
        0 => entry.eax = entry.eax.max(TOPOLOGY_LEAF),
        1 => {
            // AMD64 APM 3 Fn0000_0001_EBX: APIC id, logical processor count, CLFLUSH size, brand.
            let logical = vcpus.next_power_of_two();
            entry.ebx = entry.ebx & 0x0000_ffff | logical << 16 | u32::from(index) << 24;
            // OSXSAVE follows CR4 and is KVM's to show; MONITOR has nothing to wake it.
            entry.ecx &= !(LEAF1_ECX_MONITOR | LEAF1_ECX_VMX | LEAF1_ECX_PDCM | LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_OSXSAVE);
            entry.ecx |= LEAF1_ECX_HYPERVISOR | LEAF1_ECX_X2APIC;
            set(&mut entry.ecx, LEAF1_ECX_TSC_DEADLINE, options.tsc_deadline);
            set(&mut entry.edx, LEAF1_EDX_HTT, vcpus > 1);
        }
        // Intel SDM 2A, CPUID leaf 4: who shares a cache, and cores in the package. Level 3 is the package's.
        4 if entry.eax & 0x1f != 0 => {
            let shared = if (entry.eax >> 5) & 7 >= 3 { (1 << core_bits(options.vcpus)) - 1 } else { 0 };
            let cores = (1 << core_bits(options.vcpus)) - 1;
            entry.eax = entry.eax & 0x3fff | shared << 14 | cores << 26;
        }
        7 if entry.index == 0 => {
            entry.ecx &= !LEAF7_ECX_SHSTK;
            entry.edx &= !LEAF7_EDX_IBT;
        }
        7 if entry.index == 1 => entry.eax &= !LEAF7_1_EAX_FRED,
        XSAVE_LEAF if entry.index == 1 => entry.ecx &= !XSS_CET,
        // The PMU counts events of one host's processor.
        0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !(AMD_ECX_SVM | AMD_ECX_PERFCTR_CORE | AMD_ECX_PERFCTR_LLC);
            set(&mut entry.ecx, AMD_ECX_CMP_LEGACY, amd && vcpus > 1);
        }
        0x8000_0007 if !options.invariant_tsc => entry.edx &= !POWER_EDX_INVARIANT_TSC,
        // AMD64 APM 3 Fn8000_0008_ECX: cores less one, and the bits of an APIC id that number them.
        0x8000_0008 if amd => entry.ecx = (vcpus - 1) | core_bits(options.vcpus) << 12,
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD64 APM 3 Fn8000_001D: as leaf 4, without the count of cores.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let shared = if (entry.eax >> 5) & 7 >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14;
        }
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on { *register |= bit } else { *register &= !bit }
}

/// Leaves 0xb and 0x1f: threads of a core, cores of the package, end. Intel SDM 2A, CPUID leaf 0xb.
fn extended_topology(leaf: u32, vcpus: u8, apic_id: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, logical: u32, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: index | kind << 8,
        edx: apic_id.into(),
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_SMT), level(1, core_bits(vcpus), vcpus.into(), LEVEL_CORE), level(2, 0, 0, 0)]
}

/// AMD64 APM 3 Fn8000_001E: extended APIC id; core id, one thread per core; node 0 of one.
fn amd_node_topology(apic_id: u8) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function: 0x8000_001e, eax: apic_id.into(), ebx: apic_id.into(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn vendor(max: u32, name: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        leaf(0, 0, [max, word(0), word(8), word(4)])
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let entry = entries.iter().find(|e| e.function == function && e.index == index).expect("leaf is there");
        [entry.eax, entry.ebx, entry.ecx, entry.edx]
    }

    fn options(vcpus: u8) -> Options {
        Options { vcpus, tsc_deadline: true, invariant_tsc: false }
    }

    #[test]
    fn an_amd_host_of_any_count() {
        let host = [
            vendor(0xd, b"AuthenticAMD"),
            leaf(1, 0, [0xa00f11, 0x0502_0800, 0x7ed8_320b | LEAF1_ECX_OSXSAVE, 0x178b_fbff]),
            leaf(0x8000_0001, 0, [0, 0, AMD_ECX_TOPOEXT | AMD_ECX_SVM | AMD_ECX_PERFCTR_CORE, 0]),
            leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x7007, 0]),
            leaf(0x8000_001d, 0, [0x121 | 3 << 14, 0, 0, 0]),
            leaf(0x8000_001d, 3, [0x163 | 3 << 14, 0, 0, 0]),
        ];
        for vcpus in 1..=16 {
            let bits = [0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4][usize::from(vcpus)];
            for index in 0..vcpus {
                let guest = synthesise(&host, options(vcpus), index);
                let n = u32::from(vcpus);
                let id = u32::from(index);
                let [_, ebx, ecx, edx] = find(&guest, 1, 0);
                assert_eq!(ebx, id << 24 | (1 << bits) << 16 | 0x0800);
                assert_ne!(ecx & LEAF1_ECX_HYPERVISOR, 0);
                assert_ne!(ecx & LEAF1_ECX_TSC_DEADLINE, 0);
                assert_eq!(ecx & (LEAF1_ECX_MONITOR | LEAF1_ECX_OSXSAVE | LEAF1_ECX_VMX), 0);
                assert_eq!(edx & LEAF1_EDX_HTT != 0, vcpus > 1);
                assert_eq!(find(&guest, 0xb, 0), [0, 1, 0x100, id]);
                assert_eq!(find(&guest, 0xb, 1), [bits, n, 0x201, id]);
                assert_eq!(find(&guest, 0xb, 2), [0, 0, 2, id]);
                assert_eq!(find(&guest, 0x8000_0001, 0)[2], AMD_ECX_TOPOEXT | if vcpus > 1 { AMD_ECX_CMP_LEGACY } else { 0 });
                assert_eq!(find(&guest, 0x8000_0007, 0)[3], 0);
                assert_eq!(find(&guest, 0x8000_0008, 0)[2], bits << 12 | (n - 1));
                assert_eq!(find(&guest, 0x8000_001d, 0)[0], 0x121);
                assert_eq!(find(&guest, 0x8000_001d, 3)[0], 0x163 | (n - 1) << 14);
                assert_eq!(find(&guest, 0x8000_001e, 0), [id, id, 0, 0]);
            }
        }
    }

    #[test]
    fn an_intel_host_has_leaf_1f_and_no_amd_leaves() {
        let host = [
            vendor(0x20, b"GenuineIntel"),
            leaf(1, 0, [0, 0, LEAF1_ECX_VMX, 0]),
            leaf(4, 0, [0x121 | 1 << 14 | 7 << 26, 1, 2, 3]),
            leaf(4, 3, [0x163 | 63 << 14 | 7 << 26, 1, 2, 3]),
            leaf(4, 4, [0, 0, 0, 0]),
            leaf(0xa, 0, [0x0830_0802, 0, 0, 0x603]),
            leaf(0xb, 0, [1, 2, 0x100, 77]),
            leaf(0x1f, 0, [1, 2, 0x100, 77]),
            leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
            leaf(0x8000_0008, 0, [0x302e, 0, 0, 0]),
        ];
        let guest = synthesise(&host, Options { invariant_tsc: true, tsc_deadline: false, vcpus: 4 }, 2);
        assert_eq!(find(&guest, 1, 0)[2] & (LEAF1_ECX_VMX | LEAF1_ECX_TSC_DEADLINE), 0);
        assert_eq!(find(&guest, 4, 0), [0x121 | 3 << 26, 1, 2, 3]);
        assert_eq!(find(&guest, 4, 3), [0x163 | 3 << 14 | 3 << 26, 1, 2, 3]);
        assert_eq!(find(&guest, 4, 4), [0; 4]);
        assert_eq!(find(&guest, 0xa, 0), [0; 4]);
        assert_eq!(find(&guest, 0x1f, 1), [2, 4, 0x201, 2]);
        assert_eq!(guest.iter().filter(|e| e.function == 0xb).count(), 3);
        assert_eq!(find(&guest, 0x8000_0007, 0)[3], 0x100);
        assert_eq!(find(&guest, 0x8000_0008, 0)[2], 0);
        assert!(!guest.iter().any(|e| e.function == 0x8000_001e));
    }

    #[test]
    fn what_has_state_that_is_not_saved_is_not_there() {
        let host = [
            vendor(0x20, b"GenuineIntel"),
            leaf(7, 0, [1, 0, LEAF7_ECX_SHSTK | 1 << 8, LEAF7_EDX_IBT | 1 << 4]),
            leaf(7, 1, [LEAF7_1_EAX_FRED | 1 << 4, 0, 0, 0]),
            leaf(XSAVE_LEAF, 1, [0xf, 0, XSS_CET | 1 << 8, 0]),
            leaf(XSAVE_LEAF, 2, [256, 576, 0, 0]),
            leaf(XSAVE_LEAF, 11, [16, 0, 1, 0]),
            leaf(XSAVE_LEAF, 12, [24, 0, 1, 0]),
        ];
        let guest = synthesise(&host, options(1), 0);
        assert_eq!(find(&guest, 7, 0)[2..], [1 << 8, 1 << 4]);
        assert_eq!(find(&guest, 7, 1)[0], 1 << 4);
        assert_eq!(find(&guest, XSAVE_LEAF, 1)[2], 1 << 8);
        let parts: Vec<u32> = guest.iter().filter(|e| e.function == XSAVE_LEAF).map(|e| e.index).collect();
        assert_eq!(parts, [1, 2]);
    }

    #[test]
    fn a_host_without_leaf_b_gets_one() {
        let guest = synthesise(&[vendor(7, b"AuthenticAMD")], options(2), 1);
        assert_eq!(find(&guest, 0, 0)[0], 0xb);
        assert_eq!(find(&guest, 0xb, 1), [1, 2, 0x201, 1]);
        assert!(!guest.iter().any(|e| e.function == 0x1f));
    }
}
