//! The pages that KVM shares with its user for each vCPU (`struct kvm_run` and the data of port I/O), mapped once more.
//!
//! kvm-ioctls owns the first mapping and hands it out by `&mut`. Mappings of this type are reached by raw pointers only: the
//! kickers' one so that another thread may set `immediate_exit` while KVM_RUN is under way, the vCPU's one so that port I/O is
//! seen with its element size.
//!
//! Rust's rules are kept by never forming a reference to memory that KVM may write: reads copy, and the one slice that is
//! formed (port data) exists only between two KVM_RUNs, on the thread that makes them.

use std::{
    ffi::c_void,
    mem::{offset_of, size_of},
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU8, Ordering},
};

use kvm_bindings::{KVM_EXIT_IO_IN, kvm_run, kvm_run__bindgen_ty_1};
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags};

use crate::Bus;

/// A second mapping of one vCPU's run pages.
#[derive(Debug)]
pub(crate) struct RunPage {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; `immediate_exit` is only touched atomically, everything else by the one thread that
// owns the vCPU (`serve_io` and `internal_error` take `&mut self`).
unsafe impl Send for RunPage {}
// SAFETY: as above: what `&RunPage` lets other threads reach is the atomic.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the run pages of a vCPU; `bytes` is what KVM says their size is.
    pub fn map(vcpu: &VcpuFd, bytes: usize) -> Result<Self, rustix::io::Errno> {
        if bytes < size_of::<kvm_run>() {
            return Err(rustix::io::Errno::INVAL);
        }
        // SAFETY: the descriptor is open as long as the `VcpuFd` that is borrowed here.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)? };
        Ok(Self { start: NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?, bytes })
    }

    /// Asks KVM to leave KVM_RUN at once, now or at its next entry.
    pub fn request_exit(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// Takes the request back; whether there was one.
    pub fn take_exit_request(&self) -> bool {
        self.immediate_exit().swap(0, Ordering::SeqCst) != 0
    }

    /// Serves the port access that KVM_RUN has just returned with; element by element, as string instructions have many.
    pub fn serve_io(&mut self, bus: &dyn Bus) -> Result<(), String> {
        // SAFETY: the caller's KVM_RUN returned with KVM_EXIT_IO, so this member of the union is the one that was written.
        let io = unsafe { self.exit_detail().io };
        let element = usize::from(io.size);
        let bytes = element * io.count as usize;
        let offset = io.data_offset as usize;
        if element == 0 || offset < size_of::<kvm_run>() || offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(format!("port data of {} elements of {element} bytes at {offset} of the run pages", io.count));
        }
        // SAFETY: checked above: the bytes lie in the mapping, behind `kvm_run` and so apart from the atomic. KVM leaves them
        // alone until the next KVM_RUN, which the caller, who owns the vCPU, makes after this returns.
        let data = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(offset), bytes) };
        for element in data.chunks_exact_mut(element) {
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                bus.pio_read(io.port, element);
            } else {
                bus.pio_write(io.port, element);
            }
        }
        Ok(())
    }

    /// The sub-error and data of the internal error that KVM_RUN has just returned with.
    pub fn internal_error(&mut self) -> (u32, Vec<u64>) {
        // SAFETY: the caller's KVM_RUN returned with KVM_EXIT_INTERNAL_ERROR, so this member of the union is the one written.
        let internal = unsafe { self.exit_detail().internal };
        let known = internal.data.len().min(internal.ndata as usize);
        (internal.suberror, internal.data[..known].to_vec())
    }

    fn exit_detail(&mut self) -> kvm_run__bindgen_ty_1 {
        // SAFETY: the offset lies inside `kvm_run`, which the mapping holds entirely (checked in `map`).
        let at = unsafe { self.start.as_ptr().add(offset_of!(kvm_run, __bindgen_anon_1)) };
        // SAFETY: the union is plain old data, aligned as in `kvm_run` at the start of a page, and copied out between KVM_RUNs.
        unsafe { at.cast::<kvm_run__bindgen_ty_1>().read() }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the offset lies inside `kvm_run`, which the mapping holds entirely (checked in `map`).
        let at = unsafe { self.start.as_ptr().add(offset_of!(kvm_run, immediate_exit)) };
        // SAFETY: the byte is mapped as long as `self` and reached only atomically through this mapping; KVM only reads it.
        unsafe { AtomicU8::from_ptr(at) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this size, and nothing borrowed from it outlives `self`.
        if let Err(errno) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast::<c_void>(), self.bytes) } {
            log::error!("unmap a vCPU's run pages: {errno}");
        }
    }
}
