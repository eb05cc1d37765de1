//! Slurm of Debian 13 with all it needs, unpacked and not installed: what the lab's clusters run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rebec_image_build::{
    archive::Archive,
    lock::{Lock, Locked},
};

use crate::{command::Program, paths, progress::say};

const PACKAGE: &str = "slurm-wlm";
const SUITE: &str = "trixie";
const ROLE: &str = "slurm";

/// The folder of its files; the first call downloads it.
pub fn ensure() -> Result<PathBuf> {
    fs::create_dir_all(paths::cache()).with_context(|| format!("create {}", paths::cache().display()))?;
    let _one_at_a_time = super::exclusive("provision")?;
    let mut lock = Lock::load(&paths::workspace().join("integration/lock.toml"))?;
    let home = |locked: &Locked| paths::cache().join(format!("{ROLE}-{}", locked.sha256));
    if let Some(locked) = lock.get(ROLE).filter(|locked| home(locked).join("complete").exists()) {
        return Ok(home(locked).join("root"));
    }
    let archive = Archive::open(&paths::cache(), SUITE)?;
    let newest = archive.newest(PACKAGE)?;
    let before = lock.get(ROLE).cloned();
    let is_locked = before.as_ref().is_some_and(|before| before.sha256 == newest.sha256);
    let locked =
        Locked { suite: SUITE.to_owned(), name: newest.name, version: newest.version, sha256: newest.sha256, unlocked: !is_locked };
    if locked.unlocked {
        say("provision", format_args!("{} {} is not locked: review integration/lock.toml", locked.name, locked.version));
    }
    let root = unpack(&archive, &home(&locked))?;
    if before.as_ref() != Some(&locked) {
        lock.set(ROLE, locked)?;
    }
    Ok(root)
}

fn unpack(archive: &Archive, home: &Path) -> Result<PathBuf> {
    if home.exists() {
        fs::remove_dir_all(home).with_context(|| format!("remove {}", home.display()))?;
    }
    let root = home.join("root");
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    say("provision", format_args!("downloading {PACKAGE} and what it needs"));
    for package in archive.download_with_dependencies(PACKAGE, &home.join("packages"))? {
        Program::new("dpkg-deb").arg("--extract").arg(&package).arg(&root).quiet()?;
    }
    fs::remove_dir_all(home.join("packages")).context("remove the packages of Slurm")?;
    fs::write(home.join("complete"), "").context("mark as complete")?;
    Ok(root)
}
