//! Plain files by the role they play, so that an error names the option and not only a path.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// An open file and the name the user knows it by.
pub struct Named {
    pub path: PathBuf,
    pub file: File,
}

/// Opens a regular file for reading.
pub fn open_read(role: &str, path: &Path) -> Result<Named> {
    let file = File::open(path).with_context(|| format!("{role} {}: open", path.display()))?;
    require_file(role, path, &file)?;
    Ok(Named { path: path.to_owned(), file })
}

/// Opens or creates the ledger, for this process alone: two VMMs must never share one.
pub fn open_ledger(path: &Path) -> Result<File> {
    let options = OpenOptions::new().read(true).append(true).create(true).clone();
    let file = options.open(path).with_context(|| format!("ledger {}: open", path.display()))?;
    require_file("ledger", path, &file)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("ledger {}: another process uses it; give each VM its own", path.display()))?;
    // The name must be as durable as the records that will follow.
    if let Some(folder) = path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p }) {
        File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("ledger {}: sync its folder", path.display()))?;
    }
    Ok(file)
}

pub(super) fn require_file(role: &str, path: &Path, file: &File) -> Result<()> {
    let kind = file.metadata().with_context(|| format!("{role} {}: inspect", path.display()))?.file_type();
    if !kind.is_file() {
        bail!("{role} {}: not a regular file", path.display());
    }
    Ok(())
}
