//! MSI-X: a table of messages that the driver writes, and which of them stands for which queue (PCI 3.0 §6.8.2, virtio 1.3 §4.1.5.1.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    PciHost, copy,
    registers::{set_high, set_low},
};

/// A queue or the configuration that interrupts nobody.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// Bytes of a vector in the table.
const ENTRY_BYTES: u64 = 16;
const CONTROL_MASK: u32 = 1;

/// Why the driver is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Buffers of a queue were used.
    Used(u16),
    /// The configuration changed.
    Config,
}

/// One vector: a message, and whether it may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vector {
    pub(super) address: u64,
    pub(super) data: u32,
    pub(super) masked: bool,
    pub(super) pending: bool,
}

/// What the driver has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) enabled: bool,
    /// All vectors are masked.
    pub(super) masked: bool,
    pub(super) vectors: Vec<Vector>,
    /// The vector of configuration changes.
    pub(super) config: u16,
    /// The vector of each queue.
    pub(super) queues: Vec<u16>,
}

/// The table, shared by the driver's vCPUs and the queue threads. The lock is not held while a message is sent.
#[derive(Debug)]
pub(super) struct Msix {
    host: Arc<dyn PciHost>,
    state: Mutex<State>,
}

impl State {
    pub(super) fn new(queues: usize) -> Self {
        let reset = Vector { address: 0, data: 0, masked: true, pending: false };
        Self { enabled: false, masked: false, vectors: vec![reset; queues + 1], config: NO_VECTOR, queues: vec![NO_VECTOR; queues] }
    }

    /// The vector of a queue, or of the configuration.
    pub(super) fn vector(&self, cause: Cause) -> u16 {
        match cause {
            Cause::Used(queue) => self.queues.get(usize::from(queue)).copied().unwrap_or(NO_VECTOR),
            Cause::Config => self.config,
        }
    }

    /// Takes the messages that may be sent now and have not been.
    fn take_due(&mut self) -> Vec<(u64, u32)> {
        let sends = self.enabled && !self.masked;
        let due = self.vectors.iter_mut().filter(|vector| sends && !vector.masked && vector.pending);
        due.map(|vector| {
            vector.pending = false;
            (vector.address, vector.data)
        })
        .collect()
    }
}

impl Msix {
    pub(super) fn new(host: Arc<dyn PciHost>, queues: usize) -> Self {
        Self { host, state: Mutex::new(State::new(queues)) }
    }

    /// Interrupts the driver for a reason; false if it has not switched MSI-X on.
    pub(super) fn raise(&self, cause: Cause) -> bool {
        let mut state = self.state();
        if !state.enabled {
            return false;
        }
        let vector = usize::from(state.vector(cause));
        let sends = !state.masked;
        let Some(vector) = state.vectors.get_mut(vector) else { return true };
        if sends && !vector.masked {
            let (address, data) = (vector.address, vector.data);
            drop(state);
            self.host.interrupt(address, data);
        } else {
            vector.pending = true;
        }
        true
    }

    /// Changes what the driver has set, and sends what waited for that.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let due = state.take_due();
        drop(state);
        due.into_iter().for_each(|(address, data)| self.host.interrupt(address, data));
    }

    /// Gives a queue or the configuration a vector; one that is not there reads back as none (§4.1.5.1.2.2).
    pub(super) fn set_vector(&self, cause: Cause, vector: u16) {
        let mut state = self.state();
        let vector = if usize::from(vector) < state.vectors.len() { vector } else { NO_VECTOR };
        match cause {
            Cause::Used(queue) => {
                if let Some(queue) = state.queues.get_mut(usize::from(queue)) {
                    *queue = vector;
                }
            }
            Cause::Config => state.config = vector,
        }
    }

    /// A reset takes the vectors from queues and configuration; the table stays (§4.1.5.1.2.2).
    pub(super) fn reset(&self) {
        let mut state = self.state();
        state.config = NO_VECTOR;
        state.queues.fill(NO_VECTOR);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the table: four or eight aligned bytes.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        let Some(vector) = state.vectors.get((offset / ENTRY_BYTES) as usize) else { return };
        let message = u128::from(vector.address) | u128::from(vector.data) << 64 | u128::from(u32::from(vector.masked)) << 96;
        copy(data, &message.to_le_bytes()[(offset % ENTRY_BYTES) as usize..]);
    }

    /// Writes the table: four or eight aligned bytes.
    pub(super) fn write_table(&self, offset: u64, data: &[u8]) {
        for (at, word) in (offset..).step_by(4).zip(data.as_chunks().0) {
            let word = u32::from_le_bytes(*word);
            self.change(|state| {
                let Some(vector) = state.vectors.get_mut((at / ENTRY_BYTES) as usize) else { return };
                match at % ENTRY_BYTES {
                    0 => set_low(&mut vector.address, word),
                    4 => set_high(&mut vector.address, word),
                    8 => vector.data = word,
                    _ => vector.masked = word & CONTROL_MASK != 0,
                }
            });
        }
    }

    /// Reads the bits of pending vectors.
    pub(super) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (at, to) in (offset..).zip(data) {
            let vectors = state.vectors.iter().skip(at as usize * 8).take(8);
            *to = vectors.enumerate().fold(0, |byte, (bit, vector)| byte | u8::from(vector.pending) << bit);
        }
    }
}
