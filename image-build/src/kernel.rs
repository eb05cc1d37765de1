//! A Debian kernel package, unpacked to the files a machine boots: `vmlinuz` as shipped and `lib/modules/<release>` with
//! `modules.dep`, which the package itself does not ship.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{command::Program, lock::Locked, package::Store};

/// A kernel, unpacked.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `uname -r` of it.
    pub release: String,
    /// The folder it was unpacked to.
    pub home: PathBuf,
    /// The kernel as shipped.
    pub bzimage: PathBuf,
    /// The folder with `modules.dep`.
    pub modules: PathBuf,
}

/// Unpacks a kernel, once.
pub fn unpack(store: &Store, locked: &Locked) -> Result<Kernel> {
    let home = store.unpack(locked, finish).with_context(|| format!("unpack {} {}", locked.name, locked.version))?;
    let release = release_in(&home)?;
    let modules = home.join("lib/modules").join(&release);
    Ok(Kernel { bzimage: home.join("vmlinuz"), modules, release, home })
}

fn finish(home: &Path) -> Result<()> {
    // Debian 13 ships modules below /usr/lib, Debian 12 below /lib.
    let merged = home.join("usr/lib/modules");
    if merged.exists() {
        fs::create_dir_all(home.join("lib")).context("create lib")?;
        fs::rename(merged, home.join("lib/modules")).context("move modules to lib")?;
    }
    let release = release_in(home)?;
    fs::rename(home.join("boot").join(format!("vmlinuz-{release}")), home.join("vmlinuz")).context("find the kernel")?;
    depmod(home, &release)
}

/// Writes `modules.dep`, `modules.alias` and their companions for the modules below `root/lib/modules/release`.
pub fn depmod(root: &Path, release: &str) -> Result<()> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    Program::new("depmod").arg("-b").arg(root).arg(release).env("PATH", path).quiet()
}

fn release_in(home: &Path) -> Result<String> {
    let folder = home.join("lib/modules");
    let mut entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let entry = entries.next().context("the package holds no modules")?.with_context(|| format!("read {}", folder.display()))?;
    Ok(entry.file_name().to_string_lossy().into_owned())
}
