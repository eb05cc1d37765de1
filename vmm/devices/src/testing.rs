//! For tests: a real ring to files, as the program makes it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use rebec_kvm::DiskRing;
use vm_memory::GuestAddress;

use crate::{
    GuestRam,
    disk::{Done, FileRing},
};

#[derive(Debug)]
struct Ring(DiskRing);

impl FileRing for Ring {
    fn attach(&mut self, ram: &GuestRam) -> io::Result<()> {
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

/// A ring over these files. The machine that tests has io_uring.
pub(crate) fn ring_over(files: &[&File]) -> Box<dyn FileRing> {
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    Box::new(Ring(DiskRing::new(&files).expect("io_uring; is kernel.io_uring_disabled 0?")))
}
