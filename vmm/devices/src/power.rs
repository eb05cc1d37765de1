//! The ports through which a guest turns itself off or resets: ACPI's PM1a block and the FADT's reset register (ACPI 6.5 §4.8.3).
//!
//! ```text
//! 0x600 PM1a status:u16   write 1 to clear           0x604 PM1a control:u16   SCI_EN, SLP_TYP in bits 12:10, SLP_EN in bit 13
//! 0x602 PM1a enable:u16                              0x608 reset:u8           the value 1 resets
//! 0x064 i8042 command:u8  0xfe resets; the keyboard itself is not there
//! ```
//!
//! SLP_TYP 5 is S5 as the DSDT says (`_S5`). No event is ever raised, so the SCI stays silent. What a guest asked for is reported once to
//! whoever runs the machine; this is not what carries it out.

use std::sync::atomic::{AtomicU16, Ordering};

use rebec_vmm_saved::{Part, PartKind, SavedError};
use serde::{Deserialize, Serialize};

/// First port of the ACPI block.
pub const PORT_FIRST: u16 = 0x600;
/// Last port of the ACPI block.
pub const PORT_LAST: u16 = 0x608;
/// The i8042's command port.
pub const PORT_I8042_COMMAND: u16 = 0x64;
/// SLP_TYP of S5; the DSDT must say the same.
pub const SLEEP_TYPE_OFF: u16 = 5;
/// What resets when written to the reset register; the FADT must say the same.
pub const RESET_VALUE: u8 = 1;

const STATUS: u16 = PORT_FIRST;
const ENABLE: u16 = PORT_FIRST + 2;
const CONTROL: u16 = PORT_FIRST + 4;
const RESET: u16 = PORT_FIRST + 8;
const CONTROL_SCI_EN: u16 = 1;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
const I8042_PULSE_RESET: u8 = 0xfe;
const VERSION: u16 = 1;

/// What a guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Turn off.
    Off,
    /// Start anew.
    Reset,
}

/// The ports. Shared by all vCPUs.
pub struct PowerPorts {
    enable: AtomicU16,
    report: Box<dyn Fn(PowerEvent) + Send + Sync>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedPower {
    enable: u16,
}

impl PowerPorts {
    /// `report` is called on the vCPU's thread and must not wait for that vCPU.
    pub fn new(report: impl Fn(PowerEvent) + Send + Sync + 'static) -> Self {
        Self { enable: AtomicU16::new(0), report: Box::new(report) }
    }

    /// Whether a port is one of these.
    pub fn claims(port: u16) -> bool {
        matches!(port, PORT_FIRST..=PORT_LAST | PORT_I8042_COMMAND)
    }

    /// A vCPU reads from `port` on.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = match port.wrapping_add(at as u16) {
                STATUS..ENABLE => 0,
                at @ ENABLE..CONTROL => self.enable.load(Ordering::Relaxed).to_le_bytes()[usize::from(at - ENABLE)],
                at @ CONTROL..=0x605 => CONTROL_SCI_EN.to_le_bytes()[usize::from(at - CONTROL)],
                _ => 0xff,
            };
        }
    }

    /// A vCPU writes from `port` on.
    pub fn write(&self, port: u16, data: &[u8]) {
        match (port, data) {
            (ENABLE, [low, high, ..]) => self.enable.store(u16::from_le_bytes([*low, *high]), Ordering::Relaxed),
            (CONTROL, [low, high, ..]) => {
                let control = u16::from_le_bytes([*low, *high]);
                if control & CONTROL_SLEEP_ENABLE != 0 && control >> 10 & 7 == SLEEP_TYPE_OFF {
                    (self.report)(PowerEvent::Off);
                }
            }
            (RESET, [RESET_VALUE, ..]) | (PORT_I8042_COMMAND, [I8042_PULSE_RESET, ..]) => (self.report)(PowerEvent::Reset),
            _ => {}
        }
    }

    /// Says everything.
    pub fn save(&self) -> Part {
        Part::encode(PartKind::Power, 0, VERSION, &SavedPower { enable: self.enable.load(Ordering::Relaxed) })
    }

    /// Takes what [`PowerPorts::save`] said. Any enable bits will do: no event is ever raised.
    pub fn restore(&self, part: &Part) -> Result<(), SavedError> {
        let saved: SavedPower = part.decode(VERSION)?;
        self.enable.store(saved.enable, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn ports() -> (PowerPorts, Arc<Mutex<Vec<PowerEvent>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        (PowerPorts::new(move |event| log.lock().unwrap().push(event)), seen)
    }

    #[test]
    fn each_way_out_is_reported_and_nothing_else() {
        let (ports, seen) = ports();
        ports.write(0x604, &(CONTROL_SLEEP_ENABLE | 5 << 10).to_le_bytes());
        ports.write(0x608, &[1]);
        ports.write(0x64, &[0xfe]);
        assert_eq!(*seen.lock().unwrap(), [PowerEvent::Off, PowerEvent::Reset, PowerEvent::Reset]);
        for (port, data) in [(0x604, [0, 0x14]), (0x604, [0, 0x24]), (0x608, [0, 1]), (0x64, [0xd1, 0]), (0x600, [0xff, 0xff])] {
            ports.write(port, &data);
        }
        ports.write(0x604, &[0x34]);
        ports.write(0x608, &[]);
        assert_eq!(seen.lock().unwrap().len(), 3);
    }

    #[test]
    fn registers_read_back_at_every_width() {
        let (ports, _) = ports();
        ports.write(0x602, &[0x20, 0x01]);
        let mut block = [0; 9];
        ports.read(0x600, &mut block);
        assert_eq!(block, [0, 0, 0x20, 0x01, 1, 0, 0xff, 0xff, 0xff]);
        let mut top = [0; 8];
        ports.read(0xffff, &mut top[..1]);
        assert_eq!(top[0], 0xff);
    }

    #[test]
    fn golden_bytes() {
        let (ports, _) = ports();
        ports.write(0x602, &[0x20, 0x01]);
        let part = ports.save();
        assert_eq!((part.kind, part.version, part.bytes.as_slice()), (PartKind::Power, 1, [0xa0, 0x02].as_slice()));
        let (other, _) = self::ports();
        other.restore(&part).unwrap();
        assert_eq!(other.save(), part);
        assert!(other.restore(&Part { bytes: vec![0xff], ..part }).is_err());
    }
}
