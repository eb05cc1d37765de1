//! Cloud images that a stock kernel really boots, laid out by `standin`: an initial RAM disk that mounts what `root=` names and hands over to the disk's own
//! system, which is busybox with an init, a shell on the serial port and a package with another kernel in it, not yet installed.
//!
//! ```text
//! initial RAM disk   of the kernel it lies beside: modules for virtio and XFS; root=UUID=... is looked for on the disks
//! root               busybox; /etc/inittab; says `up RELEASE ENTRY` when it runs, ENTRY by `rebec.entry=` of the command line
//! /usr/share/kernel  what the other kernel's package brings into /boot, configuration of the boot loader included
//! /sbin/upgrade      does what that package's postinst does, and says `upgraded`
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    guest,
    initramfs::Initramfs,
    modules,
    provision::Kernel,
    standin::{self, Installed},
};

/// How a distribution lays its disk out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One file system; GRUB with a menu of its own and a saved default.
    Debian,
    /// /boot apart, on XFS, with entries of the Boot Loader Specification.
    Rocky,
}

/// Root file system: what an upgrade writes has to fit too.
const ROOT_BYTES: u64 = 160 << 20;

const INITRAMFS_INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
while read module; do insmod $module; done < /modules/list
for word in $(cat /proc/cmdline); do
    case $word in root=*) root=${word#root=};; esac
done
tries=0
until device=$(findfs $root 2>/dev/null); do
    tries=$((tries+1))
    [ $tries -gt 200 ] && echo \"no file system is $root\" && exec sh
    sleep 0.05
done
mkdir -p /root && mount -o ro -t ext4 $device /root && mount --move /dev /root/dev && exec switch_root /root /sbin/init
";

const INITTAB: &str = "::sysinit:/etc/rc
::respawn:-/bin/sh
::restart:/sbin/init
::shutdown:/bin/umount -a -r
";

const RC: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -o remount,rw /
grep -q ' /boot ' /etc/fstab && mount /boot
for word in $(cat /proc/cmdline); do
    case $word in rebec.entry=*) entry=${word#*=};; esac
done
echo up $(uname -r) $entry
";

/// A package's files go to their places, and the boot loader's configuration is made anew.
const UPGRADE: &str = "#!/bin/sh
cp -a /usr/share/kernel/. /boot/ && sync && echo upgraded
";

/// Makes a disk that starts `old`, of two entries that it could start, and whose guest can upgrade itself to `new`.
pub fn write(image: &Path, layout: Layout, old: &Kernel, new: &Kernel) -> Result<()> {
    let work = tempfile::tempdir().context("make a folder for a cloud image")?;
    let path = |name: &str| work.path().join(name);
    let (old_ram_disk, new_ram_disk) = (initramfs(&path("old"), old)?, initramfs(&path("new"), new)?);
    let root = match layout {
        Layout::Debian => standin::UUID,
        Layout::Rocky => standin::ROOT_UUID,
    };
    let cmdline = |entry: &str| format!("root=UUID={root} ro {} rebec.entry={entry}", guest::cmdline());
    let cmdlines = [cmdline("first"), cmdline("saved"), cmdline("upgraded")];
    let rescue = format!("{}-rescue", old.release);
    let first = Installed { version: &rescue, kernel: &old.bzimage, initramfs: Some(&old_ram_disk), cmdline: &cmdlines[0] };
    let saved = Installed { version: &old.release, cmdline: &cmdlines[1], ..first };
    let upgraded = Installed { version: &new.release, kernel: &new.bzimage, initramfs: Some(&new_ram_disk), cmdline: &cmdlines[2] };

    let tree = path("tree");
    system(&tree)?;
    let package = tree.join("usr/share/kernel");
    let all = [upgraded, first, saved];
    let entry = |kernel: &Installed<'_>| match layout {
        Layout::Debian => {
            format!("gnulinux-advanced-{0}>gnulinux-{1}-advanced-{0}", standin::UUID, kernel.version)
        }
        Layout::Rocky => format!("0123-{}", kernel.version),
    };
    let env = |kernel: &Installed<'_>| format!("saved_entry={}\n", entry(kernel));
    match layout {
        Layout::Debian => standin::debian_boot(&package, &all, &env(&upgraded))?,
        Layout::Rocky => standin::fedora_boot(&package, &all, &env(&upgraded))?,
    }
    // Those are installed already.
    for version in [&rescue, &old.release] {
        for name in ["vmlinuz", "initrd.img"] {
            fs::remove_file(package.join(format!("{name}-{version}"))).context("leave an installed kernel out of a package")?;
        }
    }
    let installed = [first, saved];
    match layout {
        Layout::Debian => standin::debian(image, Some(&tree), ROOT_BYTES, &installed, &env(&saved)),
        Layout::Rocky => standin::fedora(image, standin::Boot::Xfs, Some(&tree), ROOT_BYTES, &installed, &env(&saved)),
    }
}

fn initramfs(path: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let mut tree = Initramfs::with_busybox()?;
    tree.program("init", INITRAMFS_INIT);
    tree.folder("root");
    tree.modules("modules", modules::closure(kernel, &["virtio_pci", "virtio_blk", "virtio_rng", "xfs"])?);
    tree.write(path)?;
    Ok(path.to_owned())
}

fn system(folder: &Path) -> Result<()> {
    let mut tree = Initramfs::with_busybox()?;
    tree.folder("boot");
    tree.folder("usr/share/kernel");
    tree.program("etc/inittab", INITTAB);
    tree.program("etc/passwd", "root:x:0:0:root:/:/bin/sh\n");
    tree.program("etc/rc", RC);
    tree.program("bin/upgrade", UPGRADE);
    fs::create_dir(folder).context("make a folder for a root")?;
    tree.unpack(folder)
}
