//! Who relies on where a disk's bytes lie in its files, and who may change that.
//!
//! A queue that has requests on their way to the files holds a lease on what the image's tables say. A discard frees clusters, which are then given to
//! other bytes: it waits until nobody holds one, and meanwhile nobody gets one. Whoever holds a lease asks now and then whether somebody waits, begins
//! nothing new if so, and gives it back when what is under way has ended; it never waits for another lease, so nobody waits in a circle.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Who holds what.
#[derive(Debug, Default)]
pub(super) struct Leases {
    state: Mutex<State>,
    changed: Condvar,
    /// Somebody waits for the last lease to be given back, or is at work. Read without the lock.
    is_wanted: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    leases: usize,
    is_changing: bool,
}

impl Leases {
    /// A lease, when nobody changes anything.
    pub(super) fn take(self: &Arc<Self>) -> Lease {
        let mut state = self.lock();
        while state.is_changing {
            state = self.wait(state);
        }
        state.leases += 1;
        Lease(Arc::clone(self))
    }

    /// Runs `change` when there is no lease.
    pub(super) fn alone<T>(&self, change: impl FnOnce() -> T) -> T {
        let mut state = self.lock();
        while state.is_changing {
            state = self.wait(state);
        }
        state.is_changing = true;
        self.is_wanted.store(true, Ordering::Release);
        while state.leases > 0 {
            state = self.wait(state);
        }
        drop(state);
        // Given back whatever happens in between.
        let _alone = Alone(self);
        change()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the image's tables say of a disk stays so.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Leases>);

impl Lease {
    /// Whether somebody waits for it to be given back.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.is_wanted.load(Ordering::Acquire)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.lock().leases -= 1;
        self.0.changed.notify_all();
    }
}

struct Alone<'a>(&'a Leases);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_changing = false;
        self.0.is_wanted.store(false, Ordering::Release);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, thread, time::Duration};

    use super::*;

    #[test]
    fn a_change_waits_for_leases_and_leases_for_a_change() {
        let leases = Arc::new(Leases::default());
        let (one, two) = (leases.take(), leases.take());
        assert!(!one.is_wanted());
        let (says, heard) = channel();
        let (go, wait) = channel::<()>();
        thread::scope(|scope| {
            let (leases, says) = (&leases, &says);
            scope.spawn(move || {
                leases.alone(|| {
                    says.send("begun").unwrap();
                    wait.recv().unwrap();
                });
            });
            while !one.is_wanted() {
                thread::yield_now();
            }
            drop(one);
            assert!(heard.recv_timeout(Duration::from_millis(50)).is_err(), "one is left");
            drop(two);
            assert_eq!(heard.recv().unwrap(), "begun");
            let says = says.clone();
            let third = scope.spawn(move || {
                let lease = leases.take();
                says.send("lease").unwrap();
                lease
            });
            assert!(heard.recv_timeout(Duration::from_millis(50)).is_err(), "a change is under way");
            go.send(()).unwrap();
            assert_eq!(heard.recv().unwrap(), "lease");
            assert!(!third.join().unwrap().is_wanted());
        });
    }
}
