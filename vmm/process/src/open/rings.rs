//! Rings by which a disk's queues reach its files: one a queue, made in the sealed process before its list of system calls is in force, since nobody may make
//! one afterwards.
//!
//! A ring outlives its process: the kernel takes it apart some time after the end, and lets go of its files only then. So these are files opened once more,
//! which hold no lock: with those of the disk itself, the next process would be told that the image is in use.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use rebec_devices::disk::{Done, FileRing};
use rebec_kvm::DiskRing;
use vm_memory::GuestAddress;

/// A file system that is memory (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// Files of rings, opened once more while paths still lead somewhere.
pub fn reopen(image: &File, read_only: bool, backing: &[File]) -> io::Result<Vec<File>> {
    let again = |file: &File, write| OpenOptions::new().read(true).write(write).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let image = again(image, !read_only);
    std::iter::once(image).chain(backing.iter().map(|file| again(file, false))).collect()
}

/// Rings over an image and what lies below it. None where nothing has to be waited for: a file in memory is read as fast by hand, and there the kernel would
/// give each request to a thread of its own.
pub fn make(files: &[File], queues: u8) -> io::Result<Vec<Box<dyn FileRing>>> {
    let Some(image) = files.first() else { return Ok(vec![]) };
    if rustix::fs::fstatfs(image)?.f_type == TMPFS {
        return Ok(vec![]);
    }
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    (0..queues).map(|_| Ok(Box::new(Ring(DiskRing::new(&files)?)) as Box<dyn FileRing>)).collect()
}

#[derive(Debug)]
struct Ring(DiskRing);

impl FileRing for Ring {
    fn attach(&mut self, ram: &rebec_devices::GuestRam) -> io::Result<()> {
        self.0.attach(ram)
    }

    fn room(&self) -> usize {
        self.0.room()
    }

    fn read(&mut self, token: u64, file: u32, offset: u64, into: &[(GuestAddress, u32)]) -> io::Result<()> {
        self.0.read(token, file, offset, into)
    }

    fn write(&mut self, token: u64, file: u32, offset: u64, from: &[(GuestAddress, u32)]) -> io::Result<()> {
        self.0.write(token, file, offset, from)
    }

    fn sync_data(&mut self, token: u64, file: u32) -> io::Result<()> {
        self.0.sync_data(token, file)
    }

    fn submit(&mut self) -> io::Result<()> {
        self.0.submit()
    }

    fn wait(&mut self) -> io::Result<()> {
        self.0.wait()
    }

    fn next_done(&mut self) -> Option<Done> {
        self.0.next_done()
    }

    fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
