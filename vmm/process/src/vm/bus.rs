//! Which device answers at which address: all that vCPU threads share. Each device guards its own registers; nothing here locks.
//!
//! Addresses that nobody claims read as all ones and swallow writes, as on a real bus.

use rebec_devices::{
    power::{PowerEvent, PowerPorts},
    serial::SerialPort,
    virtio::{PciTransport, pci::CONFIG_BYTES},
};
use rebec_kvm::Bus;

use super::{MachineEvent, Report};

/// The keyboard controller's command port: nothing of it is there but its reset line, which kernels try.
const I8042_COMMAND: u16 = 0x64;
const I8042_PULSE_RESET: u8 = 0xfe;

/// Every device of the machine at its address.
pub struct Buses {
    pub slots: Vec<PciTransport>,
    pub serial: SerialPort,
    pub power: PowerPorts,
    pub report: Report,
}

/// What a memory access goes to.
enum Target<'a> {
    /// A slot's configuration space, at this offset.
    Config(&'a PciTransport, u64),
    /// A slot's BAR, at this offset.
    Bar(&'a PciTransport, u64),
}

impl Buses {
    fn target(&self, address: u64) -> Option<Target<'_>> {
        if let Some((slot, offset)) = rebec_layout::slot_config(address) {
            return self.slots.get(slot).filter(|_| offset < CONFIG_BYTES).map(|slot| Target::Config(slot, offset));
        }
        self.slots.iter().find_map(|slot| Some(Target::Bar(slot, slot.offset_of(address)?)))
    }
}

impl Bus for Buses {
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.target(address) {
            Some(Target::Config(slot, offset)) => slot.read_config(offset, data),
            Some(Target::Bar(slot, offset)) => slot.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.target(address) {
            Some(Target::Config(slot, offset)) => slot.write_config(offset, data),
            Some(Target::Bar(slot, offset)) => slot.write(offset, data),
            None => {}
        }
    }

    fn pio_read(&self, port: u16, data: &mut [u8]) {
        match port {
            rebec_layout::COM1_PORT..rebec_layout::COM1_END => self.serial.read(port - rebec_layout::COM1_PORT, data),
            rebec_layout::POWER_PORT..rebec_layout::POWER_END => self.power.read(port - rebec_layout::POWER_PORT, data),
            _ => data.fill(0xff),
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        let asked = match port {
            rebec_layout::COM1_PORT..rebec_layout::COM1_END => {
                self.serial.write(port - rebec_layout::COM1_PORT, data);
                None
            }
            rebec_layout::POWER_PORT..rebec_layout::POWER_END => self.power.write(port - rebec_layout::POWER_PORT, data),
            I8042_COMMAND if data == [I8042_PULSE_RESET] => Some(self.power.ask(PowerEvent::Reset)),
            _ => None,
        };
        if let Some(asked) = asked {
            (self.report)(MachineEvent::Power(asked));
        }
    }
}
