//! COM1: a 16550 over vm-superio, with a bounded queue of input and its output written by whoever runs the vCPU.
//!
//! The UART's own buffer holds 64 bytes. Input beyond that waits here, up to [`INPUT_BYTES_MAX`], and moves on when the guest has read what
//! it had; input beyond that is the caller's to keep, as [`SerialPort::push_input`] says how much it took. Who was left with some hears when there is
//! room again ([`SerialPort::telling`]).
//!
//! The lock covers registers and the write of one byte: output must not block for long, or a vCPU does (the program hands in a writer that
//! drops or buffers).

use std::{
    collections::VecDeque,
    fmt, io,
    io::Write,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rebec_vmm_saved::{Part, PartKind, SavedError};
use serde::{Deserialize, Serialize};
use vm_superio::{
    Serial, SerialState, Trigger,
    serial::{self, NoEvents},
};
use vmm_sys_util::eventfd::EventFd;

/// Its registers, one byte each.
const REGISTERS: u16 = 8;
/// Input that waits for the guest, beside the UART's own 64 bytes.
pub const INPUT_BYTES_MAX: usize = 16 * 1024;

const VERSION: u16 = 1;
const UART_BYTES_MAX: usize = 64;
const LSR_DATA_READY: u8 = 1;

type Uart = Serial<IrqLine, NoEvents, Box<dyn Write + Send>>;

/// The interrupt line of the UART.
#[derive(Debug)]
struct IrqLine(EventFd);

impl Trigger for IrqLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550 UART. Shared by all vCPUs and the thread that brings input.
pub struct SerialPort(Mutex<Inner>);

struct Inner {
    uart: Uart,
    waiting: VecDeque<u8>,
    /// Whether input was left with who brought it.
    owes: bool,
    tell: Option<Box<dyn Fn() + Send>>,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SerialPort")
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedSerial {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
    waiting: Vec<u8>,
}

impl SerialPort {
    /// A UART whose output goes to `output` and whose interrupts are written to `irq`.
    pub fn new(output: Box<dyn Write + Send>, irq: EventFd) -> Self {
        Self(Mutex::new(Inner { uart: Serial::new(IrqLine(irq), output), waiting: VecDeque::new(), owes: false, tell: None }))
    }

    /// Calls `tell` when there is room for input that could not be taken: on a vCPU's thread, for which it must not wait.
    pub fn telling(self, tell: impl Fn() + Send + 'static) -> Self {
        self.lock().tell = Some(Box::new(tell));
        self
    }

    /// A vCPU reads at an offset from the first port. The registers are bytes; of a wider access only the first is served.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        if let (Some(first), Some(register)) = (data.first_mut(), register(offset)) {
            let mut inner = self.lock();
            *first = inner.uart.read(register);
            inner.move_input();
        }
    }

    /// A vCPU writes at an offset from the first port.
    pub fn write(&self, offset: u16, data: &[u8]) {
        if let (Some(first), Some(register)) = (data.first(), register(offset)) {
            let mut inner = self.lock();
            match inner.uart.write(register, *first) {
                Ok(()) => {}
                // A reader that is gone or slow: the byte is lost, as on a line without anybody.
                Err(serial::Error::IOError(error)) => log::debug!("serial output: {error}"),
                Err(error) => log::error!("serial: {error}"),
            }
            inner.move_input();
        }
    }

    /// Brings input for the guest. Returns how many bytes were taken; the rest does not fit now.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut inner = self.lock();
        let taken = bytes.len().min(INPUT_BYTES_MAX - inner.waiting.len());
        inner.waiting.extend(&bytes[..taken]);
        inner.owes = taken < bytes.len();
        inner.move_input();
        taken
    }

    /// Says everything. The vCPUs must not run.
    pub fn save(&self) -> Part {
        let inner = self.lock();
        let state = inner.uart.state();
        let saved = SavedSerial {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
            waiting: inner.waiting.iter().copied().collect(),
        };
        Part::encode(PartKind::Serial, 0, VERSION, &saved)
    }

    /// Takes what [`SerialPort::save`] said, keeping the output and the interrupt line of this port. A pending interrupt is raised again.
    pub fn restore(&self, part: &Part) -> Result<(), SavedError> {
        let saved: SavedSerial = part.decode(VERSION)?;
        if saved.received.len() > UART_BYTES_MAX || saved.waiting.len() > INPUT_BYTES_MAX {
            return Err(part.invalid(format!("{} and {} bytes of input are too many", saved.received.len(), saved.waiting.len())));
        }
        if (saved.line_status & LSR_DATA_READY != 0) == saved.received.is_empty() {
            return Err(part.invalid("its line status and its input disagree"));
        }
        let state = SerialState {
            baud_divisor_low: saved.divisor[0],
            baud_divisor_high: saved.divisor[1],
            interrupt_enable: saved.interrupt_enable & 0x0f,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.received,
        };
        let mut inner = self.lock();
        let irq = inner.uart.interrupt_evt().0.try_clone().map_err(|error| part.invalid(format!("its interrupt line: {error}")))?;
        let output = std::mem::replace(inner.uart.writer_mut(), Box::new(io::sink()));
        match Serial::from_state(&state, IrqLine(irq), NoEvents, output) {
            Ok(uart) => inner.uart = uart,
            Err(error) => return Err(part.invalid(error.to_string())),
        }
        inner.waiting = saved.waiting.into();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Moves waiting input into the UART as far as it has room. In loopback mode the line is cut and input waits.
    fn move_input(&mut self) {
        while !self.waiting.is_empty() && self.uart.fifo_capacity() > 0 {
            let (piece, _) = self.waiting.as_slices();
            match self.uart.enqueue_raw_bytes(piece) {
                Ok(0) => break,
                Ok(taken) => drop(self.waiting.drain(..taken)),
                Err(error) => {
                    log::error!("serial input: {error}");
                    break;
                }
            }
        }
        // Half of it: each byte that is read is no reason to wake anybody.
        if self.owes && self.waiting.len() <= INPUT_BYTES_MAX / 2 {
            self.owes = false;
            self.tell.iter().for_each(|tell| tell());
        }
    }
}

