//! The sandbox: from here on this process opens no path, connects no socket and resolves no name.
//!
//! ```text
//! parent (as it was started)                      child = the VMM
//!   unshare: next child begins a pid namespace
//!   fork -------------------------------------->   unshare: user, mount, network, IPC and UTS namespaces
//!   write its uid and gid map  <---- UNSHARED ---
//!                              ----- MAPPED ---->  become that uid and gid
//!   wait; SIGTERM becomes POWER_OFF,               pivot into an empty read-only root
//!         SIGINT and SIGHUP STOP --------------->  no capabilities, no new privileges, limits, Landlock denies all,
//!   remove sockets, restore the terminal           the list of system calls; killed by the kernel if the parent dies
//!   exit as the child did                          return Sealed; each thread that begins narrows itself further
//! ```
//!
//! The parent keeps its rights and does nothing but wait. Only descriptors reach through: what was opened before, and what
//! clients pass over the control socket. There is no way to run unsealed: a layer that this kernel lacks is an error that
//! names it. `docs/notes/sandbox.md` says what each layer stops.

mod ids;
mod layers;
mod parent;
pub mod self_test;

use std::{
    io::{self, Read},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rebec_kvm::ForkOutcome;
use rustix::time::{ClockId, clock_gettime};

use crate::lists::Lists;

/// Messages between parent and child, one byte each.
const UNSHARED: u8 = b'u';
const MAPPED: u8 = b'm';
const POWER_OFF: u8 = b'p';
const STOP: u8 = b's';

/// What the unsealed parent does for the sealed child.
#[derive(Default)]
pub struct SealOptions {
    /// Run when the child has ended, however it ended: remove sockets, restore the terminal.
    pub at_end: Vec<Box<dyn FnOnce()>>,
}

/// Proof that this process is sealed.
pub struct Sealed {
    /// Tells when this process shall end.
    pub stop: StopSignal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM: that the guest be asked first.
    Orderly,
    /// SIGINT and SIGHUP.
    Now,
}

/// Hears SIGTERM, SIGINT and SIGHUP, which arrive at the parent.
pub struct StopSignal(UnixStream);

impl StopSignal {
    /// How the process was told to end, each time; waits until it is.
    pub fn read(&mut self) -> Ending {
        let mut message = [0];
        match self.0.read(&mut message) {
            // The parent is gone and the kernel is about to kill this process. An orderly end would race with that.
            Ok(0) => std::process::exit(1),
            Ok(_) if message == [POWER_OFF] => Ending::Orderly,
            Ok(_) => Ending::Now,
            Err(error) => {
                log::warn!("stop signal: {error}");
                Ending::Now
            }
        }
    }
}

impl AsRawFd for StopSignal {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Which layer could not be built, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Before anything was done.
    #[error("sandbox: take over signals")]
    Signals(#[source] nix::Error),
    /// Parent and child could not be told apart or reach each other.
    #[error("sandbox: start the sealed process")]
    Start(#[source] io::Error),
    /// User namespaces are off, or denied to this user.
    #[error(
        "sandbox: create {what}; start as root, or allow unprivileged user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    )]
    Namespaces {
        /// Which ones.
        what: &'static str,
        /// What the kernel said.
        source: nix::Error,
    },
    /// The sealed process could not get a uid and gid of its own.
    #[error("sandbox: {what}")]
    Ids {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The empty root.
    #[error("sandbox: empty root: {what}; needs Linux 5.2 with tmpfs")]
    Root {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
    /// Capabilities, limits and other properties of the process.
    #[error("sandbox: {what}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
    /// Landlock is not in the kernel or not switched on.
    #[error("sandbox: Landlock; needs Linux 5.13 with `landlock` in its lsm= list (see /sys/kernel/security/lsm)")]
    Landlock(#[from] landlock::RulesetError),
    /// A list of system calls that cannot be written as the kernel wants it.
    #[error("sandbox: compile the lists of system calls")]
    Lists(#[source] seccompiler::BackendError),
    /// The kernel has no seccomp or does not take a list.
    #[error("sandbox: restrict system calls; needs a kernel with CONFIG_SECCOMP_FILTER")]
    Calls(#[source] seccompiler::Error),
    /// The parent ended while the child sealed itself.
    #[error("sandbox: the parent process is gone")]
    Orphaned,
}

/// Seals this process. Returns only in the sealed child; the parent waits for it and exits as it did.
///
/// Must be called while the process has one thread. On an error nothing may run: some layers may already be in place.
pub fn seal(options: SealOptions) -> Result<Sealed, SealError> {
    seal_making(options, || ()).map(|(sealed, ())| sealed)
}

/// The same, and makes in the child what needs no path and no right and is forbidden afterwards.
pub fn seal_making<T>(options: SealOptions, make: impl FnOnce() -> T) -> Result<(Sealed, T), SealError> {
    let (sealed, lists) = seal_but_for_calls(options)?;
    let made = make();
    lists.enforce().map_err(SealError::Calls)?;
    Ok((sealed, made))
}

/// Every layer but the last, and what is left to do. The self-test shows that they hold by themselves.
fn seal_but_for_calls(options: SealOptions) -> Result<(Sealed, Lists), SealError> {
    rebec_kvm::close_inherited().map_err(|error| SealError::Start(io::Error::other(error)))?;
    let lists = Lists::compile().map_err(SealError::Lists)?;
    // Finds the kernel's page for clocks, by a call and on older kernels by a file that are out of reach later.
    _ = clock_gettime(ClockId::Boottime);
    let own = ids::choose().map_err(|source| SealError::Ids { what: "read /proc/self/uid_map", source })?;
    let watched = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    let before = watched.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(SealError::Signals)?;
    ids::begin_pid_namespace(&own)?;
    let (parents, childs) = UnixStream::pair().map_err(SealError::Start)?;
    match rebec_kvm::fork_single_threaded().map_err(|error| SealError::Start(io::Error::other(error)))? {
        ForkOutcome::Parent { child } => {
            drop(childs);
            match parent::wait(child, parents, &watched, own, options.at_end)? {}
        }
        ForkOutcome::Child => {
            drop(parents);
            before.thread_set_mask().map_err(SealError::Signals)?;
            let stop = layers::apply(childs, own)?;
            Ok((Sealed { stop: StopSignal(stop) }, lists))
        }
    }
}
