//! The ports through which a guest turns itself off or resets, and hears of its power button: ACPI's PM1a block and the FADT's reset register
//! (ACPI 6.5 §4.8.3).
//!
//! ```text
//! +0 PM1a status:u16   write 1 to clear           +4 PM1a control:u16   SCI_EN, SLP_TYP in bits 12:10, SLP_EN in bit 13
//! +2 PM1a enable:u16                              +8 reset:u8           the value 1 resets
//! ```
//!
//! Where the block lies is the machine's business (`rebec_layout`); offsets here are from its start. SLP_TYP 5 is S5, as the DSDT's
//! `_S5` says. The power button is the only event: its bits in status and enable together raise the SCI, an edge. What a guest asks for is returned
//! to whoever runs the machine, and saved: a guest that is moved between its last instruction and the end of its machine is ended where it arrives.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use rebec_layout::{RESET_VALUE, S5_SLEEP_TYPE};
use rebec_vmm_saved::{Part, PartKind, SavedError};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const CONTROL: u16 = 4;
const CONTROL_END: u16 = 6;
const RESET: u16 = 8;
const CONTROL_SCI_EN: u16 = 1;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
/// PWRBTN_STS and PWRBTN_EN.
const POWER_BUTTON: u16 = 1 << 8;
const VERSION: u16 = 3;
/// How what was asked for is saved; 0 is nothing.
const ASKED_OFF: u8 = 1;
const ASKED_RESET: u8 = 2;

/// What a guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Turn off.
    Off,
    /// Start anew.
    Reset,
}

/// The ports. Shared by all vCPUs and whoever presses the button.
#[derive(Debug)]
pub struct PowerPorts {
    status: AtomicU16,
    enable: AtomicU16,
    /// What the guest asked for last.
    asked: AtomicU8,
    sci: EventFd,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedPower {
    status: u16,
    enable: u16,
    asked: u8,
}

impl PowerPorts {
    /// The block as it is after a reset; its interrupts are written to `sci`.
    pub fn new(sci: EventFd) -> Self {
        Self { status: AtomicU16::new(0), enable: AtomicU16::new(0), asked: AtomicU8::new(0), sci }
    }

    /// Presses the power button, if the guest listens to it: one that does not would find it pressed whenever it begins to.
    #[must_use = "a guest that does not listen will not end by itself"]
    pub fn press_button(&self) -> bool {
        let listens = self.enable.load(Ordering::SeqCst) & POWER_BUTTON != 0;
        if listens {
            self.status.fetch_or(POWER_BUTTON, Ordering::SeqCst);
            self.raise();
        }
        listens
    }

    /// Raises the SCI if an event is there that the guest wants to hear of. Whoever changed one of the registers looks at both, so that of two who
    /// do so at once one sees it.
    fn raise(&self) {
        if self.status.load(Ordering::SeqCst) & self.enable.load(Ordering::SeqCst) != 0 {
            // A counter that is full has raised it already.
            self.sci.write(1).ok();
        }
    }

