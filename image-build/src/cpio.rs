//! Writes archives that a kernel unpacks (cpio, "newc" format): same content, same bytes. Everything belongs to root and is of 1970.
//!
//! ```text
//! header  "070701" and 13 fields of 8 hexadecimal digits: inode, mode, uid, gid, links, mtime, size, device numbers, name size, 0
//! name    with a zero byte, padded so that header and name are a multiple of 4
//! data    padded to a multiple of 4
//! end     an entry named TRAILER!!!
//! ```

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result};

enum Entry {
    Folder,
    File { mode: u32, bytes: Vec<u8> },
    Link(String),
    CharDevice { major: u32, minor: u32 },
}

/// A tree being gathered. Folders above an entry come by themselves.
#[derive(Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds an empty folder.
    pub fn folder(&mut self, path: &str) {
        self.add(path, Entry::Folder);
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.add(path, Entry::CharDevice { major, minor });
    }

    /// Adds a file that is read and not run.
    pub fn data(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.add(path, Entry::File { mode: 0o644, bytes: bytes.into() });
    }

    /// Adds a program.
    pub fn program(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.add(path, Entry::File { mode: 0o755, bytes: bytes.into() });
    }

    /// Adds a file of the host, executable.
    pub fn host_file(&mut self, path: &str, source: &Path) -> Result<()> {
        let bytes = fs::read(source).with_context(|| format!("read {}", source.display()))?;
        self.program(path, bytes);
        Ok(())
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, Entry::Link(target.to_owned()));
    }

    fn add(&mut self, path: &str, entry: Entry) {
        let mut end = 0;
        while let Some(slash) = path[end..].find('/') {
            self.entries.entry(path[..end + slash].to_owned()).or_insert(Entry::Folder);
            end += slash + 1;
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the tree into a folder, for a disk image. Device nodes are left out: making them takes root, and a system
    /// that mounts devtmpfs has them anyway.
    pub fn unpack(&self, folder: &Path) -> Result<()> {
        for (name, entry) in &self.entries {
            let path = folder.join(name);
            let done = match entry {
                Entry::Folder => fs::create_dir_all(&path),
                Entry::File { mode, bytes } => {
                    fs::write(&path, bytes).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(*mode)))
                }
                Entry::Link(target) => std::os::unix::fs::symlink(target, &path),
                Entry::CharDevice { .. } => Ok(()),
            };
            done.with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// The archive.
    pub fn to_bytes(&self) -> Vec<u8> {
        const FOLDER: u32 = 0o040_755;
        const REGULAR: u32 = 0o100_000;
        const LINK: u32 = 0o120_777;
        const CHARACTER: u32 = 0o020_600;
        let mut out = Vec::new();
        for (number, (name, entry)) in (1..).zip(&self.entries) {
            let none = (0, 0);
            match entry {
                Entry::Folder => append(&mut out, number, FOLDER, none, name, &[]),
                Entry::File { mode, bytes } => append(&mut out, number, REGULAR | mode, none, name, bytes),
                Entry::Link(target) => append(&mut out, number, LINK, none, name, target.as_bytes()),
                Entry::CharDevice { major, minor } => append(&mut out, number, CHARACTER, (*major, *minor), name, &[]),
            }
        }
        append(&mut out, 0, 0, (0, 0), "TRAILER!!!", &[]);
        out
    }

    /// Writes the archive to a file.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_bytes()).with_context(|| format!("write {}", path.display()))
    }
}

fn append(out: &mut Vec<u8>, inode: u32, mode: u32, device: (u32, u32), name: &str, data: &[u8]) {
    let size = u32::try_from(data.len()).expect("invariant: files of an initramfs are far below 4 GiB");
    let name_size = u32::try_from(name.len() + 1).expect("invariant: names are short");
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Program;

    #[test]
    fn cpio_reads_back_what_was_written() {
        let mut tree = Tree::default();
        tree.program("a/b/run", "#!/bin/sh\n");
        tree.link("a/link", "b/run");
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("x.cpio");
        tree.write(&archive).unwrap();
        let list = Program::new("cpio").arg("-itv").stdin(fs::File::open(&archive).unwrap()).output().unwrap();
        assert!(list.contains("a/b/run") && list.contains("a/link -> b/run") && list.contains("-rwxr-xr-x"), "{list}");
        assert_eq!(tree.to_bytes(), fs::read(&archive).unwrap());
    }
}
