//! The serial port: lines out through a buffer, single bytes in.
//!
//! A byte written costs an exit to the VMM of 27 to 80 us: lines wait in a ring and leave a few bytes per turn of the main loop, so that no
//! line stalls the network load. The VMM's 16550 never makes a writer wait, so its status is read for input only.

use core::fmt;

use crate::cpu;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 1;
/// Bytes that leave per turn of the main loop: under half a millisecond.
const BYTES_PER_TURN: usize = 8;
const RING_BYTES: usize = 8192;

/// Prints one line on a console, through its buffer.
#[macro_export]
macro_rules! say {
    ($console:expr, $($item:tt)*) => {{
        use core::fmt::Write as _;
        // The console's writer never fails: what does not fit is counted, not refused.
        writeln!($console, $($item)*).unwrap_or(());
    }};
}

/// COM1 with its buffer.
pub struct Console {
    ring: [u8; RING_BYTES],
    head: usize,
    tail: usize,
    /// Bytes that found the buffer full.
    pub lost: u64,
}

impl Console {
    /// With an empty buffer.
    pub const fn new() -> Self {
        Self { ring: [0; RING_BYTES], head: 0, tail: 0, lost: 0 }
    }

    /// Writes some of what waits.
    pub fn turn(&mut self) {
        for _ in 0..BYTES_PER_TURN {
            if !self.write_one() {
                return;
            }
        }
    }

    /// Writes all that waits.
    pub fn flush(&mut self) {
        while self.write_one() {}
    }

    /// One byte of input, if there is one.
    pub fn read(&mut self) -> Option<u8> {
        // All ones is what an absent port reads as.
        let status = cpu::in8(LINE_STATUS);
        (status & DATA_READY != 0 && status != 0xff).then(|| cpu::in8(COM1))
    }

    fn write_one(&mut self) -> bool {
        let waiting = self.tail != self.head;
        if waiting {
            cpu::out8(COM1, self.ring[self.tail]);
            self.tail = (self.tail + 1) % RING_BYTES;
        }
        waiting
    }
}

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let next = (self.head + 1) % RING_BYTES;
            if next == self.tail {
                self.lost += 1;
            } else {
                self.ring[self.head] = byte;
                self.head = next;
            }
        }
        Ok(())
    }
}

/// Writes at once, for the last words of a panic.
pub struct Direct;

impl fmt::Write for Direct {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| cpu::out8(COM1, byte));
        Ok(())
    }
}
