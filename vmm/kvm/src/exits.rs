//! How often a vCPU left the guest for this process, by what for. What the kernel serves alone (kicks of queues, interrupts, timers) is not among it.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a vCPU leaves the guest for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// An access to a port.
    Port,
    /// An access to device memory.
    Memory,
    /// Somebody wanted it out.
    Kick,
    /// All else: the guest cannot go on, or the kernel was disturbed.
    Other,
}

impl ExitReason {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Port, Self::Memory, Self::Kick, Self::Other];

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Memory => "memory",
            Self::Kick => "kick",
            Self::Other => "other",
        }
    }
}

/// A vCPU's counters: its thread writes, others read.
#[derive(Debug, Default)]
pub struct Exits([AtomicU64; ExitReason::ALL.len()]);

impl Exits {
    /// How often so far.
    pub fn of(&self, reason: ExitReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// Once more. Only one thread counts, so a load and a store will do, without the bus lock of an atomic addition.
    pub(crate) fn count(&self, reason: ExitReason) {
        let counter = &self.0[reason as usize];
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}
