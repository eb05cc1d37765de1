//! Device models over guest memory: what a guest's drivers talk to. No KVM, no sockets, no paths.
//!
//! A model gets guest memory, event descriptors, opened files and a way to make threads, and knows nothing else of the machine. Layer 3
//! routes a vCPU's port and memory accesses to [`virtio::PciTransport`], [`serial::SerialPort`] and [`power::PowerPorts`], and wires kicks and
//! interrupts to KVM.
//!
//! Bytes from a guest never panic, never allocate without a limit and never loop without one: a broken ring ends in DEVICE_NEEDS_RESET
//! (virtio 1.3 §2.1.2), a broken request in a status byte.

pub mod virtio;

pub mod disk;
pub mod room;

pub mod balloon;
pub mod block;
pub mod limit;
pub mod mem;
pub mod net;
pub mod rng;

pub mod power;
pub mod serial;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod testing;

use std::{io, thread::JoinHandle};

pub use virtio::PciTransport;

/// A guest's memory with the dirty bitmap that device writes are recorded in; the same type as `rebec_kvm::GuestRam`.
pub type GuestRam = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// Makes the threads that devices run on. The program supplies it, so that a thread gets its name and its system call list there.
pub trait Threads: Send + Sync {
    /// Starts a thread. `name` is at most 15 bytes, as the kernel keeps no more.
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>;
}

/// Threads of the standard library, without more: for tests and programs that do not seal themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainThreads;

impl Threads for PlainThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name.to_owned()).spawn(body)
    }
}
