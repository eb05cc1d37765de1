//! One locked package: from the cache, from the archive, or resolved anew.
//!
//! ```text
//! cache/<sha256>.deb   the package as downloaded, verified against the archive's signed lists
//! cache/<sha256>/      what it unpacks to, with a file `complete` when that is whole
//! ```
//! Whether a new resolution goes into the lock file is the caller's decision.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    archive::{Archive, Candidate, sha256},
    command::Program,
    lock::Locked,
    progress::say,
};

/// What a role asks for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Debian release.
    pub suite: &'a str,
    /// The part of the archive.
    pub component: &'a str,
    /// Package name.
    pub package: &'a str,
    /// Take the package it depends on whose name starts so: metapackages always depend on the newest of their kind.
    pub follow: Option<&'a str>,
}

/// Where packages are kept.
#[derive(Debug, Clone)]
pub struct Store {
    cache: PathBuf,
}

impl Store {
    /// A store below a folder, made if need be.
    pub fn open(cache: &Path) -> Result<Self> {
        fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
        Ok(Self { cache: cache.to_owned() })
    }

    /// The package of a role: as locked if the cache or the archive has it, else the newest, marked as not locked.
    pub fn ensure(&self, wanted: Wanted<'_>, locked: Option<&Locked>) -> Result<Locked> {
        match locked {
            Some(locked) if self.file(locked).exists() || self.fetch_locked(wanted.component, locked)? => Ok(locked.clone()),
            before => self.resolve(wanted, before),
        }
    }

    /// The newest package of a role, whatever is locked.
    pub fn resolve(&self, wanted: Wanted<'_>, before: Option<&Locked>) -> Result<Locked> {
        let archive = Archive::component(&self.cache, wanted.suite, wanted.component)?;
        let mut candidate = archive.newest(wanted.package)?;
        if let Some(prefix) = wanted.follow {
            let name = candidate.depends.split([',', ' ']).find(|word| word.starts_with(prefix));
            let name = name.with_context(|| format!("package {} {} depends on no {prefix}*", candidate.name, candidate.version))?;
            candidate = archive.newest(name)?;
        }
        let mut locked = Locked {
            suite: wanted.suite.to_owned(),
            name: candidate.name.clone(),
            version: candidate.version.clone(),
            sha256: candidate.sha256.clone(),
            unlocked: false,
        };
        match before {
            Some(before) if before.sha256 == locked.sha256 => {}
            Some(before) => {
                let (name, version, sha256) = (&locked.name, &locked.version, &locked.sha256);
                say("packages", format_args!("{} {} is replaced by {name} {version} (sha256 {sha256})", before.name, before.version));
                locked.unlocked = true;
            }
            None => locked.unlocked = true,
        }
        if !self.file(&locked).exists() {
            self.fetch(&archive, &candidate, &locked)?;
        }
        Ok(locked)
    }

    /// Unpacks a package, lets `finish` complete the tree, and returns its folder; a second call finds it done.
    pub fn unpack(&self, locked: &Locked, finish: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let home = self.cache.join(&locked.sha256);
        if home.join("complete").exists() {
            return Ok(home);
        }
        say("packages", format_args!("unpacking {} {}", locked.name, locked.version));
        let package = self.file(locked);
        if sha256(&package)? != locked.sha256 {
            fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
            bail!("{} had other bytes than its digest says and was removed; run this again", package.display());
        }
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
        }
        Program::new("dpkg-deb").arg("--extract").arg(&package).arg(&home).quiet()?;
        finish(&home)?;
        fs::write(home.join("complete"), "").context("mark as complete")?;
        Ok(home)
    }

    fn file(&self, locked: &Locked) -> PathBuf {
        self.cache.join(format!("{}.deb", locked.sha256))
    }

    /// Downloads a locked package; false if the archive no longer has exactly that file.
    fn fetch_locked(&self, component: &str, locked: &Locked) -> Result<bool> {
        let archive = Archive::component(&self.cache, &locked.suite, component)?;
        let mut candidate = archive.exact(&locked.name, &locked.version)?;
        if candidate.is_none() {
            archive.refresh()?;
            candidate = archive.exact(&locked.name, &locked.version)?;
        }
        match candidate {
            Some(candidate) if candidate.sha256 == locked.sha256 => self.fetch(&archive, &candidate, locked).map(|()| true),
            _ => Ok(false),
        }
    }

    fn fetch(&self, archive: &Archive, candidate: &Candidate, locked: &Locked) -> Result<()> {
        say("packages", format_args!("downloading {} {}", candidate.name, candidate.version));
        let file = archive.download(candidate)?;
        fs::rename(&file, self.file(locked)).with_context(|| format!("keep {}", file.display()))
    }
}
