//! The control group that whoever starts a VMM has made for it: entered before anything is opened and before the first fork, so
//! that all of the VM counts.

use std::path::Path;

use anyhow::{Context, Result};

/// Moves this process there.
pub fn enter(group: &Path) -> Result<()> {
    // 0 is whoever writes.
    let entered = std::fs::write(group.join("cgroup.procs"), "0");
    entered.with_context(|| format!("--cgroup {}: enter it; expected the folder of a control group (version 2)", group.display()))
}
