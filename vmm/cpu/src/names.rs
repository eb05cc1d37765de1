//! Names of CPU features by CPUID register and bit, as Linux shows them in /proc/cpuinfo; and which registers hold features
//! at all. A bit without a name here is told by its place.
//!
//! The order of [`FEATURES`] is that of the words of a written [`crate::Features`]: rows are added at its end.

use crate::KVM_FEATURES_LEAF;

pub(crate) const EAX: usize = 0;
pub(crate) const EBX: usize = 1;
pub(crate) const ECX: usize = 2;
pub(crate) const EDX: usize = 3;

/// The kind of features that are the processor's, and of those that are KVM's.
pub(crate) const CPU: &str = "CPU feature";
pub(crate) const KVM_OWN: &str = "KVM feature";

/// What a register must be for a guest to find here what it had there.
pub(crate) enum Rule {
    /// It tells of the processor's make, of caches and of topology, and promises nothing.
    Free,
    /// Every bit is a feature: which row of [`FEATURES`] says their names.
    Features(usize),
    /// Sizes of addresses, a byte each.
    AddressBits,
    /// A size: as much here at least.
    AtMost,
    /// Anything else, known to this program or not: zero, or the same here. Where each part of the XSAVE area lies is of this kind.
    Same,
}

impl Rule {
    pub fn of(leaf: u32, subleaf: u32, register: usize) -> Self {
        if let Some(row) = FEATURES.iter().position(|known| (known.leaf, known.subleaf, known.register) == (leaf, subleaf, register)) {
            return Self::Features(row);
        }
        match (leaf, subleaf, register) {
            // The vendor is compared by itself; greatest leaves; family and model; APIC ids; frequencies; brand; TLBs, caches, topology.
            (0, ..) | (1, 0, EAX | EBX) | (2 | 4 | 5 | 0xb | 0x15 | 0x16 | 0x18 | 0x1f, ..) | (7, 0, EAX) => Self::Free,
            (0x4000_0000 | 0x8000_0000 | 0xc000_0000, _, EAX) | (0x8000_0000, ..) | (0x8000_0001, 0, EAX | EBX) => Self::Free,
            (0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a | 0x8000_001d | 0x8000_001e | 0x8000_0026, ..) => Self::Free,
            (0x8000_0008, 0, ECX) => Self::Free,
            // What XCR0 and XSS enable now.
            (0xd, 0 | 1, EBX) => Self::Free,
            (0xd, 0, ECX) => Self::AtMost,
            (0x8000_0008, 0, EAX) => Self::AddressBits,
            _ => Self::Same,
        }
    }
}

/// A register of which every bit is a feature.
pub(crate) struct Row {
    pub leaf: u32,
    pub subleaf: u32,
    pub register: usize,
    /// Bits that follow a control register of the guest, or are no promise.
    pub ignored: u32,
    /// What kind of thing the names name.
    pub kind: &'static str,
    /// From bit 0 on, space between; `-` where there is none.
    names: &'static str,
}

impl Row {
    /// The bit that is called so, without its kind.
    pub fn bit(&self, name: &str) -> Option<u32> {
        self.names.split_ascii_whitespace().position(|known| known == name).map(|bit| bit as u32)
    }

    /// What a bit is called, with its kind.
    pub fn name(&self, bit: u32) -> String {
        match self.names.split_ascii_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => format!("{} {name}", self.kind),
            _ => {
                let register = ["EAX", "EBX", "ECX", "EDX"][self.register];
                format!("{} CPUID {:x}.{:x} {register} bit {bit}", self.kind, self.leaf, self.subleaf)
            }
        }
    }
}

const fn cpu(leaf: u32, subleaf: u32, register: usize, ignored: u32, names: &'static str) -> Row {
    Row { leaf, subleaf, register, ignored, kind: CPU, names }
}

