//! Work that waits for a disk, in tasks: a disk that takes seconds holds up whoever waits for it and nobody else. Heartbeats and leases are tasks
//! too, and the runtime has two workers.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does what may take as long as a disk takes; other tasks of the worker go on elsewhere meanwhile.
pub fn may<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
