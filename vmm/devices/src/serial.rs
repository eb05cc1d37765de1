//! COM1: a 16550 over vm-superio, with a bounded queue of input and its output written by whoever runs the vCPU.
//!
//! The UART's own buffer holds 64 bytes. Input beyond that waits here, up to [`INPUT_BYTES_MAX`], and moves on when the guest has read what
//! it had; input beyond that is the caller's to keep, as [`SerialPort::push_input`] says how much it took.
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
        Self(Mutex::new(Inner { uart: Serial::new(IrqLine(irq), output), waiting: VecDeque::new() }))
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
    }
}

fn register(offset: u16) -> Option<u8> {
    (offset < REGISTERS).then_some(offset as u8)
}
