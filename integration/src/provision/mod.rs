//! What a bare Debian machine lacks: packages, and the kernels that run in the lab.
//!
//! ```text
//! packages   Debian packages of this machine, each with its reason -> apt-get, or the one command to type
//! emulator   a QEMU whose emulated SVM can be relied on
//! promtool   what reads metrics, for the test that has some
//! slurm      Debian 13's, unpacked
//! kernel     package -> bzImage, vmlinux ELF, modules with modules.dep, in the cache under the package's digest
//! ```
//! Packages, archive and lock file (`integration/lock.toml`) are those of `rebec_image_build`. No mirror is named anywhere: what the machine itself is configured to use is used.

pub mod emulator;
pub mod kernel;
pub mod packages;
pub mod promtool;
pub mod slurm;

use anyhow::{Context as _, Result};
use rebec_image_build::lock::Lock;
use rustix::fs::FlockOperation;

pub use emulator::Emulator;
pub use kernel::{Kernel, KernelRole};

use crate::paths;

/// Everything the lab needs from outside, in place.
pub struct Provisions {
    /// What runs lab machines.
    pub emulator: Emulator,
    /// The kernel of lab machines: Debian 13, all drivers.
    pub lab: Kernel,
    /// The kernel of guests: Debian 13, for clouds.
    pub guest: Kernel,
    /// The older kernel of guests: Debian 12, for clouds.
    pub guest_12: Kernel,
}

/// Installs packages and brings the kernels. A second run with everything in place takes well under a second.
pub fn provision() -> Result<Provisions> {
    packages::ensure()?;
    std::fs::create_dir_all(paths::cache()).with_context(|| format!("create {}", paths::cache().display()))?;
    let _one_at_a_time = exclusive("provision")?;
    let mut lock = Lock::load(&paths::workspace().join("integration/lock.toml"))?;
    let emulator = emulator::ensure(&mut lock)?;
    let mut kernels = Vec::new();
    for role in KernelRole::ALL {
        kernels.push(kernel::ensure(role, &mut lock)?);
    }
    let [lab, guest, guest_12]: [Kernel; 3] =
        kernels.try_into().map_err(|_| anyhow::anyhow!("invariant: one kernel for each of the three roles"))?;
    Ok(Provisions { emulator, lab, guest, guest_12 })
}

/// Holds a named lock file of the lab until dropped, so that two runs do not make the same thing at once.
pub fn exclusive(name: &str) -> Result<std::fs::File> {
    let path = paths::lab().join(format!("{name}.lock"));
    std::fs::create_dir_all(paths::lab()).with_context(|| format!("create {}", paths::lab().display()))?;
    let file = std::fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        crate::progress::say(name, "waiting for another run of the lab");
        rustix::fs::flock(&file, FlockOperation::LockExclusive).with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}
