//! Kicks: how another thread gets a vCPU out of the guest, with none lost.
//!
//! ```text
//! kicker                                  vCPU thread
//! immediate_exit = 1                      thread = gettid()
//! thread = load; if set: signal it        KVM_RUN: looks at immediate_exit, then runs until a signal is pending
//! ```
//! A kick before KVM_RUN is seen by the look, a kick after it by the signal; a kick in between is seen by both. The order of
//! the two lines on each side makes a fourth case impossible. The vCPU thread takes `immediate_exit` back only when it
//! reports the kick, and whoever kicks has written down what he wants before he kicks.

use std::sync::{
    Arc, Once, Weak,
    atomic::{AtomicI32, Ordering},
};

use libc::{c_int, c_void, siginfo_t};
use rustix::io::Errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::{
    error::{self, Result},
    run_page::RunPage,
};

/// No thread is in [`crate::Vcpu::run`].
const NOBODY: i32 = 0;

/// What a vCPU and its kickers share.
#[derive(Debug)]
pub(crate) struct KickState {
    page: RunPage,
    thread: AtomicI32,
}

/// Kicks one vCPU out of the guest. Clones kick the same one; a kick after the vCPU is gone does nothing.
#[derive(Debug, Clone)]
pub struct VcpuKicker {
    state: Weak<KickState>,
}

impl VcpuKicker {
    /// Makes the vCPU's present or next [`crate::Vcpu::run`] return [`crate::VcpuExit::Interrupted`]. Kicks that come before it
    /// returns are one.
    pub fn kick(&self) {
        let Some(state) = self.state.upgrade() else { return };
        state.page.request_exit();
        let thread = state.thread.load(Ordering::SeqCst);
        if thread != NOBODY {
            signal(thread);
        }
    }
}

impl KickState {
    /// The state of the vCPU whose run page is mapped here once more.
    pub fn new(page: RunPage) -> Self {
        Self { page, thread: AtomicI32::new(NOBODY) }
    }

    /// Takes a kick back that is about to be reported; whether there was one.
    pub fn take(&self) -> bool {
        self.page.take_exit_request()
    }

    /// Names this thread as the one to signal, until the guard is dropped.
    pub fn enter(&self) -> Entered<'_> {
        self.thread.store(rustix::thread::gettid().as_raw_pid(), Ordering::SeqCst);
        Entered(self)
    }
}

/// A thread is in `run`.
pub(crate) struct Entered<'a>(&'a KickState);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.thread.store(NOBODY, Ordering::SeqCst);
    }
}

/// A kicker of the vCPU that owns `state`.
pub(crate) fn kicker(state: &Arc<KickState>) -> VcpuKicker {
    VcpuKicker { state: Arc::downgrade(state) }
}

/// The signal that kicks. glibc keeps lower real-time signals for itself.
pub fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Makes the kick's signal harmless to the process; done once.
pub(crate) fn install_handler() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(kick_signal(), arrived));
    result.map_err(error::machine("install the handler of the kick signal"))
}

/// Nothing to do: that a signal arrived is what takes KVM_RUN out of the guest.
extern "C" fn arrived(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

fn signal(thread: i32) {
    let process = rustix::process::getpid().as_raw_pid();
    // SAFETY: signals a thread of this very process, at worst one that took over the number and for which the handler does nothing.
    let result = unsafe { libc::tgkill(process, thread, kick_signal()) };
    // The thread may have ended between the load and now: then there is nobody to take out of the guest.
    if result != 0 && std::io::Error::last_os_error().raw_os_error() != Some(Errno::SRCH.raw_os_error()) {
        log::error!("kick thread {thread}: {}", std::io::Error::last_os_error());
    }
}
