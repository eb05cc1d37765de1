//! Requests to a few files that go on side by side: an io_uring ring, narrowed while the process still may make one.
//!
//! ```text
//! before sealing   DiskRing::new(files)       made disabled, files registered, narrowed, enabled
//!                                             from then on: read, write and sync of these files; nothing can be registered any more
//! a queue          attach(ram)                what is read and written is guest memory; it stays mapped while the ring is attached
//!                  read, write, sync_data     put into the ring         submit      given to the kernel
//!                  next_done                  what has ended, in any order; what was read is marked as a device's write by then
//! ```
//! It decides nothing: order, retries and what an error means are the device's.

use std::{
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use io_uring::{IoUring, opcode, register::Restriction, squeue, types};
use vm_memory::{GuestAddress, GuestMemoryBackend, bitmap::Bitmap};

use crate::GuestRam;

/// Requests in a ring at most.
pub const DISK_RING_REQUESTS_MAX: u32 = 128;
/// Pieces of memory of one request at most: the kernel's UIO_MAXIOV.
const PIECES_MAX: usize = 1024;
/// Kernel threads that carry out what would block, for each thread that submits: few enough that all disks of a machine stay within its group's limit of tasks.
const WORKERS_MAX: u32 = 2;
/// What each entry must have and no more: it names a registered file.
const FLAGS: u8 = squeue::Flags::FIXED_FILE.bits();

/// One ring.
pub struct DiskRing {
    ring: IoUring,
    ram: Option<GuestRam>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    files: u32,
}

/// A request under way, and the memory in which the kernel finds what belongs to it.
#[derive(Default)]
struct Slot {
    token: u64,
    pieces: Vec<Piece>,
    /// What the kernel writes, to be marked when it has.
    writes: Vec<(GuestAddress, u32)>,
}

/// struct iovec, as a plain pair of numbers, so that a ring can go from thread to thread.
#[repr(C)]
#[derive(Clone, Copy)]
struct Piece {
    address: usize,
    bytes: usize,
}

const _: () = assert!(size_of::<Piece>() == size_of::<libc::iovec>() && align_of::<Piece>() == align_of::<libc::iovec>());

impl fmt::Debug for DiskRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskRing").field("files", &self.files).field("under_way", &self.under_way()).finish_non_exhaustive()
    }
}

impl DiskRing {
    /// A ring over these files, numbered in their order. Fails where the kernel has no io_uring, or does not give it to this process.
    pub fn new(files: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let ring: IoUring = IoUring::builder().setup_r_disabled().build(DISK_RING_REQUESTS_MAX)?;
        let numbers: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let submitter = ring.submitter();
        submitter.register_files(&numbers)?;
        submitter.register_iowq_max_workers(&mut [WORKERS_MAX, WORKERS_MAX])?;
        let codes = [opcode::Read::CODE, opcode::Readv::CODE, opcode::Write::CODE, opcode::Writev::CODE, opcode::Fsync::CODE]
            .map(Restriction::sqe_op);
        let flags = [Restriction::sqe_flags_allowed(FLAGS), Restriction::sqe_flags_required(FLAGS)];
        submitter.register_restrictions(&mut codes.into_iter().chain(flags).collect::<Vec<_>>())?;
        submitter.register_enable_rings()?;
        let slots = std::iter::repeat_with(Slot::default).take(DISK_RING_REQUESTS_MAX as usize).collect();
        Ok(Self { ring, ram: None, slots, free: (0..DISK_RING_REQUESTS_MAX as u16).rev().collect(), files: numbers.len() as u32 })
    }

    /// From now on requests are of this memory. Nothing may be under way.
    pub fn attach(&mut self, ram: &GuestRam) -> io::Result<()> {
        if self.under_way() > 0 {
            return Err(io::Error::other("requests are under way"));
        }
        self.ram = Some(ram.clone());
        Ok(())
    }

    /// How many more requests there is room for.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Reads from a file into guest memory.
    pub fn read(&mut self, token: u64, file: u32, offset: u64, into: &[(GuestAddress, u32)]) -> io::Result<()> {
        self.transfer(token, file, into, true, |file, pieces| match pieces {
            [one] => opcode::Read::new(file, one.address as *mut u8, one.bytes as u32).offset(offset).build(),
            many => opcode::Readv::new(file, many.as_ptr().cast(), many.len() as u32).offset(offset).build(),
        })
    }

