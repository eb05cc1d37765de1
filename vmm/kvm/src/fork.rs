//! Splitting the process, which the sandbox needs for its PID namespace and which is sound only while there is one thread.

use std::io;

use rustix::process::Pid;

use crate::error::{Result, process};

/// On which side of the fork the caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkOutcome {
    /// The process that was there; the other one has this id in its PID namespace.
    Parent {
        /// The new process.
        child: Pid,
    },
    /// The new process.
    Child,
}

/// Forks, if this process has one thread.
///
/// KVM descriptors other than `/dev/kvm` itself do not work in the child: machines are made after the last fork.
pub fn fork_single_threaded() -> Result<ForkOutcome> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(process("count this process's threads"))?;
    if threads(&status) != Some(1) {
        return Err(process("fork while there is more than one thread")(io::ErrorKind::ResourceBusy.into()));
    }
    // SAFETY: no other thread exists that could hold a lock or be cut off in the middle of something, so the child may go on as
    // if nothing had happened. None can appear: only this thread could make one.
    match unsafe { libc::fork() } {
        -1 => Err(process("fork")(io::Error::last_os_error())),
        pid => Ok(Pid::from_raw(pid).map_or(ForkOutcome::Child, |child| ForkOutcome::Parent { child })),
    }
}

/// The thread count in the text of `/proc/self/status` (proc(5)).
fn threads(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn threads_are_counted() {
        assert_eq!(threads("Name:\tx\nThreads:\t12\nSigQ:\t0/1\n"), Some(12));
        assert_eq!(threads("Name:\tThreads: 1\n"), None);
    }

    #[test]
    fn with_a_second_thread_there_is_no_fork() {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let error = fork_single_threaded().unwrap_err();
        assert!(matches!(error, Error::Process { .. }), "{error:?}");
        drop(end);
        assert!(other.join().unwrap().is_err());
    }
}
