//! Plain files by the role they play, so that an error names the option and not only a path.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use rebec_vmm_api::Handle;
use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, flock};

use super::handed::{self, Handed};

/// An open file and the name the user knows it by.
pub struct Named {
    pub path: PathBuf,
    pub file: File,
}

/// Opens a regular file for reading.
pub fn open_read(role: &str, handle: &Handle, handed: &mut Handed) -> Result<Named> {
    open(role, handle, handed, OpenOptions::new().read(true))
}

/// Opens a regular file, or takes the one that was handed over. What `options` say beyond reading counts for paths.
pub fn open(role: &str, handle: &Handle, handed: &mut Handed, options: &OpenOptions) -> Result<Named> {
    let named = match handle {
        Handle::Path(path) => {
            let file = options.open(path).with_context(|| format!("{role} {handle}: open"))?;
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

pub(super) fn require_file(role: &str, path: &Path, file: &File) -> Result<()> {
    let kind = file.metadata().with_context(|| format!("{role} {}: inspect", path.display()))?.file_type();
    if !kind.is_file() {
        let remedy = match role {
            "disk" if kind.is_block_device() => {
                "; copy it into one with `qemu-img convert -O qcow2`, or have a pool do that by `rebec image import`"
            }
            _ => "",
        };
        bail!("{role} {}: not a regular file{remedy}", path.display());
    }
    Ok(())
}

pub(super) fn require_writable(role: &str, name: &str, file: &File) -> Result<()> {
    let flags = fcntl_getfl(file).with_context(|| format!("{role} {name}: inspect"))?;
    ensure!(flags & OFlags::ACCMODE == OFlags::RDWR, "{role} {name}: it is not open for reading and writing");
    Ok(())
}
