//! What a guest sees of its CPUs, and what of that another host could not give it. Compared before the first page of a move, and once more with
//! what really arrives (`saved::confined`): a source may say one thing and send another.

use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use rebec_cpu::{Entry, Features, beyond};
use serde::{Deserialize, Serialize};

use crate::{
    Vcpu, cpuid,
    error::{Error, Result},
};

const VERSION: u16 = 1;
/// 256 CPUID entries and 1024 MSRs are far below.
const BYTES_MAX: usize = 64 * 1024;
const MSRS_MAX: usize = 1024;
/// How far a TSC may be off, in parts per million, where it cannot be scaled. The guest is not told that its TSC is invariant
/// there, so it keeps time by KVM's clock and uses the TSC for short waits only; and two hosts of one make measure themselves
/// some tenths of a percent apart when they are busy at boot.
const TSC_TOLERANCE_PPM: u64 = 10_000;

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
        let msrs = vcpu.readable_msrs()?.into_iter().map(|(index, _)| index).collect();
        let tsc_khz = vcpu.fd.get_tsc_khz().map_err(vcpu.failed("read its TSC rate"))?;
        Ok(Self { version: VERSION, cpuid: vcpu.cpuid.iter().map(cpuid::entry).collect(), msrs, tsc_khz, scales_tsc })
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

    /// What a guest that runs with this model would miss at `host`; empty if it can go there. Which MSRs there are is no matter: a guest that
    /// has nothing in one that `host` lacks does not miss it, and for one that has, the state that arrives is refused by name.
    pub fn missing_on(&self, host: &CpuModel) -> Vec<String> {
        let mut missing = beyond(&self.cpuid, &host.cpuid);
        missing.extend(self.missing_tsc_rate(host));
        missing
    }

    /// The features that the guest may use, as a compact set.
    pub fn features(&self) -> Features {
        Features::of(&self.cpuid)
    }

    fn missing_tsc_rate(&self, host: &CpuModel) -> Option<String> {
        let off = u64::from(self.tsc_khz.abs_diff(host.tsc_khz)) * 1_000_000;
        let tolerated = u64::from(self.tsc_khz) * TSC_TOLERANCE_PPM;
        let (own, other) = (self.tsc_khz, host.tsc_khz);
        (off > tolerated && !host.scales_tsc).then(|| format!("a TSC of {own} kHz (this host's has {other} kHz and cannot be scaled)"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use rebec_cpu::KVM_FEATURES_LEAF;

    fn model() -> CpuModel {
        let entry = |leaf, subleaf, registers| Entry { leaf, subleaf, registers };
        let vendor = [0xd, u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"cAMD"), u32::from_le_bytes(*b"enti")];
        CpuModel {
            version: VERSION,
            cpuid: vec![
                entry(0, 0, vendor),
                entry(1, 0, [0xa00f11, 0, 1 << 0 | 1 << 28, 1 << 25]),
                entry(7, 0, [0, 1 << 5, 0, 0]),
                entry(0xd, 0, [0x207, 832, 836, 0]),
                entry(0xd, 9, [4, 832, 0, 0]),
                entry(0x8000_0008, 0, [0x3030, 0, 0, 0]),
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
        better.cpuid[5].registers[0] = 0x3034;
        better.msrs.push(0x122);
        assert_eq!(model().missing_on(&better), Vec::<String>::new());
        let missing = better.missing_on(&model());
        let expected = ["fma", "sse4_2", "CPUID 7.0 EBX bit 11", "avx512f", "physical addresses of 52 bits (this host has 48)"];
        assert_eq!(missing.iter().map(|m| m.trim_start_matches("CPU feature ")).collect::<Vec<_>>(), expected);
    }

    /// A newer processor may keep the same registers elsewhere in the area: what came would land in other registers, without a word.
    #[test]
    fn another_layout_of_the_xsave_area_is_no_better_host() {
        let mut newer = model();
        newer.cpuid[4].registers[1] = 2432;
        newer.cpuid[3].registers[2] = 2440;
        assert_eq!(model().missing_on(&newer), ["CPUID d.9 EBX of 0x340 (this host has 0x980)"]);
        newer.cpuid.remove(4);
        assert_eq!(model().missing_on(&newer).len(), 2, "nowhere is another place too");
    }

    #[test]
    fn what_this_program_does_not_know_must_be_the_same_or_nothing() {
        let mut odd = model();
        odd.cpuid.push(Entry { leaf: 0x24, subleaf: 0, registers: [0, 0x7_0001, 0, 0] });
        assert_eq!(odd.missing_on(&model()), ["CPUID 24.0 EBX of 0x70001 (this host has 0x0)"]);
        assert_eq!(odd.missing_on(&odd), Vec::<String>::new());
        assert_eq!(model().missing_on(&odd), Vec::<String>::new());
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
