//! btrfs, by `lambutter`: one disk, what GRUB would read of it. As GRUB does, it leaves out what the log of `fsync` alone has.

use std::cell::RefCell;

use lambutter::{BlockRead, Btrfs, Error, Path};

use super::{
    FileError, Files, Known, NAMES_MAX,
    links::{self, Kind, Tree},
    read_all, uuid_of,
};
use crate::disk::Window;

pub const KIND: &str = "btrfs";
pub const MAGIC: &[u8] = b"_BHRfS_M";
pub const MAGIC_AT: u64 = SUPERBLOCK_AT + 64;
const SUPERBLOCK_AT: u64 = 0x1_0000;
/// In the superblock (`struct btrfs_super_block` of Linux).
const FSID_AT: usize = 32;
const LABEL: std::ops::Range<usize> = 299..299 + 256;
/// The subvolume that holds all others.
const TOP: u64 = 5;
/// Each read walks the file's extents from its beginning.
const CHUNK_BYTES: usize = 8 << 20;

/// The subvolume that is mounted if nobody names one, as GRUB of SUSE begins there, and the top, as everybody else's does.
struct Opened {
    views: Vec<View>,
}

struct View(RefCell<Btrfs<Window>>);

pub fn open(window: &dyn Fn() -> Window) -> Result<Known, String> {
    let bytes = window().bytes();
    let mut superblock = [0; LABEL.end];
    window().read_at(SUPERBLOCK_AT, &mut superblock).map_err(|error| error.to_string())?;
    let default = Btrfs::open(window(), bytes).map_err(|error| error.to_string())?;
    let is_top = default.subvolume() == TOP;
    let mut views = vec![View(RefCell::new(default))];
    if !is_top {
        let top = Btrfs::open_subvol_id(window(), bytes, TOP).map_err(|error| error.to_string())?;
        views.push(View(RefCell::new(top)));
    }
    let mut fsid = [0; 16];
    fsid.copy_from_slice(&superblock[FSID_AT..FSID_AT + 16]);
    let label = superblock[LABEL].split(|byte| *byte == 0).next().unwrap_or_default();
    let label = String::from_utf8_lossy(label).into_owned();
    Ok(Known { kind: KIND, uuid: uuid_of(fsid), label, files: Box::new(Opened { views }) })
}

impl Files for Opened {
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        let reads = self.views.iter().map(|view| view.read(path, bytes_max));
        reads.into_iter().find(|read| !matches!(read, Err(FileError::Absent))).unwrap_or(Err(FileError::Absent))
    }

    fn has(&self, path: &str) -> bool {
        self.views.iter().any(|view| links::follow(view, path).is_ok_and(|(_, kind)| kind == Kind::File))
    }

    fn list(&self, path: &str) -> Vec<String> {
        self.views.iter().map(|view| view.list(path)).find(|names| !names.is_empty()).unwrap_or_default()
    }
}

impl View {
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        let (path, _) = links::follow(self, path)?;
        let mut fs = self.0.borrow_mut();
        let inode = fs.resolve(Path::from(path.as_str())).map_err(|error| of_btrfs(&error))?;
        read_all(&path, bytes_max, CHUNK_BYTES, &mut |at, buffer| fs.read_file_at(&inode, at, buffer).map_err(|error| of_btrfs(&error)))
    }

    fn list(&self, path: &str) -> Vec<String> {
        let Ok((path, _)) = links::follow(self, path) else { return vec![] };
        let entries = self.0.borrow_mut().read_dir(Path::from(path.as_str())).unwrap_or_default();
        entries.into_iter().take(NAMES_MAX).filter_map(|entry| String::from_utf8(entry.name).ok()).collect()
    }
}

impl Tree for View {
    fn kind(&self, path: &str) -> Result<Kind, FileError> {
        let mut fs = self.0.borrow_mut();
        let inode = fs.resolve(Path::from(path)).map_err(|error| of_btrfs(&error))?;
        let about = fs.metadata(&inode).map_err(|error| of_btrfs(&error))?;
        Ok(match about {
            about if about.is_file() => Kind::File,
            about if about.is_dir() => Kind::Folder,
            about if about.is_symlink() => Kind::Link,
            _ => Kind::Other,
        })
    }

    fn link(&self, path: &str) -> Result<Vec<u8>, FileError> {
        self.0.borrow_mut().read_link(Path::from(path)).map_err(|error| of_btrfs(&error))
    }
}

impl BlockRead for Window {
    type Error = std::io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        Window::read_at(self, offset, buffer)
    }
}

fn of_btrfs(error: &Error) -> FileError {
    match error {
        Error::NotFound => FileError::Absent,
        Error::NotARegularFile => FileError::Unread("it is no regular file".to_owned()),
        other => FileError::Unread(other.to_string()),
    }
}