    /// A vCPU reads from `offset` on.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = match offset.wrapping_add(at as u16) {
                at @ STATUS..ENABLE => self.status.load(Ordering::SeqCst).to_le_bytes()[usize::from(at - STATUS)],
                at @ ENABLE..CONTROL => self.enable.load(Ordering::SeqCst).to_le_bytes()[usize::from(at - ENABLE)],
                at @ CONTROL..CONTROL_END => CONTROL_SCI_EN.to_le_bytes()[usize::from(at - CONTROL)],
                _ => 0xff,
            };
        }
    }

    /// A vCPU writes from `offset` on. Returns what the guest asks for thereby.
    #[must_use = "the guest waits for it"]
    pub fn write(&self, offset: u16, data: &[u8]) -> Option<PowerEvent> {
        match (offset, data) {
            (STATUS, [low, high, rest @ ..]) => {
                self.status.fetch_and(!u16::from_le_bytes([*low, *high]), Ordering::SeqCst);
                if let [low, high, ..] = rest {
                    self.enable(*low, *high);
                }
            }
            (ENABLE, [low, high, ..]) => self.enable(*low, *high),
            (CONTROL, [low, high, ..]) => {
                let control = u16::from_le_bytes([*low, *high]);
                if control & CONTROL_SLEEP_ENABLE != 0 && control >> 10 & 7 == u16::from(S5_SLEEP_TYPE) {
                    return Some(self.ask(PowerEvent::Off));
                }
            }
            (RESET, [RESET_VALUE, ..]) => return Some(self.ask(PowerEvent::Reset)),
            _ => {}
        }
        None
    }

    fn enable(&self, low: u8, high: u8) {
        self.enable.store(u16::from_le_bytes([low, high]), Ordering::SeqCst);
        self.raise();
    }

    /// Remembers what the guest asked for, here or at another port of the machine that means the same.
    pub fn ask(&self, event: PowerEvent) -> PowerEvent {
        let asked = match event {
            PowerEvent::Off => ASKED_OFF,
            PowerEvent::Reset => ASKED_RESET,
        };
        self.asked.store(asked, Ordering::Relaxed);
        event
    }

    /// Says everything.
    pub fn save(&self) -> Part {
        let (status, enable) = (self.status.load(Ordering::SeqCst), self.enable.load(Ordering::SeqCst));
        let saved = SavedPower { status, enable, asked: self.asked.load(Ordering::Relaxed) };
        Part::encode(PartKind::Power, 0, VERSION, &saved)
    }

    /// Takes what [`PowerPorts::save`] said, and raises again what may have been on its way. Any enable bits will do: no other event is ever there.
    /// Returns what the guest had asked for.
    ///
    /// # Errors
    /// When the part is of another version or malformed, or tells of what does not exist.
    pub fn restore(&self, part: &Part) -> Result<Option<PowerEvent>, SavedError> {
        let saved: SavedPower = part.decode(VERSION)?;
        let asked = match saved.asked {
            0 => None,
            ASKED_OFF => Some(PowerEvent::Off),
            ASKED_RESET => Some(PowerEvent::Reset),
            _ => return Err(part.invalid("neither power-off nor reset was asked for")),
        };
        if saved.status & !POWER_BUTTON != 0 {
            return Err(part.invalid("there is no event but the power button's"));
        }
        self.status.store(saved.status, Ordering::SeqCst);
        self.enable.store(saved.enable, Ordering::SeqCst);
        self.asked.store(saved.asked, Ordering::Relaxed);
        self.raise();
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn ports() -> (PowerPorts, EventFd) {
        let sci = EventFd::new(EFD_NONBLOCK).unwrap();
        (PowerPorts::new(sci.try_clone().unwrap()), sci)
    }

    fn power_part(bytes: &[u8]) -> Part {
        Part { bytes: bytes.to_vec(), ..ports().0.save() }
    }

    #[test]
    fn each_way_out_is_reported_and_nothing_else() {
        let (ports, _) = ports();
        let off = (CONTROL_SLEEP_ENABLE | u16::from(S5_SLEEP_TYPE) << 10).to_le_bytes();
        assert_eq!(ports.write(4, &off), Some(PowerEvent::Off));
        assert_eq!(ports.write(8, &[1]), Some(PowerEvent::Reset));
        for (offset, data) in
            [(4, [0, 0x14].as_slice()), (4, &[0, 0x24]), (4, &[0x34]), (8, &[0, 1]), (8, &[]), (0, &[0xff, 0xff]), (9, &[1])]
        {
            assert_eq!(ports.write(offset, data), None, "{data:?} at {offset}");
        }
    }

    #[test]
    fn registers_read_back_at_every_width() {
        let (ports, _) = ports();
        assert_eq!(ports.write(2, &[0x20, 0x01]), None);
        let mut block = [0; 9];
        ports.read(0, &mut block);
        assert_eq!(block, [0, 0, 0x20, 0x01, 1, 0, 0xff, 0xff, 0xff]);
        let mut top = [0; 8];
        ports.read(0xfffe, &mut top);
        assert_eq!(top, [0xff, 0xff, 0, 0, 0x20, 0x01, 1, 0]);
    }

    #[test]
    fn the_button_is_heard_by_a_guest_that_listens_and_cleared_by_it() {
        let (ports, sci) = ports();
        assert!(!ports.press_button(), "nobody listens");
        assert_eq!(ports.write(2, &[0, 1]), None);
        assert!(sci.read().is_err(), "what nobody heard is not kept");
        assert!(ports.press_button());
        assert_eq!(sci.read().unwrap(), 1);
        let mut status = [0; 2];
        ports.read(0, &mut status);
        assert_eq!(status, [0, 1]);
        // Looking away and back, it is still there; a write of other bits leaves it.
        for (offset, data, raised) in [(2, [0, 0].as_slice(), false), (0, &[0xff, 0], false), (2, &[0, 1], true), (0, &[0, 1, 0, 1], false)]
        {
            assert_eq!(ports.write(offset, data), None);
            assert_eq!(sci.read().is_ok(), raised, "{data:?} at {offset}");
        }
        ports.read(0, &mut status);
        assert_eq!(status, [0, 0]);
    }

    #[test]
    fn golden_bytes() {
        let (ports, _) = ports();
        assert_eq!(ports.write(2, &[0x20, 0x01]), None);
        let part = ports.save();
        assert_eq!((part.kind, part.version, part.bytes.as_slice()), (PartKind::Power, 3, [0, 0xa0, 0x02, 0].as_slice()));
        let (other, _) = self::ports();
        assert_eq!(other.restore(&part).unwrap(), None);
        assert_eq!(other.save(), part);
        for bad in [&[0xff][..], &[0, 0xa0, 0x02], &[0, 0xa0, 0x02, 3], &[1, 0xa0, 0x02, 0]] {
            assert!(other.restore(&power_part(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_button_that_was_pressed_is_raised_again_wherever_it_is_restored() {
        let (ports, _) = ports();
        assert_eq!(ports.write(2, &[0, 1]), None);
        assert!(ports.press_button());
        let (there, sci) = self::ports();
        assert_eq!(there.restore(&ports.save()).unwrap(), None);
        assert_eq!((sci.read().unwrap(), there.save()), (1, ports.save()));
    }

    #[test]
    fn what_was_asked_for_is_asked_again_wherever_it_is_restored() {
        for (offset, data, event, byte) in [(4, [0, 0x34].as_slice(), PowerEvent::Off, 1), (8, [1].as_slice(), PowerEvent::Reset, 2)] {
            let (ports, _) = ports();
            assert_eq!(ports.write(offset, data), Some(event));
            assert_eq!(ports.save().bytes, [0, 0, byte]);
            let (there, _) = self::ports();
            assert_eq!(there.restore(&ports.save()).unwrap(), Some(event));
            assert_eq!(there.save(), ports.save(), "a second move takes it along");
        }
    }
}
