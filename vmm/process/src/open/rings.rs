//! Rings by which a disk's queues reach its files: one a queue, made in the sealed process before its list of system calls is in force, since nobody may make
//! one afterwards.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use rebec_devices::disk::{Done, FileRing};
use rebec_kvm::DiskRing;
use vm_memory::GuestAddress;

/// A file system that is memory (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// Rings over an image and what lies below it. None where nothing has to be waited for: a file in memory is read as fast by hand, and there the kernel would
/// give each request to a thread of its own.
pub fn make(image: &File, backing: &[File], queues: u8) -> io::Result<Vec<Box<dyn FileRing>>> {
    if rustix::fs::fstatfs(image)?.f_type == TMPFS {
        return Ok(vec![]);
    }
    let files: Vec<_> = std::iter::once(image).chain(backing).map(AsFd::as_fd).collect();
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
