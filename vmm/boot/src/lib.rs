//! Boot: a kernel file becomes guest memory that a vCPU can be started in.
//!
//! The road, in order: `rebec_layout` says where everything lies, `content` holds bytes that wait in a file or in memory,
//! `kernel` turns a bzImage or an ELF file into validated segments and a PVH entry, `acpi` describes the machine,
//! `start_info` tells the kernel about memory, initramfs and command line, `load` puts all of it in place.
//!
//! It is not a boot loader for every protocol: the one entry is PVH (xen/include/public/arch-x86/hvm/start_info.h), so a
//! bzImage is unpacked here and entered where its ELF says, never through its own decompressor. Nothing here knows KVM;
//! registers are set by whoever owns the vCPU, from [`Entry`].
//!
//! Every byte of a kernel file is hostile until `kernel` has checked it.

mod acpi;
mod content;
mod kernel;
mod load;
mod ram;
mod start_info;

pub use content::Content;
pub use kernel::{Compression, ElfError, KernelError, KernelFormat, KernelImage, Segment};
pub use load::{BootConfig, BootError, Entry, load};
pub use ram::GuestRam;
