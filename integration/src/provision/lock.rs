//! `integration/lock.toml`: which kernel packages the lab uses, by name, version and digest.
//!
//! The file is read and, when the archive no longer has a locked version, written anew: the difference is printed and the
//! run goes on with what was resolved, marked as not locked, until someone commits the file.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::paths;

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

/// The whole file, by role of the package in the lab.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Lock {
    #[serde(flatten)]
    packages: BTreeMap<String, Locked>,
}

const HEADER: &str = "# Kernel packages of the lab, by role. Written by `cargo lab`; an entry with `unlocked = true` was resolved because the\n\
                      # archive no longer had the locked version: check it, remove that line and commit.\n\n";

impl Lock {
    /// Reads the file; none yet is an empty one.
    pub fn load() -> Result<Self> {
        let path = Self::path();
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{} is not a lock file; restore it from git", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// What is locked for a role.
    pub fn get(&self, role: &str) -> Option<&Locked> {
        self.packages.get(role)
    }

    /// Replaces a role's entry and writes the file.
    pub fn set(&mut self, role: &str, locked: Locked) -> Result<()> {
        self.packages.insert(role.to_owned(), locked);
        let text = toml::to_string(self).context("write the lock file")?;
        fs::write(Self::path(), format!("{HEADER}{text}")).with_context(|| format!("write {}", Self::path().display()))
    }

    fn path() -> PathBuf {
        paths::workspace().join("integration/lock.toml")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_survives_a_round_trip_and_refuses_what_it_does_not_know() {
        let text = "[lab]\nsuite = \"trixie\"\nname = \"linux\"\nversion = \"1\"\nsha256 = \"00\"\n";
        let lock: Lock = toml::from_str(text).unwrap();
        assert_eq!(lock.get("lab").unwrap().version, "1");
        assert_eq!(toml::to_string(&lock).unwrap(), text);
        assert!(toml::from_str::<Lock>("[lab]\nsuite = \"trixie\"\ncolour = \"blue\"\n").is_err());
    }
}