fn register(offset: u16) -> Option<u8> {
    (offset < REGISTERS).then_some(offset as u8)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const DATA: u16 = 0;
    const IER: u16 = 1;
    const IIR: u16 = 2;
    const LSR: u16 = 5;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (SerialPort, Screen, EventFd) {
        let (screen, irq) = (Screen::default(), EventFd::new(EFD_NONBLOCK).unwrap());
        (SerialPort::new(Box::new(screen.clone()), irq.try_clone().unwrap()), screen, irq)
    }

    fn read(port: &SerialPort, register: u16) -> u8 {
        let mut data = [0xee];
        port.read(register, &mut data);
        data[0]
    }

    #[test]
    fn output_appears_and_asks_for_more() {
        let (port, screen, irq) = port();
        port.write(IER, &[2]);
        assert_eq!(irq.read().unwrap(), 1, "the transmitter is empty at once");
        assert_eq!(read(&port, IIR) & 0xf, 2);
        for byte in b"hello" {
            port.write(DATA, &[*byte]);
        }
        assert_eq!(*screen.0.lock().unwrap(), b"hello");
        assert!(irq.read().unwrap() > 0);
    }

    #[test]
    fn input_beyond_the_uart_waits_and_input_beyond_that_stays_with_the_caller() {
        let (port, _, irq) = port();
        port.write(IER, &[1]);
        let typed: Vec<u8> = (0..INPUT_BYTES_MAX + 1000).map(|at| at as u8).collect();
        // The UART takes 64 bytes of the first piece, after it was taken into the queue.
        assert_eq!(port.push_input(&typed), INPUT_BYTES_MAX);
        assert_eq!(port.push_input(&typed[INPUT_BYTES_MAX..]), 64);
        assert_eq!(port.push_input(b"x"), 0);
        assert!(irq.read().unwrap() > 0);
        let mut seen = Vec::new();
        while read(&port, LSR) & 1 != 0 {
            seen.push(read(&port, DATA));
        }
        assert!(seen == typed[..INPUT_BYTES_MAX + 64]);
    }

    #[test]
    fn who_was_left_with_input_hears_when_there_is_room() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let told = Arc::new(AtomicUsize::new(0));
        let (plain, ..) = port();
        let counts = told.clone();
        let port = plain.telling(move || {
            counts.fetch_add(1, Ordering::Relaxed);
        });
        let paste: Vec<u8> = (0..200_000_u32).map(|at| (at >> 3) as u8).collect();
        let (mut brought, mut seen) = (0, Vec::new());
        while seen.len() < paste.len() {
            let before = told.load(Ordering::Relaxed);
            brought += port.push_input(&paste[brought..]);
            while seen.len() < paste.len() && told.load(Ordering::Relaxed) == before {
                seen.push(read(&port, DATA));
            }
        }
        assert!(seen == paste && told.load(Ordering::Relaxed) > 10);
    }

    #[test]
    fn every_width_and_offset_is_harmless() {
        let (port, ..) = port();
        for offset in [0, 1, 7, 8, u16::MAX] {
            for width in 0..9 {
                port.write(offset, &[0xff; 9][..width]);
                port.read(offset, &mut [0; 9][..width]);
            }
        }
    }

    #[test]
    fn golden_bytes_travel_with_input_and_a_pending_interrupt() {
        let (port, ..) = port();
        port.write(IER, &[1]);
        port.push_input(b"ab");
        let part = port.save();
        let expected = [0x0c, 0, 1, 4, 3, 0x61, 8, 0xb0, 0, 2, b'a', b'b', 0];
        assert_eq!((part.kind, part.version, part.bytes.as_slice()), (PartKind::Serial, 1, expected.as_slice()));
        let (other, screen, irq) = self::port();
        other.restore(&part).unwrap();
        assert_eq!(other.save(), part);
        assert_eq!(irq.read().unwrap(), 1, "the interrupt that was pending comes again");
        assert_eq!([read(&other, DATA), read(&other, DATA)], *b"ab");
        other.write(DATA, b"c");
        assert_eq!(*screen.0.lock().unwrap(), b"c");
    }

    #[test]
    fn input_that_waits_behind_the_uart_travels_too() {
        let (port, ..) = port();
        let typed: Vec<u8> = (0..200).collect();
        assert_eq!(port.push_input(&typed), 200);
        let (other, ..) = self::port();
        other.restore(&port.save()).unwrap();
        let seen: Vec<u8> = typed.iter().map(|_| read(&other, DATA)).collect();
        assert_eq!(seen, typed);
        assert_eq!(read(&other, LSR) & 1, 0);
    }

    #[test]
    fn hostile_parts_are_refused() {
        let (port, ..) = port();
        let part = port.save();
        for cut in 0..part.bytes.len() {
            assert!(port.restore(&Part { bytes: part.bytes[..cut].to_vec(), ..part.clone() }).is_err());
        }
        let with_input = |count: u8, line_status: u8| {
            let tail = [&[0x0c, 0, 0, 1, 3, line_status, 8, 0xb0, 0, count][..], &vec![1; usize::from(count)], &[0]].concat();
            port.restore(&Part { bytes: tail, ..part.clone() })
        };
        assert!(with_input(64, 0x61).is_ok());
        assert!(with_input(65, 0x61).is_err(), "more than the UART holds");
        assert!(with_input(0, 0x61).is_err(), "data ready, and none there");
        assert!(with_input(1, 0x60).is_err(), "data there, and not ready");
    }
}
