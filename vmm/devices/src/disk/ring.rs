//! The seam to what carries requests to files side by side (io_uring, in `rebec_kvm::DiskRing`): made by the program before it is sealed, kept here while no
//! queue has it.

use std::{
    fmt::Debug,
    io,
    os::fd::RawFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use vm_memory::GuestAddress;

use crate::GuestRam;

/// Requests to a disk's files. Files are numbered: the image's own is 0.
pub trait FileRing: Send + Debug {
    /// From now on requests are of this memory. Nothing is under way.
    fn attach(&mut self, ram: &GuestRam) -> io::Result<()>;
    /// How many more requests there is room for.
    fn room(&self) -> usize;
    /// Reads from a file into guest memory; what was read is marked there as a device's write before it is said to be done.
    fn read(&mut self, token: u64, file: u32, offset: u64, into: &[(GuestAddress, u32)]) -> io::Result<()>;
    /// Writes guest memory into a file.
    fn write(&mut self, token: u64, file: u32, offset: u64, from: &[(GuestAddress, u32)]) -> io::Result<()>;
    /// Has what was written to a file brought to the host's disk.
    fn sync_data(&mut self, token: u64, file: u32) -> io::Result<()>;
    /// Gives on what was asked for.
    fn submit(&mut self) -> io::Result<()>;
    /// The same, and returns when something is done.
    fn wait(&mut self) -> io::Result<()>;
    /// What is done, in any order.
    fn next_done(&mut self) -> Option<Done>;
    /// Readable when something is done.
    fn descriptor(&self) -> RawFd;
}

/// A request that has ended: its token, and how many bytes were carried or an error's number.
pub type Done = (u64, Result<u32, i32>);

/// Those that no queue has.
#[derive(Debug, Default)]
pub(super) struct Rings(Mutex<Vec<Box<dyn FileRing>>>);

impl Rings {
    pub(super) fn new(rings: Vec<Box<dyn FileRing>>) -> Self {
        Self(Mutex::new(rings))
    }

    pub(super) fn take(&self) -> Option<Box<dyn FileRing>> {
        self.lock().pop()
    }

    pub(super) fn give(&self, ring: Box<dyn FileRing>) {
        self.lock().push(ring);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Box<dyn FileRing>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
