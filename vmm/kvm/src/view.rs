//! The guest's own view of memory that it may have and may not have: a second mapping of that part of the memory file, of which KVM is told and through
//! which nothing else looks. What is not allowed has no access rights in it, so a vCPU that goes there leaves KVM with an error, and populates nothing.

use std::{ffi::c_void, fs::File, ops::Range, ptr};

use rustix::{
    io::Result,
    mm::{MapFlags, MprotectFlags, ProtFlags},
};

/// One mapping, gone when dropped.
#[derive(Debug)]
pub(crate) struct View {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: it is an address; all that is done through it are system calls, which any thread may make.
unsafe impl Send for View {}
// SAFETY: as above; two of them at once are ordered by the kernel.
unsafe impl Sync for View {}

impl View {
    /// Maps `bytes` of the file from `offset` on; nothing of it is allowed.
    pub(crate) fn map(file: &File, offset: u64, bytes: u64) -> Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| rustix::io::Errno::NOMEM)?;
        // SAFETY: a new mapping at a place of the kernel's choice takes nobody's memory away, and Rust never looks through it.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, ProtFlags::empty(), MapFlags::SHARED, file, offset) }?;
        Ok(Self { start, bytes })
    }

    /// Where this process has it.
    pub(crate) fn pointer(&self) -> u64 {
        self.start.addr() as u64
    }

    /// Allows a part of it, or does so no more. The kernel refuses when too many parts differ from their neighbours.
    pub(crate) fn allow(&self, range: Range<u64>, allowed: bool) -> Result<()> {
        let (start, end) = (range.start as usize, range.end as usize);
        if start > end || end > self.bytes {
            return Err(rustix::io::Errno::INVAL);
        }
        let rights = if allowed { MprotectFlags::READ | MprotectFlags::WRITE } else { MprotectFlags::empty() };
        // SAFETY: the part lies in this mapping, as was just checked, and Rust never looks through it.
        unsafe { rustix::mm::mprotect(self.start.wrapping_byte_add(start), end - start, rights) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `map` and nobody else has it: KVM's machine is gone, because each part of that holds the `Ram` with this view.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start, self.bytes) } {
            log::error!("unmap the room of guest RAM: {error}");
        }
    }
}
