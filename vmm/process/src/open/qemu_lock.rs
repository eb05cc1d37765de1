//! Locks that QEMU's tools look at, beside those of this program: a disk in use is refused by `qemu-img`, and one that QEMU uses by this program.
//!
//! QEMU (block/file-posix.c) locks single bytes of the image itself, by open file description, always shared: who holds byte 100 + n makes use of right n, who holds
//! byte 200 + n does not share it. It then looks whether somebody else holds a byte on the other side.
//! ```text
//! n   0 consistent read   1 write   3 resize
//!            uses        does not share
//! writer     0, 1, 3     1, 3               reader     0          1, 3
//! ```

use std::{
    fs::File,
    io::{self, ErrorKind},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

const USES: i64 = 100;
const SHARES_NOT: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks an image as QEMU would. Held as long as its description is open, which this file and its duplicates are.
pub fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let uses = if read_only { &[CONSISTENT_READ][..] } else { &[CONSISTENT_READ, WRITE, RESIZE] };
    let shares_not = [WRITE, RESIZE];
    for byte in uses.iter().map(|right| USES + right).chain(shares_not.map(|right| SHARES_NOT + right)) {
        hold(file, byte)?;
    }
    for byte in uses.iter().map(|right| SHARES_NOT + right).chain(shares_not.map(|right| USES + right)) {
        if is_held(file, byte)? {
            return Err(ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

fn hold(file: &File, byte: i64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&at(libc::F_RDLCK, byte))).map(drop).map_err(|error| match error {
        Errno::EAGAIN | Errno::EACCES => ErrorKind::WouldBlock.into(),
        error => error.into(),
    })
}

/// Whether another description holds a byte.
fn is_held(file: &File, byte: i64) -> io::Result<bool> {
    let mut found = at(libc::F_WRLCK, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn at(kind: i32, byte: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    fn open(path: &Path, write: bool) -> File {
        File::options().read(true).write(write).open(path).unwrap()
    }

    /// What `qemu-img` says, and whether it did what it was told.
    fn qemu(words: &[&str]) -> (bool, String) {
        let done = Command::new("qemu-img").args(words).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    }

    #[test]
    fn the_tools_of_qemu_refuse_a_disk_that_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let disk = path.to_str().unwrap();
        assert!(qemu(&["create", "-q", "-f", "qcow2", disk, "64M"]).0);
        let refused = |words: &[&str]| {
            let (done, said) = qemu(words);
            assert!(!done && said.contains("lock"), "{words:?}: {said}");
        };
        let writer = open(&path, true);
        lock(&writer, false).unwrap();
        for words in [&["resize", disk, "+1M"][..], &["snapshot", "-c", "a", disk], &["info", disk], &["check", disk]] {
            refused(words);
        }
        assert!(qemu(&["info", "-U", disk]).0, "who asks for no lock may look");
        drop(writer);
        // A base that is only read may be read by others, and not written.
        let reader = open(&path, false);
        lock(&reader, true).unwrap();
        assert!(qemu(&["info", disk]).0);
        refused(&["resize", disk, "+1M"]);
        drop(reader);
        assert!(qemu(&["resize", disk, "+1M"]).0);
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let readers = [open(file.path(), false), open(file.path(), false)];
        readers.iter().for_each(|reader| lock(reader, true).unwrap());
        let writer = open(file.path(), true);
        assert_eq!(lock(&writer, false).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(writer);
        drop(readers);
        let writer = open(file.path(), true);
        lock(&writer, false).unwrap();
        lock(&writer.try_clone().unwrap(), false).unwrap();
        for (write, read_only) in [(false, true), (true, false)] {
            assert_eq!(lock(&open(file.path(), write), read_only).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
    }
}