    /// Writes guest memory into a file.
    pub fn write(&mut self, token: u64, file: u32, offset: u64, from: &[(GuestAddress, u32)]) -> io::Result<()> {
        self.transfer(token, file, from, false, |file, pieces| match pieces {
            [one] => opcode::Write::new(file, one.address as *const u8, one.bytes as u32).offset(offset).build(),
            many => opcode::Writev::new(file, many.as_ptr().cast(), many.len() as u32).offset(offset).build(),
        })
    }

    /// Has what was written to a file brought to the host's disk, and what is needed to find it again.
    pub fn sync_data(&mut self, token: u64, file: u32) -> io::Result<()> {
        self.transfer(token, file, &[], false, |file, _| opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build())
    }

    /// Gives the kernel what was put into the ring. What would wait for the host's disk goes on without this thread.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// The same, and returns when something has ended. Nothing is waited for where nothing is under way.
    pub fn wait(&mut self) -> io::Result<()> {
        self.enter(usize::from(self.under_way() > 0))
    }

    /// A request that has ended: its token, and the bytes carried or the error's number.
    pub fn next_done(&mut self) -> Option<(u64, Result<u32, i32>)> {
        let entry = self.ring.completion().next()?;
        let number = entry.user_data() as usize;
        let slot = self.slots.get_mut(number)?;
        if let Some(ram) = &self.ram {
            for (address, bytes) in slot.writes.drain(..) {
                mark(ram, address, bytes);
            }
        }
        self.free.push(number as u16);
        let result = entry.result();
        Some((slot.token, u32::try_from(result).map_err(|_| -result)))
    }

    fn transfer(
        &mut self,
        token: u64,
        file: u32,
        memory: &[(GuestAddress, u32)],
        writes_memory: bool,
        entry: impl FnOnce(types::Fixed, &[Piece]) -> squeue::Entry,
    ) -> io::Result<()> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        let Some(number) = self.free.last().copied() else { return Err(invalid("the ring is full")) };
        if file >= self.files || memory.len() > PIECES_MAX {
            return Err(invalid("no such file, or too many pieces of memory"));
        }
        let slot = &mut self.slots[usize::from(number)];
        slot.token = token;
        slot.pieces.clear();
        slot.writes.clear();
        for (address, bytes) in memory {
            let ram = self.ram.as_ref().ok_or_else(|| invalid("no memory is attached"))?;
            let piece = ram.get_slice(*address, *bytes as usize).map_err(|_| invalid("the memory is no RAM"))?;
            slot.pieces.push(Piece { address: piece.ptr_guard_mut().as_ptr() as usize, bytes: piece.len() });
        }
        if writes_memory {
            slot.writes.extend_from_slice(memory);
        }
        let entry = entry(types::Fixed(file), &slot.pieces).user_data(number.into());
        // SAFETY: the entry's memory is guest RAM, of which no Rust reference exists, and `pieces`. The RAM stays mapped as long as `self.ram` is held:
        // `attach` replaces it only while nothing is under way, and `drop` waits. `pieces` belongs to a slot that is not in `free` until its request
        // has ended, and only `transfer` changes those of free slots.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| invalid("the ring is full"))?;
        self.free.pop();
        Ok(())
    }

    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wanted) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for DiskRing {
    /// Readable when something has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for DiskRing {
    fn drop(&mut self) {
        while self.under_way() > 0 {
            if let Err(error) = self.wait() {
                // What the kernel may still write to is kept for good.
                log::error!("a ring of disk requests cannot be waited for: {error}");
                std::mem::forget((self.ram.take(), std::mem::take(&mut self.slots)));
                return;
            }
            while self.next_done().is_some() {}
        }
    }
}

