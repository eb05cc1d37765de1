//! Links, followed for libraries that leave that to their callers.

use std::collections::VecDeque;

use super::{FileError, PATH_BYTES_MAX};

/// As Linux.
const LINKS_MAX: usize = 40;

/// What lies at a path that no link is in but perhaps its last part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Link,
    Other,
}

/// A file system that is asked part by part.
pub trait Tree {
    fn kind(&self, path: &str) -> Result<Kind, FileError>;

    /// What a link says, as its bytes are.
    fn link(&self, path: &str) -> Result<Vec<u8>, FileError>;
}

/// The path and kind of what a path leads to.
pub fn follow(tree: &dyn Tree, path: &str) -> Result<(String, Kind), FileError> {
    let mut left: VecDeque<String> = path.split('/').map(str::to_owned).collect();
    let (mut done, mut kind, mut links) = (String::new(), Kind::Folder, 0);
    while let Some(part) = left.pop_front() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.truncate(done.rfind('/').unwrap_or(0));
                kind = Kind::Folder;
                continue;
            }
            _ => {}
        }
        if kind != Kind::Folder {
            return Err(FileError::Absent);
        }
        let next = format!("{done}/{part}");
        kind = tree.kind(&next)?;
        if kind != Kind::Link {
            done = next;
            continue;
        }
        links += 1;
        let target = String::from_utf8(tree.link(&next)?).map_err(|_| FileError::Absent)?;
        if links > LINKS_MAX || target.len() > PATH_BYTES_MAX {
            return Err(FileError::Unread("it has too many links, or one that is too long".to_owned()));
        }
        if target.starts_with('/') {
            done.clear();
        }
        kind = Kind::Folder;
        for part in target.rsplit('/') {
            left.push_front(part.to_owned());
        }
    }
    Ok((if done.is_empty() { "/".to_owned() } else { done }, kind))
}
