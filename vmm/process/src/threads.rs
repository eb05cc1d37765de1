//! How threads are made in this process: named, and from one place, where each takes the list of system calls of its role.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{Builder, JoinHandle},
};

use rebec_devices::Threads;

use crate::{calls::Role, lists};

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

/// Service threads for who may not make any. A driver has its queues started by writing to a register, which happens on a vCPU's thread:
/// that thread asks here, where the guest never runs.
#[derive(Debug)]
pub struct RequestedThreads {
    wanted: SyncSender<Wanted>,
}

struct Wanted {
    name: String,
    body: Box<dyn FnOnce() + Send>,
    made: SyncSender<io::Result<JoinHandle<()>>>,
}

impl Threads for ServiceThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        spawn(name, || {}, body)
    }
}

impl Threads for WorkThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        let stand_behind = || {
            // Of this thread alone, and no further than that, whoever starts it.
            if let Err(error) = rustix::process::setpriority_process(None, WORK_NICE) {
                log::debug!("stand behind the service threads: {error}");
            }
        };
        spawn(name, stand_behind, body)
    }
}

/// `prepare` does what the thread's own list no longer allows.
fn spawn(name: &str, prepare: fn(), body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
    let role = Role::of(name);
    let run = move || {
        prepare();
        if let Some(role) = role {
            lists::narrow(role);
        }
        body();
    };
    Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
}

impl RequestedThreads {
    /// Starts the thread that makes them; it ends with the last who may ask.
    pub fn start() -> io::Result<Self> {
        let (wanted, requests) = sync_channel(0);
        ServiceThreads.spawn("threads", Box::new(move || make(&requests)))?;
        Ok(Self { wanted })
    }
}

impl Threads for RequestedThreads {
    fn spawn(&self, name: &str, body: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        let (made, answer) = sync_channel(1);
        let gone = || io::Error::other("the thread that makes threads has ended");
        self.wanted.send(Wanted { name: name.to_owned(), body, made }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

fn make(requests: &Receiver<Wanted>) {
    while let Ok(Wanted { name, body, made }) = requests.recv() {
        // Whoever asked waits for the answer.
        made.send(ServiceThreads.spawn(&name, body)).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::thread::current;

    use super::*;

    #[test]
    fn a_requested_thread_is_like_one_that_was_made_directly() {
        let (said, heard) = sync_channel(1);
        let threads = RequestedThreads::start().unwrap();
        let body = move || said.send(current().name().map(str::to_owned)).unwrap();
        threads.spawn("virtio-rng", Box::new(body)).unwrap().join().unwrap();
        assert_eq!(heard.recv().unwrap().as_deref(), Some("virtio-rng"));
    }
}
