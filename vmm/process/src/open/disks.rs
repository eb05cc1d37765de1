//! A disk's files: the image, its chain of backing images, and the lock that keeps a second writer away.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use rebec_devices::disk::{Disk, FileRing};
use rebec_vmm_api::{DiskConfig, Handle};
use rustix::fs::{FlockOperation, flock};

use super::{
    files::{self, Named, open_read, require_file, require_writable},
    handed::Handed,
    qemu_lock, rings,
};
use crate::moving::BaseDigests;

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
    /// The least virtual size: the disk grows to it.
    pub at_least: Option<u64>,
    /// Kept digests of the first of `backing`.
    pub base: Option<Arc<BaseDigests>>,
    queues: u8,
    /// Its files once more, for rings.
    again: io::Result<Vec<File>>,
    /// For the first disk that is parsed.
    rings: Mutex<Vec<Box<dyn FileRing>>>,
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
        let rings = std::mem::take(&mut *self.rings.lock().unwrap_or_else(PoisonError::into_inner));
        let disk = Disk::open(&self.name, copy(&self.file)?, backing, self.read_only)?.with_queues(self.queues, rings);
        if let Some(base) = &self.base {
            let (is, of) = (disk.size_bytes(), base.bytes());
            ensure!(is >= of, "disk {}: it has {is} bytes, and the digests are of a base of {of}; give those of its own base", self.name);
        }
        if let Some(bytes) = self.at_least.filter(|bytes| *bytes > disk.size_bytes()) {
            disk.grow(bytes)?;
        }
        Ok(disk)
    }

    /// The virtual disk, made first if the file is new.
    pub fn parse_or_create(&self, bytes: u64) -> Result<Disk> {
        if self.is_empty()? {
            Disk::create_qcow2(&self.name, &self.file, bytes, None)?;
        }
        self.parse()
    }
}

/// Gives each disk's queues a way to serve requests side by side. Where this host offers none, they are served one at a time, which is said once.
pub fn make_rings(disks: &[DiskFile]) {
    for disk in disks {
        let files = match &disk.again {
            Ok(files) => files,
            Err(error) => {
                log::warn!(
                    "disk {} serves one request at a time: open it once more: {error}; let the user of this process open it",
                    disk.name
                );
                continue;
            }
        };
        match rings::make(files, disk.queues) {
            Ok(made) => *disk.rings.lock().unwrap_or_else(PoisonError::into_inner) = made,
            Err(error) => {
                let next = "allow io_uring (sysctl kernel.io_uring_disabled=0, Linux 5.15) for more";
                log::warn!("disks serve one request at a time: disk {}: io_uring: {error}; {next}", disk.name);
                return;
            }
        }
    }
}

/// Opens an image and what lies below it.
pub fn open(config: &DiskConfig, missing: Missing, handed: &mut Handed) -> Result<DiskFile> {
    let create = missing == Missing::Create && !config.read_only;
    let options = OpenOptions::new().read(true).write(!config.read_only).create(create).clone();
    let Named { path, file } = files::open("disk", &config.image, handed, &options)?;
    let name = path.display().to_string();
    if !config.read_only {
        require_writable("disk", &name, &file)?;
    }
    lock(&name, &file, config.read_only)?;
    let is_empty = file.metadata().with_context(|| format!("disk {name}: inspect"))?.len() == 0;
    if is_empty && missing == Missing::Refuse {
        bail!("disk {name}: the file is empty; make an image with qemu-img create, or give the right file");
    }
    let backing = match (&config.base, &config.image) {
        (Some(base), _) => vec![open_backing(base, handed)?],
        (None, Handle::Path(path)) if !is_empty => open_chain(&name, path, &file)?,
        // Who hands over an image hands over its base: names in a header that may come from anywhere are not followed.
        (None, Handle::Path(_) | Handle::Descriptor(_)) => vec![],
    };
    let base = config.base_digests.as_ref().map(|digests| open_digests(digests, handed)).transpose()?;
    ensure!(base.is_none() || !backing.is_empty(), "disk {name}: it has no backing image that digests could be of");
    let again = rings::reopen(&file, config.read_only, &backing);
    Ok(DiskFile {
        name,
        file,
        backing,
        read_only: config.read_only,
        at_least: config.at_least,
        base,
        queues: config.queues,
        again,
        rings: Mutex::default(),
    })
}

/// Opens an image to read it.
pub fn base(image: &Handle, handed: &mut Handed) -> Result<DiskFile> {
    let config = DiskConfig { image: image.clone(), read_only: true, at_least: None, base: None, base_digests: None, queues: 1 };
    open(&config, Missing::Refuse, handed)
}

fn open_backing(handle: &Handle, handed: &mut Handed) -> Result<File> {
    let Named { path, file } = open_read("backing image", handle, handed)?;
    lock(&path.display().to_string(), &file, true)?;
    Ok(file)
}

fn open_digests(handle: &Handle, handed: &mut Handed) -> Result<Arc<BaseDigests>> {
    let Named { path, file } = open_read("digests", handle, handed)?;
    Ok(Arc::new(BaseDigests::from_file(file).with_context(|| format!("digests {}", path.display()))?))
}

/// Whoever writes an image must be alone with it; readers may share. QEMU's tools are told the same in their own way.
fn lock(name: &str, file: &File, read_only: bool) -> Result<()> {
    let wanted = if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    let locked = flock(file, wanted).map_err(io::Error::from).and_then(|()| qemu_lock::lock(file, read_only));
    match locked {
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
