//! The interrupt controllers and the interval timer.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_irqchip__bindgen_ty_1, kvm_pit_state2,
};
use rebec_vmm_saved::{Part, PartKind, SavedMachine};
use serde::{Deserialize, Serialize};

use super::Abi;
use crate::{
    Machine,
    error::{self, Result},
};

pub(super) const IRQCHIP_VERSION: u16 = 1;
pub(super) const PIT_VERSION: u16 = 1;
/// In this order the chips travel.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state of the three chips; which is which is said by place, not by data.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SavedChips {
    pub(super) chips: [Abi<kvm_irqchip__bindgen_ty_1>; CHIPS.len()],
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct SavedPit {
    pub(super) state: Abi<kvm_pit_state2>,
}

impl Machine {
    /// Adds the parts of the clock, the interrupt controllers and the timer. The vCPUs stand still and are saved already, so that
    /// the clock's part is the latest reading of time.
    pub fn save(&self, saved: &mut SavedMachine) -> Result<()> {
        let [master, slave, ioapic] = CHIPS.map(|id| self.read_chip(id));
        let chips = SavedChips { chips: [master?, slave?, ioapic?] };
        saved.push(Part::encode(PartKind::Irqchip, 0, IRQCHIP_VERSION, &chips));
        let pit = self.vm.get_pit2().map_err(error::machine("read its interval timer"))?;
        saved.push(Part::encode(PartKind::Pit, 0, PIT_VERSION, &SavedPit { state: Abi(pit) }));
        self.save_clock(saved)
    }

    /// Takes the parts of the interrupt controllers and the timer. Must come after the vCPUs are restored: an interrupt that
    /// waits in a controller is delivered to their local APICs at once.
    pub fn restore_chips(&self, saved: &mut SavedMachine) -> Result<()> {
        let chips: SavedChips = saved.take(PartKind::Irqchip, 0)?.decode(IRQCHIP_VERSION)?;
        for (chip_id, chip) in CHIPS.into_iter().zip(chips.chips) {
            let chip = kvm_irqchip { chip_id, pad: 0, chip: chip.0 };
            self.vm.set_irqchip(&chip).map_err(error::machine("set its interrupt controllers"))?;
        }
        let pit: SavedPit = saved.take(PartKind::Pit, 0)?.decode(PIT_VERSION)?;
        self.vm.set_pit2(&pit.state.0).map_err(error::machine("set its interval timer"))
    }

    fn read_chip(&self, chip_id: u32) -> Result<Abi<kvm_irqchip__bindgen_ty_1>> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.vm.get_irqchip(&mut chip).map_err(error::machine("read its interrupt controllers"))?;
        Ok(Abi(chip.chip))
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_pit_channel_state;

    use super::*;

    #[test]
    fn golden_bytes() {
        let mut chip = kvm_irqchip__bindgen_ty_1 { dummy: [0; 512] };
        let zero = Abi(chip);
        // SAFETY: `dummy` is all 512 bytes of the union, which are initialised above.
        unsafe { chip.dummy[2] = 7 };
        let part = Part::encode(PartKind::Irqchip, 0, IRQCHIP_VERSION, &SavedChips { chips: [Abi(chip), zero, zero] });
        let empty = [&[0x80, 4][..], &[0; 512]].concat();
        assert_eq!(part.bytes, [&[0x80, 4, 0, 0, 7][..], &[0; 509], &empty, &empty].concat());

        let mut pit = kvm_pit_state2::default();
        pit.channels[0] = kvm_pit_channel_state { count: 0x1_0000, ..Default::default() };
        let part = Part::encode(PartKind::Pit, 0, PIT_VERSION, &SavedPit { state: Abi(pit) });
        assert_eq!(part.bytes, [&[112, 0, 0, 1, 0][..], &[0; 108]].concat());
    }
}
