//! The folder of a depot: what is in it, and how a file gets the name of a part.

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rebec_api::{ApiError, ErrorCode};
use rebec_book::{
    key::{Digest, Name},
    record::PartRef,
};
use rustix::{
    fs::{AtFlags, CWD, linkat},
    io::Errno,
};

use super::derived;
use crate::{facts, lock};

/// Room that stays free on the depot's file system: disks of running VMs grow.
const SPARE_BYTES: u64 = 64 << 20;
/// What an import is called until it is whole.
const NEW_PREFIX: &str = ".new-";
/// What a part that is on its way is called.
const PARTIAL_PREFIX: &str = ".from-elsewhere-";
/// Read at once when a file is hashed.
const CHUNK_BYTES: usize = 1 << 20;
/// A part that nothing needs stays for so long after it was asked for last: its VM's record may not be here yet.
const UNUSED_TIME: Duration = Duration::from_secs(60 * 60);
/// What has been on its way for so long is not waited for.
const PARTIAL_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The folder.
pub struct Shelf {
    folder: PathBuf,
    opened: Instant,
    /// When parts were asked for last; held while one is removed for not having been.
    used: Mutex<HashMap<Digest, Instant>>,
}

impl Shelf {
    /// Opens or makes it.
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let shelf = Self { folder, opened: Instant::now(), used: Mutex::default() };
        for entry in fs::read_dir(&shelf.folder)?.flatten() {
            // Of imports that a killed agent left, their senders were never told that they had ended well.
            let is_new = entry.file_name().to_string_lossy().starts_with(NEW_PREFIX);
            // Killed between giving a part its name and taking the old one away: nobody is to go on writing there.
            let is_named = is_partial(&entry.path()) && entry.metadata().is_ok_and(|file| file.nlink() > 1);
            if is_new || is_named || derived::is_orphan(&entry.path()) {
                fs::remove_file(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
            }
        }
        Ok(shelf)
    }

    /// Where a part is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    /// Where it is while it arrives. Another length is another claim about it, and another file.
    pub fn partial(&self, part: &PartRef) -> PathBuf {
        self.folder.join(format!("{PARTIAL_PREFIX}{}-{}", part.digest, part.bytes))
    }

    /// All parts.
    pub fn list(&self) -> Vec<Digest> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return vec![] };
        let mut all: Vec<Digest> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        all.sort_unstable();
        all
    }

    /// A file for an import.
    pub fn new_file(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::NamedTempFile::with_prefix_in(NEW_PREFIX, &self.folder)
    }

    /// Refuses what there is no room for.
    pub fn require_room(&self, bytes: u64) -> Result<(), ApiError> {
        let (_, free) = facts::disk_bytes(&self.folder);
        if free < bytes.saturating_add(SPARE_BYTES) {
            let message = format!(
                "the depot has {} MiB free, {} MiB are needed and {} MiB stay free for disks; remove an image or use a larger disk",
                free >> 20,
                bytes.div_ceil(1 << 20),
                SPARE_BYTES >> 20
            );
            return Err(ApiError::new(ErrorCode::TooLarge, message));
        }
        Ok(())
    }

    /// Somebody asks for a part. Whether it is here, and stays for a while.
    pub fn use_part(&self, digest: &Digest) -> bool {
        let mut used = lock(&self.used);
        let is_here = self.path(digest).exists();
        if is_here {
            used.insert(*digest, Instant::now());
        }
        is_here
    }

    /// Removes a part that nobody has asked for lately. Whether it has gone.
    pub fn remove_unused(&self, digest: &Digest, now: Instant) -> bool {
        let mut used = lock(&self.used);
        let last = used.get(digest).copied().unwrap_or(self.opened);
        if now.saturating_duration_since(last) < UNUSED_TIME {
            return false;
        }
        used.remove(digest);
        let removed = fs::remove_file(self.path(digest));
        if let Err(error) = &removed {
            log::warn!("depot: remove {digest}: {error}");
        }
        removed.is_ok()
    }

    /// Removes what was on its way a day ago and is not now.
    pub fn remove_old_partials(&self, wanted: &[PartRef]) {
        let wanted: Vec<_> = wanted.iter().map(|part| self.partial(part)).collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let age = entry.metadata().and_then(|file| file.modified()).map(|modified| modified.elapsed().unwrap_or_default());
            if is_partial(&path)
                && !wanted.contains(&path)
                && age.is_ok_and(|age| age > PARTIAL_TIME)
                && let Err(error) = fs::remove_file(&path)
            {
                log::warn!("depot: remove {}: {error}", path.display());
            }
        }
    }

    /// Names what has arrived if it is the part, and says whether it is. `writer` is the only descriptor that it can be written by.
    pub fn verify(&self, writer: File, part: &PartRef) -> io::Result<bool> {
        let mut reader = seal(writer)?;
        if hash(&mut reader)? != part.digest {
            return Ok(false);
        }
        self.link(&reader, &part.digest)?;
        fs::remove_file(self.partial(part))?;
        Ok(true)
    }

    /// Names a file by the hash of what was written to it.
    pub fn name(&self, writer: File, digest: &Digest) -> io::Result<()> {
        self.link(&seal(writer)?, digest)
    }

    /// Gives exactly this file the name of a part. One that has it already stays: it has the same content.
    fn link(&self, reader: &File, digest: &Digest) -> io::Result<()> {
        let mut used = lock(&self.used);
        match linkat(CWD, own_path(reader), CWD, self.path(digest), AtFlags::SYMLINK_FOLLOW) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        used.insert(*digest, Instant::now());
        drop(used);
        File::open(&self.folder)?.sync_all()
    }
}

/// Brings a file to the disk and ends its writing; what is left of it can only be read.
fn seal(writer: File) -> io::Result<File> {
    writer.sync_all()?;
    let reader = File::open(own_path(&writer))?;
    reader.set_permissions(Permissions::from_mode(0o444))?;
    Ok(reader)
}

/// The path of an open file, whatever its name is now.
fn own_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn is_partial(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL_PREFIX))
}

fn hash(file: &mut File) -> io::Result<Digest> {
    let (mut hasher, mut chunk) = (blake3::Hasher::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Name(*hasher.finalize().as_bytes())),
            count => hasher.update(&chunk[..count]),
        };
    }
}
