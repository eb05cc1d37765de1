//! CPU models: what a guest is shown of a processor, the same wherever it runs.
//!
//! A level is what its processors have in common (x86-64 psABI §3.1.1, and what kernels use in all processors of that level), so a guest of a level goes to
//! every host that has it. Beyond that it gets only what protects it from its own processes where the host can. All else, known or not, is not there.

use std::{fmt, str::FromStr};

use crate::{
    entry::{Entry, register},
    features::{Features, FeaturesError, OF_THE_MACHINE},
    names::{CPU, EAX, ECX, FEATURES, KVM_OWN, ROWS, Rule},
    xsave::{self, parts},
};

/// Physical and virtual addresses of a level's guest, where its memory needs no longer ones: no processor with virtualisation has less.
const ADDRESS_BITS: [u8; 2] = [39, 48];

const V2: &str = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 syscall nx rdtscp lm sse3 ssse3 cx16 \
                  sse4_1 sse4_2 popcnt lahf_lm";
const V3: &str = "fma movbe aes pclmulqdq xsave avx f16c rdrand bmi1 avx2 bmi2 abm fsgsbase smep xsaveopt xsave_x87 xsave_sse xsave_avx";
const V4: &str = "avx512f avx512dq avx512cd avx512bw avx512vl pcid invpcid erms smap adx rdseed clflushopt clwb xsavec xgetbv1 xsave_opmask xsave_zmm \
                  xsave_hi16_zmm";
/// What a guest of any level gets where the host has it: defences, and the way to them.
const DEFENCES: &str = "spec_ctrl intel_stibp spec_ctrl_ssbd md_clear flush_l1d ibpb ibrs stibp amd_ssbd virt_ssbd";
/// What every machine of this program's has, whatever its processor.
const MACHINE: &str = "x2apic hypervisor tsc_deadline_timer tsc_adjust";
/// KVM's own since Linux 5.10, but for page faults that wait (they say which host swaps).
const KVM: &str = "clocksource nop_io_delay clocksource2 steal_time pv_eoi pv_unhalt pv_tlb_flush pv_send_ipi poll_control pv_sched_yield clocksource_stable";

/// A level of x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// SSE 4.2: Nehalem, Jaguar, and later.
    V2,
    /// AVX 2: Haswell, Excavator, Zen, and later.
    V3,
    /// AVX 512: Skylake's servers, Zen 4, and later.
    V4,
}

impl Level {
    /// All, the least first.
    pub const ALL: [Self; 3] = [Self::V2, Self::V3, Self::V4];

    /// The greatest that is in a set.
    pub fn of(features: &Features) -> Option<Self> {
        Self::ALL.into_iter().rev().find(|level| level.lacks(features).is_empty())
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }

    /// What a host that has these features lacks of the level.
    pub fn lacks(self, host: &Features) -> Vec<String> {
        let needs = self.needs();
        (0..ROWS).flat_map(|row| crate::compare::absent(row, needs[row], host.word(row))).collect()
    }

    fn lists(self) -> &'static [&'static str] {
        match self {
            Self::V2 => &[V2],
            Self::V3 => &[V2, V3],
            Self::V4 => &[V2, V3, V4],
        }
    }

    fn needs(self) -> [u32; ROWS] {
        bits(self.lists(), CPU, 1)
    }

    fn takes(self) -> [u32; ROWS] {
        let (own, more, kvm) = (bits(self.lists(), CPU, 2), bits(&[DEFENCES, MACHINE], CPU, 2), bits(&[KVM], KVM_OWN, 1));
        std::array::from_fn(|row| own[row] | more[row] | kvm[row])
    }
}

/// The words of all features that are named so. A name may stand in two registers, as AMD repeats some of leaf 1: `places` of them count.
fn bits(lists: &[&str], kind: &str, places: usize) -> [u32; ROWS] {
    let named = lists.iter().flat_map(|list| list.split_ascii_whitespace());
    let mut words = [0; ROWS];
    for name in named {
        let rows = words.iter_mut().zip(&FEATURES).filter(|(_, row)| row.kind == kind);
        rows.filter_map(|(word, row)| Some((word, row.bit(name)?))).take(places).for_each(|(word, bit)| *word |= 1 << bit);
    }
    words
}

