//! The thread that works on a device's queues: started with a state, stopped with it. What pause, save, restore and reset are made of.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Threads;

/// Tells a queue thread to come to an end. It is asked between requests, and its descriptor wakes the thread from its wait.
#[derive(Debug)]
pub(crate) struct Stop {
    requested: AtomicBool,
    wake: EventFd,
}

impl Stop {
    /// Whether to end now. Cheap enough to ask before each request.
    pub(crate) fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Readable from the request on.
    pub(crate) fn wake(&self) -> &EventFd {
        &self.wake
    }
}

/// A running queue thread and the state that comes back from it.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
    state: Arc<Mutex<Option<T>>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Runs `body` over `state` on a thread of its own. If there is no thread to be had, the state comes back with the error.
    pub(crate) fn start(threads: &dyn Threads, name: &str, state: T, body: fn(&mut T, &Stop)) -> Result<Self, (T, io::Error)> {
        let stop = match EventFd::new(EFD_NONBLOCK) {
            Ok(wake) => Arc::new(Stop { requested: AtomicBool::new(false), wake }),
            Err(error) => return Err((state, error)),
        };
        let slot = Arc::new(Mutex::new(Some(state)));
        let (thread_stop, thread_slot) = (Arc::clone(&stop), Arc::clone(&slot));
        // The thread takes the state out and puts it back at its end: nobody holds the lock while it works.
        let run = move || {
            let taken = lock(&thread_slot).take();
            if let Some(mut state) = taken {
                body(&mut state, &thread_stop);
                *lock(&thread_slot) = Some(state);
            }
        };
        match threads.spawn(name, Box::new(run)) {
            Ok(thread) => Ok(Self { stop, thread, state: slot }),
            Err(error) => match lock(&slot).take() {
                Some(state) => Err((state, error)),
                None => unreachable!("invariant: only a started thread takes the state"),
            },
        }
    }

    /// Waits for the request in flight to be done and takes the state back; `None` if the thread panicked.
    pub(crate) fn stop(self) -> Option<T> {
        self.stop.requested.store(true, Ordering::Release);
        if let Err(error) = self.stop.wake.write(1) {
            log::error!("wake a queue thread to stop it: {error}");
        }
        if self.thread.join().is_err() {
            log::error!("a queue thread panicked; its device is lost");
        }
        lock(&self.state).take()
    }
}

fn lock<T>(slot: &Mutex<Option<T>>) -> MutexGuard<'_, Option<T>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
