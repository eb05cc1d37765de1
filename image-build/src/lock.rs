//! A lock file: which Debian packages are used, by role, name, version and digest.
//!
//! `image-build/lock.toml` is the image's, `integration/lock.toml` the lab's. When the archive no longer has a locked version,
//! what was resolved instead is marked as not locked, until someone reviews and commits the file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// One locked package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// Debian release.
    pub suite: String,
    /// Package name.
    pub name: String,
    /// Package version.
    pub version: String,
    /// Digest of the package file, hexadecimal.
    pub sha256: String,
    /// Set when the version was resolved on this machine and has not been reviewed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlocked: bool,
}

/// The whole file, by role of the package.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    packages: BTreeMap<String, Locked>,
}

const HEADER: &str = "# Debian packages, by role. Written by a program; an entry with `unlocked = true` was resolved because the archive no\n\
                      # longer had the locked version: check it, remove that line and commit.\n\n";

impl Lock {
    /// Reads the file; none yet is an empty one.
    pub fn load(path: &Path) -> Result<Self> {
        let packages = match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{} is not a lock file; restore it from git", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), packages })
    }

    /// What is locked for a role.
    pub fn get(&self, role: &str) -> Option<&Locked> {
        self.packages.get(role)
    }

    /// Replaces a role's entry and writes the file.
    pub fn set(&mut self, role: &str, locked: Locked) -> Result<()> {
        self.packages.insert(role.to_owned(), locked);
        let text = toml::to_string(&self.packages).context("write the lock file")?;
        fs::write(&self.path, format!("{HEADER}{text}")).with_context(|| format!("write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_survives_a_round_trip_and_refuses_what_it_does_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock.toml");
        let text = "[lab]\nsuite = \"trixie\"\nname = \"linux\"\nversion = \"1\"\nsha256 = \"00\"\n";
        fs::write(&path, text).unwrap();
        let mut lock = Lock::load(&path).unwrap();
        let locked = lock.get("lab").unwrap().clone();
        assert_eq!(locked.version, "1");
        lock.set("lab", locked).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{HEADER}{text}"));
        fs::write(&path, "[lab]\nsuite = \"trixie\"\ncolour = \"blue\"\n").unwrap();
        assert!(Lock::load(&path).unwrap_err().to_string().contains("restore it from git"));
        assert!(Lock::load(&folder.path().join("none")).unwrap().get("lab").is_none());
    }
}