/// OSXSAVE, which shows CR4.
const OSXSAVE: u32 = 1 << 27;
/// APIC, which shows the APIC base register.
const APIC_ON: u32 = 1 << 9;
/// OSPKE, which shows CR4.
const OSPKE: u32 = 1 << 4;

/// Registers of features.
pub(crate) const ROWS: usize = 22;

pub(crate) const FEATURES: [Row; ROWS] = [
    cpu(
        1,
        0,
        ECX,
        OSXSAVE,
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic \
         movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    ),
    cpu(
        1,
        0,
        EDX,
        APIC_ON,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht \
         tm ia64 pbe",
    ),
    cpu(
        7,
        0,
        EBX,
        0,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid - - zero_fcs_fds - - avx512f avx512dq rdseed \
         adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    cpu(
        7,
        0,
        ECX,
        OSPKE,
        "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme \
         avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks",
    ),
    cpu(
        7,
        0,
        EDX,
        0,
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect - md_clear - - - serialize hybrid tsxldtrk - pconfig \
         arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities \
         spec_ctrl_ssbd",
    ),
    cpu(
        7,
        1,
        EAX,
        0,
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - - wrmsrns - - amx_fp16 - avx_ifma - - lam",
    ),
    cpu(7, 1, EBX, 0, "intel_ppin"),
    cpu(7, 1, ECX, 0, ""),
    cpu(7, 1, EDX, 0, "- - - - avx_vnni_int8 avx_ne_convert - - - - - - - - prefetchi"),
    cpu(7, 2, EDX, 0, "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    cpu(0xd, 0, EAX, 0, "xsave_x87 xsave_sse xsave_avx xsave_bndregs xsave_bndcsr xsave_opmask xsave_zmm xsave_hi16_zmm - xsave_pkru"),
    cpu(0xd, 1, EAX, 0, "xsaveopt xsavec xgetbv1 xsaves xfd"),
    cpu(0xd, 1, ECX, 0, "- - - - - - - - xsave_pt - xsave_pasid xsave_cet_u xsave_cet_s xsave_hdc xsave_uintr xsave_lbr"),
    cpu(
        0x8000_0001,
        0,
        ECX,
        0,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - \
         nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    cpu(
        0x8000_0001,
        0,
        EDX,
        APIC_ON,
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb \
         rdtscp - lm 3dnowext 3dnow",
    ),
    cpu(0x8000_0007, 0, EDX, 0, "ts fid vid ttp tm stc 100mhzsteps hwpstate invariant_tsc cpb eff_freq_ro"),
    cpu(
        0x8000_0008,
        0,
        EBX,
        0,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs stibp ibrs_always stibp_always ibrs_preferred same_mode - \
         - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no ibpb_ret",
    ),
    cpu(
        0x8000_0021,
        0,
        EAX,
        0,
        "no_nested_data_bp fsgs_non_serializing lfence_rdtsc - - - null_sel_clr_base - autoibrs no_smm_ctl_msr - - - - - - - - - - - - \
         - - - - - sbpb ibpb_brtype srso_no",
    ),
    cpu(0x8000_0021, 0, ECX, 0, "- tsa_sq_no tsa_l1_no"),
    cpu(0x19, 0, EBX, 0, "aeskle - aes_wide - kl_backup"),
    Row { leaf: KVM_FEATURES_LEAF, subleaf: 0, register: EDX, ignored: 0, kind: "KVM hint", names: "realtime" },
    Row {
        leaf: KVM_FEATURES_LEAF,
        subleaf: 0,
        register: EAX,
        ignored: 0,
        kind: KVM_OWN,
        names: "clocksource nop_io_delay mmu_op clocksource2 async_pf steal_time pv_eoi pv_unhalt - pv_tlb_flush async_pf_vmexit \
                pv_send_ipi poll_control pv_sched_yield async_pf_int msi_ext_dest_id hc_map_gpa_range migration_control - - - - - - \
                clocksource_stable",
    },
];
