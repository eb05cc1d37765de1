//! Plain files by the role they play, so that an error names the option and not only a path.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rebec_vmm_api::Handle;
use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, flock};

use super::handed::{self, Handed};

/// Roles of files that may be block devices.
pub(super) const DISK: &str = "disk";
pub(super) const BACKING: &str = "backing image";

/// An open file and the name the user knows it by.
pub struct Named {
    pub path: PathBuf,
    pub file: File,
}

/// Opens a file for reading.
pub fn open_read(role: &str, handle: &Handle, handed: &mut Handed) -> Result<Named> {
    open(role, handle, handed, OpenOptions::new().read(true))
}

/// Opens a file, or takes the one that was handed over. What `options` say beyond reading counts for paths.
pub fn open(role: &str, handle: &Handle, handed: &mut Handed, options: &OpenOptions) -> Result<Named> {
    let named = match handle {
        Handle::Path(path) => {
            let file = options.open(path).map_err(named_if_busy).with_context(|| format!("{role} {handle}: open"))?;
            Named { path: path.clone(), file }
        }
        Handle::Descriptor(number) => {
            let file = File::from(handed.take(*number).with_context(|| format!("{role} {handle}"))?);
            Named { path: handed::name(&file, *number), file }
        }
    };
    require_file(role, &named.path, &named.file)?;
    Ok(named)
}

/// A device that is in use says no more than that.
fn named_if_busy(error: io::Error) -> io::Error {
    let remedy = "the device is mounted on this host, or part of another one; unmount it first";
    if error.kind() == io::ErrorKind::ResourceBusy { io::Error::new(error.kind(), remedy) } else { error }
}

/// Opens or creates the ledger, for this process alone: two VMMs must never share one.
pub fn open_ledger(handle: &Handle, handed: &mut Handed) -> Result<File> {
    let Named { path, file } = open("ledger", handle, handed, OpenOptions::new().read(true).append(true).create(true))?;
    let path = path.display();
    require_writable("ledger", &path.to_string(), &file)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("ledger {path}: another process uses it; give each VM its own"))?;
    // The name must be as durable as the records that will follow; of one that was handed over, whoever made it saw to that.
    if let Handle::Path(path) = handle {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("ledger {}: sync its folder", path.display()))?;
    }
    Ok(file)
}

/// A disk may be a device too.
pub(super) fn require_file(role: &str, path: &Path, file: &File) -> Result<()> {
    let kind = file.metadata().with_context(|| format!("{role} {}: inspect", path.display()))?.file_type();
    if matches!(role, DISK | BACKING) {
        let fits = kind.is_file() || kind.is_block_device();
        ensure!(fits, "{role} {}: neither a regular file nor a block device", path.display());
        return Ok(());
    }
    ensure!(kind.is_file(), "{role} {}: not a regular file", path.display());
    Ok(())
}

pub(super) fn require_writable(role: &str, name: &str, file: &File) -> Result<()> {
    let flags = fcntl_getfl(file).with_context(|| format!("{role} {name}: inspect"))?;
    ensure!(flags & OFlags::ACCMODE == OFlags::RDWR, "{role} {name}: it is not open for reading and writing");
    Ok(())
}
