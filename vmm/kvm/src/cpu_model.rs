//! What a guest sees of its CPUs, and what of that another host could not give it. Compared before the first page of a move.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use crate::{
    Vcpu,
    error::{Error, Result},
};

mod names;

const VERSION: u16 = 1;
/// 256 CPUID entries and 1024 MSRs are far below.
const BYTES_MAX: usize = 64 * 1024;
const MSRS_MAX: usize = 1024;
/// How far a TSC may be off, in parts per million, where it cannot be scaled. The guest is not told that its TSC is invariant
/// there, so it keeps time by KVM's clock and uses the TSC for short waits only; and two hosts of one make measure themselves
/// some tenths of a percent apart when they are busy at boot.
const TSC_TOLERANCE_PPM: u64 = 10_000;

const EXTENDED_SIZES_LEAF: u32 = 0x8000_0008;

/// One CPUID entry: leaf, subleaf, and EAX, EBX, ECX, EDX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    leaf: u32,
    subleaf: u32,
    registers: [u32; 4],
}

/// CPUID of the first vCPU, the MSRs that can be saved, and the rate of the time stamp counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    version: u16,
    cpuid: Vec<Entry>,
    msrs: Vec<u32>,
    tsc_khz: u32,
    scales_tsc: bool,
}

impl CpuModel {
    /// The model of the machine that a vCPU belongs to.
    pub(crate) fn of(vcpu: &Vcpu, scales_tsc: bool) -> Result<Self> {
        let cpuid = vcpu.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(vcpu.failed("read its CPUID"))?;
        let msrs = vcpu.readable_msrs()?.into_iter().map(|(index, _)| index).collect();
        let tsc_khz = vcpu.fd.get_tsc_khz().map_err(vcpu.failed("read its TSC rate"))?;
        Ok(Self { version: VERSION, cpuid: cpuid.as_slice().iter().map(Entry::from).collect(), msrs, tsc_khz, scales_tsc })
    }

    /// The bytes that travel: postcard.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("invariant: the model's sequences have known lengths")
    }

    /// Reads what travelled.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let refuse = |what: String| Error::CpuModel { what };
        if bytes.len() > BYTES_MAX {
            return Err(refuse(format!("{} bytes, at most {BYTES_MAX}", bytes.len())));
        }
        let (model, rest): (Self, &[u8]) = postcard::take_from_bytes(bytes).map_err(|error| refuse(error.to_string()))?;
        match model {
            _ if !rest.is_empty() => Err(refuse(format!("{} bytes left over", rest.len()))),
            Self { version, .. } if version != VERSION => Err(refuse(format!("version {version}, this program reads {VERSION}"))),
            Self { cpuid, .. } if cpuid.len() > KVM_MAX_CPUID_ENTRIES => Err(refuse(format!("{} CPUID entries", cpuid.len()))),
            Self { msrs, .. } if msrs.len() > MSRS_MAX => Err(refuse(format!("{} MSRs", msrs.len()))),
            model => Ok(model),
        }
    }

    /// What a guest that runs with this model would miss at `host`; empty if it can go there.
    pub fn missing_on(&self, host: &CpuModel) -> Vec<String> {
        let mut missing = Vec::new();
        let (own, other) = (self.vendor(), host.vendor());
        if own != other {
            missing.push(format!("a processor by {own} (this host's is by {other})"));
        }
        for feature in names::FEATURES {
            let bits = self.register(feature.leaf, feature.subleaf, feature.register) & !feature.ignored;
            let absent = bits & !host.register(feature.leaf, feature.subleaf, feature.register);
            missing.extend((0..32).filter(|bit| absent >> bit & 1 == 1).map(|bit| feature.name(bit)));
        }
        let width = |model: &Self| model.register(EXTENDED_SIZES_LEAF, 0, 0) & 0xff;
        if width(self) > width(host) {
            missing.push(format!("physical addresses of {} bits (this host has {})", width(self), width(host)));
        }
        missing.extend(self.msrs.iter().filter(|msr| !host.msrs.contains(msr)).map(|msr| format!("MSR {msr:#x}")));
        missing.extend(self.missing_tsc_rate(host));
        missing
    }

    fn missing_tsc_rate(&self, host: &CpuModel) -> Option<String> {
        let off = u64::from(self.tsc_khz.abs_diff(host.tsc_khz)) * 1_000_000;
        let tolerated = u64::from(self.tsc_khz) * TSC_TOLERANCE_PPM;
        let (own, other) = (self.tsc_khz, host.tsc_khz);
        (off > tolerated && !host.scales_tsc).then(|| format!("a TSC of {own} kHz (this host's has {other} kHz and cannot be scaled)"))
    }

    /// Zero where there is no such entry, as CPUID itself answers.
    fn register(&self, leaf: u32, subleaf: u32, register: usize) -> u32 {
        self.cpuid.iter().find(|e| (e.leaf, e.subleaf) == (leaf, subleaf)).map_or(0, |e| e.registers[register])
    }

    fn vendor(&self) -> String {
        let bytes: Vec<u8> = [1, 3, 2].iter().flat_map(|register| self.register(0, 0, *register).to_le_bytes()).collect();
        String::from_utf8_lossy(&bytes).escape_debug().collect()
    }
}

