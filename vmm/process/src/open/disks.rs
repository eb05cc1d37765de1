//! A disk's files: the image, its chain of backing images, and the lock that keeps a second writer away.

use std::{
    fs::{File, OpenOptions},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rebec_devices::disk::Disk;
use rebec_vmm_api::DiskConfig;
use rustix::fs::{FlockOperation, flock};

use super::files::require_file;

/// Longest chain of backing images: a deeper one is a loop or a mistake.
const CHAIN_MAX: usize = 16;

/// What to do about an image that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// `run`: it is an error.
    Refuse,
    /// `receive`: the VM brings the content.
    Create,
}

/// An image and what lies below it, open but not yet parsed.
pub struct DiskFile {
    pub name: String,
    pub file: File,
    pub backing: Vec<File>,
    pub read_only: bool,
}

impl DiskFile {
    /// Whether the file is new and waits for an image of the size that comes with the VM.
    fn is_empty(&self) -> Result<bool> {
        let length = self.file.metadata().with_context(|| format!("disk {}: inspect", self.name))?.len();
        Ok(length == 0)
    }

    /// The virtual disk. Descriptors are duplicated, so that a machine can be built again after a guest reset.
    pub fn parse(&self) -> Result<Disk> {
        let copy = |file: &File| file.try_clone().with_context(|| format!("disk {}: duplicate its descriptor", self.name));
        let backing = self.backing.iter().map(copy).collect::<Result<_>>()?;
        Ok(Disk::open(&self.name, copy(&self.file)?, backing, self.read_only)?)
    }

    /// The virtual disk, made first if the file is new.
    pub fn parse_or_create(&self, bytes: u64) -> Result<Disk> {
        if self.is_empty()? {
            Disk::create_qcow2(&self.name, &self.file, bytes, None)?;
        }
        self.parse()
    }
}

/// Opens an image and its backing chain.
pub fn open(config: &DiskConfig, missing: Missing) -> Result<DiskFile> {
    let name = config.path.display().to_string();
    let mut options = OpenOptions::new();
    options.read(true).write(!config.read_only);
    options.create(missing == Missing::Create && !config.read_only);
    let file = options.open(&config.path).with_context(|| format!("disk {name}: open"))?;
    require_file("disk", &config.path, &file)?;
    lock(&name, &file, config.read_only)?;
    let is_empty = file.metadata().with_context(|| format!("disk {name}: inspect"))?.len() == 0;
    let backing = match (is_empty, missing) {
        (false, _) => open_chain(&name, &config.path, &file)?,
        (true, Missing::Create) => vec![],
        (true, Missing::Refuse) => {
            bail!("disk {name}: the file is empty; make an image with qemu-img create, or give the right file")
        }
    };
    Ok(DiskFile { name, file, backing, read_only: config.read_only })
}

/// Whoever writes an image must be alone with it; readers may share.
fn lock(name: &str, file: &File, read_only: bool) -> Result<()> {
    let wanted = if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match flock(file, wanted) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("disk {name}: another process uses it; stop that one first"),
        Err(error) => Err(error).with_context(|| format!("disk {name}: lock")),
    }
}

fn open_chain(name: &str, path: &Path, file: &File) -> Result<Vec<File>> {
    let mut chain: Vec<File> = Vec::new();
    let mut above: PathBuf = path.to_owned();
    let mut next = Disk::backing_name(name, file)?;
    while let Some(backing) = next {
        if chain.len() == CHAIN_MAX {
            bail!("disk {name}: more than {CHAIN_MAX} backing images; is there a loop?");
        }
        let below = above.parent().unwrap_or(Path::new("")).join(&backing.name);
        let context = || format!("disk {name}: open its backing image {}", below.display());
        let file = File::open(&below).with_context(context)?;
        require_file("backing image", &below, &file)?;
        lock(&below.display().to_string(), &file, true)?;
        next = Disk::backing_name(&below.display().to_string(), &file)?;
        chain.push(file);
        above = below;
    }
    Ok(chain)
}
