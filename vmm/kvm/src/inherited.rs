//! Descriptors that whoever started this process left open by mistake.

use std::{fs, os::fd::RawFd};

use crate::error::{Result, process};

/// The first after standard input, output and error.
const FIRST: RawFd = 3;

/// Closes every descriptor that came over exec, but for standard input, output and error: nobody here asked for it.
pub fn close_inherited() -> Result<()> {
    let open = fs::read_dir("/proc/self/fd").map_err(process("list this process's descriptors"))?;
    let numbers: Vec<RawFd> = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number >= FIRST) {
        // SAFETY: asks for flags, of whatever the number is.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: what came over exec is not close-on-exec, and what this program opens is: the standard library, rustix, nix and
            // kvm-ioctls all ask for that. So no value of this program owns the number.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}