impl From<&kvm_cpuid_entry2> for Entry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        Self { leaf: entry.function, subleaf: entry.index, registers: [entry.eax, entry.ebx, entry.ecx, entry.edx] }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpuid::KVM_FEATURES_LEAF;

    fn model() -> CpuModel {
        let entry = |leaf, subleaf, registers| Entry { leaf, subleaf, registers };
        let vendor = [0xd, u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"cAMD"), u32::from_le_bytes(*b"enti")];
        CpuModel {
            version: VERSION,
            cpuid: vec![
                entry(0, 0, vendor),
                entry(1, 0, [0xa00f11, 0, 1 << 0 | 1 << 28, 1 << 25]),
                entry(7, 0, [0, 1 << 5, 0, 0]),
                entry(EXTENDED_SIZES_LEAF, 0, [0x3030, 0, 0, 0]),
                entry(KVM_FEATURES_LEAF, 0, [1 << 3 | 1 << 24, 0, 0, 0]),
            ],
            msrs: vec![0x10, 0xc000_0103],
            tsc_khz: 2_400_000,
            scales_tsc: false,
        }
    }

    #[test]
    fn a_guest_may_stay_where_it_is() {
        assert_eq!(model().missing_on(&model()), Vec::<String>::new());
    }

    #[test]
    fn a_better_host_will_do_and_the_way_back_is_named() {
        let mut better = model();
        better.cpuid[1].registers[2] |= 1 << 12 | 1 << 20;
        better.cpuid[2].registers[1] |= 1 << 16 | 1 << 11;
        better.cpuid[3].registers[0] = 0x3034;
        better.msrs.push(0x122);
        assert_eq!(model().missing_on(&better), Vec::<String>::new());
        let missing = better.missing_on(&model());
        let expected =
            ["fma", "sse4_2", "CPUID 7.0 EBX bit 11", "avx512f", "physical addresses of 52 bits (this host has 48)", "MSR 0x122"];
        assert_eq!(missing.iter().map(|m| m.trim_start_matches("CPU feature ")).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn another_vendor_and_lost_paravirtual_features_are_named() {
        let mut host = model();
        host.cpuid[0].registers[1] = u32::from_le_bytes(*b"Genu");
        host.cpuid.pop();
        let missing = model().missing_on(&host);
        assert_eq!(missing[0], "a processor by AuthenticAMD (this host's is by GenuenticAMD)");
        assert_eq!(missing[1..], ["KVM feature clocksource2", "KVM feature clocksource_stable"]);
    }

    #[test]
    fn a_tsc_is_scaled_or_near_enough() {
        let host = |tsc_khz, scales_tsc| CpuModel { tsc_khz, scales_tsc, ..model() };
        assert_eq!(model().missing_on(&host(2_410_000, false)).len(), 0);
        assert_eq!(model().missing_on(&host(3_000_000, true)).len(), 0);
        let missing = model().missing_on(&host(3_000_000, false));
        assert_eq!(missing, ["a TSC of 2400000 kHz (this host's has 3000000 kHz and cannot be scaled)"]);
    }

    #[test]
    fn golden_bytes() {
        let mut model = model();
        model.cpuid.truncate(1);
        let expected = [
            1, 1, // version, one CPUID entry
            0, 0, 0xd, 0xc1, 0xea, 0xd1, 0xc3, 0x06, 0xe3, 0x82, 0xb5, 0xa2, 0x04, 0xe5, 0xdc, 0xd1, 0xcb, 0x06, // its words
            2, 0x10, 0x83, 0x82, 0x80, 0x80, 0x0c, // two MSRs
            0x80, 0xbe, 0x92, 0x01, 0, // rate, not scaled
        ];
        assert_eq!(model.to_bytes(), expected);
        assert_eq!(CpuModel::from_bytes(&expected).unwrap(), model);
        for cut in 0..expected.len() {
            assert!(CpuModel::from_bytes(&expected[..cut]).is_err(), "cut at {cut}");
        }
        assert!(CpuModel::from_bytes(&[&expected[..], &[0]].concat()).is_err());
        assert!(CpuModel::from_bytes(&vec![0; BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let with_version = [&[1][..], &bytes].concat();
            if let Ok(hostile) = CpuModel::from_bytes(&with_version) {
                hostile.missing_on(&model());
                model().missing_on(&hostile);
            }
        }
    }
}
