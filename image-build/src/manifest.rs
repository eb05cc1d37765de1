//! `manifest.json`: what an image is made of, so that two images can be compared and one can be traced.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::lock::Locked;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of Rebec.
    pub version: String,
    /// Whether every package is the one that `image-build/lock.toml` names.
    pub state: LockState,
    /// `uname -r` of the kernel.
    pub kernel: String,
    /// Debian packages by role.
    pub packages: BTreeMap<String, Locked>,
    /// SHA-256 of the programs that were given.
    pub programs: BTreeMap<String, String>,
    /// The files that came out.
    pub files: BTreeMap<String, File>,
}

/// One file that came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: String,
}

/// Whether an image is made of reviewed packages alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockState {
    /// It is.
    Locked,
    /// At least one package was resolved anew.
    Unlocked,
}

impl LockState {
    /// What the packages amount to.
    pub fn of<'a>(packages: impl IntoIterator<Item = &'a Locked>) -> Self {
        if packages.into_iter().any(|package| package.unlocked) { Self::Unlocked } else { Self::Locked }
    }
}

impl Manifest {
    /// Writes it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("write the manifest")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_package_resolved_anew_unlocks_the_image() {
        let package =
            Locked { suite: "s".to_owned(), name: "n".to_owned(), version: "1".to_owned(), sha256: "0".to_owned(), unlocked: false };
        assert_eq!(LockState::of([&package]), LockState::Locked);
        assert_eq!(LockState::of([&package, &Locked { unlocked: true, ..package.clone() }]), LockState::Unlocked);
        assert_eq!(serde_json::to_string(&LockState::Unlocked).unwrap(), "\"unlocked\"");
    }
}
