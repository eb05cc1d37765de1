//! A door for the fuzzer, built with `--cfg fuzzing` only: what restoring does with a part before KVM sees it, without a machine.

use kvm_bindings::{kvm_irqchip__bindgen_ty_1, kvm_pit_state2};
use rebec_vmm_saved::{Part, PartKind};

use super::{Abi, chips, clock, vcpu};
use crate::error::Result;

/// An XSAVE area of a host with every extension there is today.
const XSAVE_BYTES: usize = 16 * 1024;

/// Decodes and checks a part of those that this crate saves; others are taken as they are.
pub fn check_part(part: &Part) -> Result<()> {
    match part.kind {
        PartKind::Vcpu => vcpu::check(part, XSAVE_BYTES),
        PartKind::Irqchip => Ok(part.decode::<chips::SavedChips>(chips::IRQCHIP_VERSION).map(drop)?),
        PartKind::Pit => Ok(part.decode::<chips::SavedPit>(chips::PIT_VERSION).map(drop)?),
        PartKind::Clock => clock::check(part),
        _ => Ok(()),
    }
}

/// A sound part of each kind, to begin from.
pub fn part_samples() -> Vec<Part> {
    let chip = Abi(kvm_irqchip__bindgen_ty_1 { dummy: [0; 512] });
    vec![
        vcpu::sample(),
        Part::encode(PartKind::Irqchip, 0, chips::IRQCHIP_VERSION, &chips::SavedChips { chips: [chip; 3] }),
        Part::encode(PartKind::Pit, 0, chips::PIT_VERSION, &chips::SavedPit { state: Abi(kvm_pit_state2::default()) }),
        clock::sample(),
    ]
}
