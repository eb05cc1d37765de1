//! The file systems that every program expects, and a root that can be left.

use std::{fs, io};

use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Type, place, flags, options; in the order of mounting.
const MOUNTS: [(&str, &str, MountFlags, &std::ffi::CStr); 9] = [
    ("proc", "/proc", PLAIN, c""),
    ("sysfs", "/sys", PLAIN, c""),
    ("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
    ("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), c"mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=1777"),
    ("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=0755"),
    ("tmpfs", "/tmp", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=1777"),
    ("securityfs", "/sys/kernel/security", PLAIN, c""),
    ("cgroup2", "/sys/fs/cgroup", PLAIN, c""),
];

/// Mounts them all; what could not be mounted is told, and the boot goes on.
pub fn prepare() -> Vec<String> {
    let mut notes = Vec::new();
    if let Err(error) = leave_rootfs() {
        notes.push(format!("the root stays the kernel's own: {error}; VMs are boxed in a little less tightly"));
    }
    for (kind, place, flags, options) in MOUNTS {
        let made = fs::create_dir_all(place).and_then(|()| mount(kind, place, kind, flags, Some(options)).map_err(io::Error::from));
        if let Err(error) = made {
            notes.push(format!("mount {place}: {error}; this kernel may lack {kind}"));
        }
    }
    notes
}

/// Makes `/` a mount of its own with the same content. The kernel's first root cannot be left by `pivot_root`
/// (pivot_root(2), EINVAL), which is how a VMM gets rid of the file system; a bind mount of it on top of it can.
fn leave_rootfs() -> io::Result<()> {
    fs::create_dir_all("/mnt")?;
    mount_bind("/", "/mnt")?;
    std::env::set_current_dir("/mnt")?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}
