//! What one machine does: parts on its disk, VMM processes and their sockets, connections into guests, limits. It knows no pool: whom to ask
//! for a part, what a VM is and whether it may run are told to it. How a VM comes to be:
//!
//! ```text
//! depot (parts by digest) -> derived (made of them once) -> kept, disks, sockets, ledger -> handover -> process (a VMM, in its limits)
//!                                                                              control, console, forward: what is said to it later
//! ```
//! When, and what comes after, is decided by [`life`], which does nothing itself.

pub mod console;
pub mod control;
pub mod cpu;
pub mod depot;
pub mod disks;
pub mod durable;
pub mod facts;
pub mod folders;
pub mod forward;
pub mod growth;
pub mod handover;
pub mod host;
pub mod kept;
pub mod ledger;
pub mod life;
pub mod limits;
pub mod meters;
pub mod process;
pub mod release;
pub mod reserve;
pub mod said;
pub mod seed;
pub mod sockets;
pub mod traffic;
pub mod underlay;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use depot::derived;
pub use host::Host;
use rebec_api::{ApiError, ErrorCode};

/// An error of this machine, as the API says it.
pub fn failed(error: &anyhow::Error) -> ApiError {
    match error.downcast_ref::<ApiError>() {
        Some(api) => api.clone(),
        None => ApiError::new(ErrorCode::Failed, format!("{error:#}")),
    }
}

/// A lock whose holder cannot leave it in a half-changed state.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
