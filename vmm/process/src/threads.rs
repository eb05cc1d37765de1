//! How threads are made in this process: named, and from one place.

use std::{
    io,
    thread::{Builder, JoinHandle},
};

use rebec_devices::Threads;

/// Stack of a service thread; device and vCPU work is iterative and keeps its buffers on the heap.
const STACK_BYTES: usize = 256 * 1024;

/// Starts threads with a name and a small stack.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServiceThreads;

impl Threads for ServiceThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body)
    }
}
