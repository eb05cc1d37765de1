//! XFS, by `lamxfs`, which replays a log of version 5 in memory and refuses others that have something to replay.

use std::cell::RefCell;

use lamxfs::{BlockRead, Error, Path, SuperblockReason, Xfs};

use super::{
    FileError, Files, Known, NAMES_MAX,
    links::{self, Kind, Tree},
    read_all, uuid_of,
};
use crate::disk::Window;

/// Each read looks the file's extents up anew.
const CHUNK_BYTES: usize = 1 << 20;

struct Opened(RefCell<Xfs<Window>>);

pub fn open(window: Window) -> Result<Known, String> {
    let bytes = window.bytes();
    let fs = Xfs::open(window, bytes).map_err(|error| words(&error))?;
    let (uuid, label) = (uuid_of(fs.uuid()), fs.label().unwrap_or_default().to_owned());
    Ok(Known { kind: "XFS", uuid, label, files: Box::new(Opened(RefCell::new(fs))) })
}

impl Files for Opened {
    fn read(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, FileError> {
        let (path, _) = links::follow(self, path)?;
        let mut fs = self.0.borrow_mut();
        let inode = fs.resolve(Path::new(path.as_bytes())).map_err(|error| of_xfs(&error))?;
        read_all(&path, bytes_max, CHUNK_BYTES, &mut |at, buffer| fs.read_file_at(&inode, at, buffer).map_err(|error| of_xfs(&error)))
    }

    fn has(&self, path: &str) -> bool {
        links::follow(self, path).is_ok_and(|(_, kind)| kind == Kind::File)
    }

    fn list(&self, path: &str) -> Vec<String> {
        let Ok((path, _)) = links::follow(self, path) else { return vec![] };
        let entries = self.0.borrow_mut().read_dir(Path::new(path.as_bytes())).unwrap_or_default();
        entries.into_iter().take(NAMES_MAX).filter_map(|entry| String::from_utf8(entry.name).ok()).collect()
    }
}

impl Tree for Opened {
    fn kind(&self, path: &str) -> Result<Kind, FileError> {
        let mut fs = self.0.borrow_mut();
        let inode = fs.resolve(Path::new(path.as_bytes())).map_err(|error| of_xfs(&error))?;
        let about = fs.metadata(&inode).map_err(|error| of_xfs(&error))?;
        Ok(match about {
            about if about.is_file() => Kind::File,
            about if about.is_dir() => Kind::Folder,
            about if about.is_symlink() => Kind::Link,
            _ => Kind::Other,
        })
    }

    fn link(&self, path: &str) -> Result<Vec<u8>, FileError> {
        self.0.borrow_mut().read_link(Path::new(path.as_bytes())).map_err(|error| of_xfs(&error))
    }
}

impl BlockRead for Window {
    type Error = std::io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        Window::read_at(self, offset, buffer)
    }
}

fn of_xfs(error: &Error) -> FileError {
    match error {
        Error::NotFound { .. } => FileError::Absent,
        other => FileError::Unread(words(other)),
    }
}

fn words(error: &Error) -> String {
    match error {
        Error::BadSuperblock(SuperblockReason::DirtyLog) => {
            "its log holds changes that are not replayed here; mount it once, or shut its guest down by itself".to_owned()
        }
        Error::NotARegularFile => "it is no regular file".to_owned(),
        other => other.to_string(),
    }
}
