//! How threads are made in this process: named, and from one place.

use std::{
    io,
    thread::{Builder, JoinHandle},
};

use rebec_devices::Threads;

/// Stack of a service thread; device and vCPU work is iterative and keeps its buffers on the heap.
const STACK_BYTES: usize = 256 * 1024;

/// How far work stands behind service. A vCPU may spin for as long as its guest likes, and on a busy host the thread that it waits for would
/// get no more of a processor than it (docs/notes/lan.md has the figures).
const WORK_NICE: i32 = 5;

/// Starts threads with a name and a small stack, for whoever serves devices and users.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServiceThreads;

/// The same for whoever works for the guest or for a move: devices go first.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkThreads;

impl Threads for ServiceThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body)
    }
}

impl Threads for WorkThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        let behind = move || {
            if let Err(error) = rustix::process::nice(WORK_NICE) {
                log::debug!("stand behind the service threads: {error}");
            }
            body();
        };
        ServiceThreads.spawn(name, Box::new(behind))
    }
}