/// All names, for tests.
#[cfg(test)]
pub(crate) const LISTS: [&str; 6] = [V2, V3, V4, DEFENCES, MACHINE, KVM];

#[cfg(test)]
pub(crate) fn needs(level: Level) -> [u32; ROWS] {
    level.needs()
}

/// What a guest is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Model {
    /// All that its host gives.
    #[default]
    Host,
    /// A level.
    Level(Level),
    /// This set: all of it, and nothing else.
    Only(Box<Features>),
}

/// A text that names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Not one of the names.
    #[error("`{0}` is no CPU model: it is host, x86-64-v2, x86-64-v3, x86-64-v4 or only:SET")]
    Unknown(String),
    /// Not a set.
    #[error(transparent)]
    Features(#[from] FeaturesError),
}

impl Model {
    /// What a host that has these features lacks of the model, in words; empty if the model can be had there.
    pub fn lacks(&self, host: &Features) -> Vec<String> {
        match self {
            Self::Host => vec![],
            Self::Level(level) => level.lacks(host),
            Self::Only(set) => set.missing_on(host),
        }
    }

    /// Cuts what a host would give its guest to what the model says; the guest's memory needs physical addresses of so many bits.
    pub fn filter(&self, entries: &mut Vec<Entry>, physical_bits: u8) {
        let (words, address_bits) = match self {
            Self::Host => return,
            Self::Level(level) => (level.takes(), [ADDRESS_BITS[0].max(physical_bits), ADDRESS_BITS[1]]),
            Self::Only(set) => {
                let elsewhere: Vec<u32> = parts(entries).iter().filter(|part| !set.has_part(part)).map(|part| part.number).collect();
                entries.retain(|entry| entry.leaf != crate::XSAVE_LEAF || !elsewhere.contains(&entry.subleaf));
                (std::array::from_fn(|row| set.word(row)), set.address_bits())
            }
        };
        for entry in entries.iter_mut() {
            for number in 0..entry.registers.len() {
                let value = &mut entry.registers[number];
                match Rule::of(entry.leaf, entry.subleaf, number) {
                    Rule::Free | Rule::AtMost => {}
                    Rule::Features(row) => {
                        let machine = OF_THE_MACHINE.iter().find(|(leaf, at, _)| (entry.leaf, entry.subleaf, number) == (*leaf, 0, *at));
                        *value &= words[row] | FEATURES[row].ignored | machine.map_or(0, |(_, _, bits)| *bits);
                    }
                    Rule::AddressBits => *value = sizes([0, 1].map(|at| address_bits[at].min((*value >> (8 * at)) as u8))),
                    Rule::Same if is_every_hosts(entry.leaf) || entry.leaf == crate::XSAVE_LEAF => {}
                    Rule::Same => *value = 0,
                }
            }
        }
        let [xcr0, xss] = [(0, EAX), (1, ECX)].map(|(subleaf, number)| register(entries, crate::XSAVE_LEAF, subleaf, number));
        xsave::cut(entries, xcr0, xss);
        entries.retain(|entry| entry.leaf != crate::XSAVE_LEAF || entry.subleaf < 2 || entry.registers != [0; 4]);
    }
}

/// Power management that KVM makes up (a timer that always runs), and KVM's signature.
fn is_every_hosts(leaf: u32) -> bool {
    matches!(leaf, 6 | 0x4000_0000)
}

fn sizes([physical, virtual_]: [u8; 2]) -> u32 {
    u32::from(physical) | u32::from(virtual_) << 8
}

impl fmt::Display for Model {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => formatter.write_str("host"),
            Self::Level(level) => formatter.write_str(level.name()),
            Self::Only(set) => write!(formatter, "only:{set}"),
        }
    }
}

impl FromStr for Model {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        if let Some(set) = text.strip_prefix("only:") {
            return Ok(Self::Only(Box::new(set.parse()?)));
        }
        if text == "host" {
            return Ok(Self::Host);
        }
        let level = Level::ALL.into_iter().find(|level| level.name() == text);
        let unknown = || ModelError::Unknown(text.chars().filter(|letter| !letter.is_control()).take(64).collect());
        level.map(Self::Level).ok_or_else(unknown)
    }
}