/// Marks guest memory as written by a device.
fn mark(ram: &GuestRam, address: GuestAddress, bytes: u32) {
    // Resolved when the request began, and RAM does not shrink.
    if let Ok(piece) = ram.get_slice(address, bytes as usize) {
        piece.bitmap().mark_dirty(0, piece.len());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{fd::AsFd, unix::fs::FileExt},
    };

    use rebec_bits::BitSet;
    use rustix::fs::{MemfdFlags, memfd_create};
    use vm_memory::Bytes;

    use super::*;
    use crate::Ram;

    const PAGE: u64 = 4096;

    fn file(bytes: &[u8]) -> File {
        let file = File::from(memfd_create("disk", MemfdFlags::empty()).unwrap());
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn one_done(ring: &mut DiskRing) -> (u64, Result<u32, i32>) {
        ring.wait().unwrap();
        ring.next_done().unwrap()
    }

    #[test]
    fn memory_and_files_are_read_and_written_and_what_is_read_is_marked() {
        let (one, two) = (file(&[1; 8192]), file(&[2; 8192]));
        let ram = Ram::new(64 * PAGE).unwrap();
        let mut ring = DiskRing::new(&[one.as_fd(), two.as_fd()]).unwrap();
        assert!(ring.read(0, 0, 0, &[(GuestAddress(0), 512)]).is_err(), "no memory yet");
        ring.attach(ram.memory()).unwrap();
        ram.take_device_dirty(&mut BitSet::new(64));
        ring.read(7, 1, 4096, &[(GuestAddress(PAGE), 1000), (GuestAddress(9 * PAGE), 3096)]).unwrap();
        assert!(ring.attach(ram.memory()).is_err(), "under way");
        assert_eq!(one_done(&mut ring), (7, Ok(4096)));
        let mut marked = BitSet::new(64);
        ram.take_device_dirty(&mut marked);
        assert_eq!(marked.iter().collect::<Vec<_>>(), [1, 9]);
        let mut found = vec![0; 1001];
        ram.memory().read_slice(&mut found, GuestAddress(PAGE)).unwrap();
        assert_eq!(found, [vec![2; 1000], vec![0]].concat());
        ring.write(8, 0, 512, &[(GuestAddress(PAGE), 512)]).unwrap();
        assert_eq!(one_done(&mut ring), (8, Ok(512)));
        ring.sync_data(9, 0).unwrap();
        assert_eq!(one_done(&mut ring), (9, Ok(0)));
        let mut found = vec![0; 1536];
        one.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [vec![1; 512], vec![2; 512], vec![1; 512]].concat());
        marked.clear();
        ram.take_device_dirty(&mut marked);
        assert!(marked.is_empty(), "a write to a file changes no memory");
        // Past its end a file has nothing.
        ring.read(10, 0, 8192, &[(GuestAddress(0), 512)]).unwrap();
        assert_eq!(one_done(&mut ring), (10, Ok(0)));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_a_full_ring_says_so() {
        let one = file(&[1; 4096]);
        let ram = Ram::new(4 * PAGE).unwrap();
        let mut ring = DiskRing::new(&[one.as_fd()]).unwrap();
        ring.attach(ram.memory()).unwrap();
        for (file, address, bytes) in [(1, 0, 512), (0, 4 * PAGE, 1), (0, 4 * PAGE - 1, 2), (0, u64::MAX, 512)] {
            assert!(ring.read(0, file, 0, &[(GuestAddress(address), bytes)]).is_err(), "{file} {address:#x} {bytes}");
        }
        assert_eq!(ring.room(), DISK_RING_REQUESTS_MAX as usize);
        for token in 0..DISK_RING_REQUESTS_MAX.into() {
            ring.read(token, 0, 0, &[(GuestAddress(0), 512)]).unwrap();
        }
        assert_eq!(ring.room(), 0);
        assert!(ring.read(0, 0, 0, &[(GuestAddress(0), 512)]).is_err());
        // Dropped with all of them under way.
        ring.submit().unwrap();
        drop(ring);
    }

    /// What a thread that a guest has taken over could try with the ring's descriptor and memory.
    #[test]
    fn the_ring_does_nothing_else() {
        let one = file(&[1; 4096]);
        let mut ring = DiskRing::new(&[one.as_fd()]).unwrap();
        let open = opcode::OpenAt::new(types::Fd(-100), c"/".as_ptr()).build();
        let plain = opcode::Fsync::new(types::Fd(one.as_raw_fd())).build();
        let linked = opcode::Fsync::new(types::Fixed(0)).build().flags(squeue::Flags::FIXED_FILE | squeue::Flags::IO_LINK);
        for (what, entry) in
            [("open", open), ("a file that is not registered", plain), ("another flag", linked), ("nop", opcode::Nop::new().build())]
        {
            // SAFETY: the one pointer is to a constant.
            unsafe { ring.ring.submission().push(&entry) }.unwrap();
            ring.enter(1).unwrap();
            assert_eq!(ring.ring.completion().next().unwrap().result(), -libc::EACCES, "{what}");
        }
        let submitter = ring.ring.submitter();
        assert_eq!(submitter.register_files_update(0, &[one.as_raw_fd()]).unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert_eq!(submitter.unregister_files().unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
