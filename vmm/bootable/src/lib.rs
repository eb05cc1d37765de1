//! What would start from a disk: the kernel, the initial RAM disk and the command line that the boot loader installed on it would take.
//!
//! The road, in order: `disk` is the bytes, read within a budget; `partitions` finds where file systems lie; `volumes` opens those that can
//! be read; `grub`, `entries` (Boot Loader Specification), `unified` (kernel images of EFI) and `syslinux` read what their boot loaders
//! read; `plain` looks for a kernel where distributions put one; `choice` asks them in the order in which a machine would.
//!
//! Nothing is run and nothing is written: what a boot loader would write so that a choice counts once ([`Forget`]) is for whoever starts
//! the kernel, and tries that are left are not counted. Every byte of a disk is hostile: nothing panics, and tables, files, entries, depth and bytes read are
//! limited. No KVM and no file of the host is known here; whoever calls brings a [`ReadAt`].

mod disk;
mod partitions;
mod volumes;

mod entries;
mod grub;
mod plain;
mod syslinux;
mod unified;
mod version;

mod choice;

#[cfg(test)]
mod tests;

pub use choice::{Refusal, Start, find, find_traced};
pub use disk::ReadAt;

/// Largest kernel: stock ones are at 8 to 16 MB.
pub const KERNEL_BYTES_MAX: u64 = 64 << 20;
/// All initial RAM disks of one entry together.
pub const INITRAMFS_BYTES_MAX: u64 = 512 << 20;
/// Largest file of words: grub.cfg has some 20 kB.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Entries of a folder that are looked at.
const NAMES_MAX: usize = 1024;

/// Bytes by which a boot loader forgets a choice that was for one start (GRUB's `next_entry`): they replace as many on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    /// Where.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// What an entry of a boot loader names, before it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    /// As the user sees it.
    title: String,
    /// Volume and path.
    kernel: (usize, String),
    initramfs: Vec<(usize, String)>,
    cmdline: String,
}

/// A text file's lines, whatever its bytes.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// `relative` as a path from the root of its file system, with `folder` before it where it does not begin there.
fn absolute(folder: &str, relative: &str) -> String {
    if relative.starts_with('/') { relative.to_owned() } else { format!("{}/{relative}", folder.trim_end_matches('/')) }
}
