//! What VMs inside lab machines boot: an initramfs for a stock cloud kernel and a small root on a shared base disk.
//!
//! ```text
//! initramfs   busybox, virtio modules; finds /dev/vda, mounts it as root and hands over; without a disk it runs the
//!             workload itself
//! base        ext4: busybox and `rebec-workload`, which owns the serial console; the same bytes for the same programs
//! overlay     qcow2 over the base, one for each VM, in which all that it writes ends
//! ```
//! Words on the kernel command line: `rebec.name=NAME`, `rebec.ip=dhcp` or `=ADDRESS/LENGTH`, `rebec.shell` for a shell instead of the workload.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    artifacts::{self, Artifact},
    command::Program,
    initramfs::Initramfs,
    made::{ext4, newer},
    modules, paths,
    provision::{Kernel, exclusive},
};

/// Size of the base disk.
pub const DISK_BYTES: u64 = 256 << 20;

/// Words for the kernels of guests in emulated machines and of these machines, for work that takes seconds there: self-tests of ciphers, clearing
/// each page twice, patching code for the only processor, the quality of jitter as entropy, and names for tracing (docs/notes/qemu-lab.md, "Boot").
pub const SPARING: &str = "cryptomgr.notests init_on_alloc=0 noreplace-smp \
                           initcall_blacklist=jent_mod_init,ftrace_check_for_weak_functions,trace_eval_init";

/// What is asked of a stock kernel, beyond where the root is.
pub fn cmdline() -> String {
    format!("console=ttyS0 loglevel=4 panic=-1 mitigations=off audit=0 random.trust_cpu=on {SPARING}")
}

/// Without udev nothing loads these by itself.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng"];

const INITRAMFS_INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
while read module; do insmod $module; done < /modules/list
if [ -e /sys/bus/virtio/drivers/virtio_blk ] && grep -qs 0x0002 /sys/bus/virtio/devices/*/device; then
    until [ -b /dev/vda ]; do sleep 0.05; done
    mkdir -p /root && mount -t ext4 /dev/vda /root && mount --move /dev /root/dev && exec switch_root /root /init
    echo 'rebec: /dev/vda holds no root file system'
fi
exec /start
";

const ROOT_INIT: &str = "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
exec /start
";

const START: &str = "#!/bin/sh
export PATH=/bin HOME=/ TERM=dumb
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=0755 run /run
ip link set lo up
sysctl -qw net.ipv4.ping_group_range='0 2147483647'
shell=
for word in $(cat /proc/cmdline); do
    case $word in
        rebec.name=*) hostname ${word#*=};;
        rebec.ip=dhcp) ip link set eth0 up && udhcpc -q -f -n -i eth0 -s /bound;;
        rebec.ip=*) ip addr add ${word#*=} dev eth0 && ip link set eth0 up;;
        rebec.shell) shell=yes;;
    esac
done
[ -n \"$shell\" ] && setsid cttyhack sh
/bin/rebec-workload console
poweroff -f
";

/// What the DHCP client runs with what it was told in its environment.
const BOUND: &str = "#!/bin/sh
[ \"$1\" = bound ] || exit 0
ip link set eth0 mtu $mtu
ip addr add $ip/$mask dev eth0
[ -z \"$router\" ] || ip route add default via $router
echo \"dhcp $ip/$mask mtu $mtu from $serverid for $lease s\"
[ -n \"$dns\" ] || exit 0
printf 'search %s\\nnameserver %s\\n' \"$domain\" \"$dns\" > /etc/resolv.conf
name=$(nslookup $ip 2>&1 | sed -n 's/.*name = //p')
echo \"named $name at $(nslookup $name 2>&1 | sed -n 's/^Address: //p' | tail -n 1)\"
";

/// Files a lab machine needs to run a VM.
pub struct GuestFiles {
    /// For [`cmdline`]'s kernel.
    pub initramfs: PathBuf,
    /// The shared base disk, raw.
    pub base: PathBuf,
}

/// Makes the initramfs for a kernel, and the base disk.
pub fn files(kernel: &Kernel) -> Result<GuestFiles> {
    let workload = artifacts::build(Artifact::Workload)?;
    let _one_at_a_time = exclusive("images")?;
    fs::create_dir_all(paths::images()).context("create the images folder")?;
    let initramfs = paths::images().join(format!("guest-{}.cpio", kernel.release));
    let base = paths::images().join("guest-base.raw");
    let this = std::env::current_exe().context("find this program")?;
    if !newer(&initramfs, &[&workload, &kernel.bzimage, &this]) {
        let mut tree = system(&workload)?;
        tree.program("init", INITRAMFS_INIT);
        tree.modules("modules", modules::closure(kernel, MODULES)?);
        let fresh = initramfs.with_extension("new");
        tree.write(&fresh)?;
        fs::rename(&fresh, &initramfs).context("keep the guest's initramfs")?;
    }
    if !newer(&base, &[&workload, &this]) {
        let fresh = base.with_extension("new");
        write_base(&fresh, &workload)?;
        fs::rename(&fresh, &base).context("keep the guest's base disk")?;
    }
    Ok(GuestFiles { initramfs, base })
}

/// Makes a qcow2 disk over a base that lies at `backing` where the disk will be used.
pub fn overlay(path: &Path, backing: &str) -> Result<()> {
    Program::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-u", "-b", backing])
        .arg(path)
        .arg(DISK_BYTES.to_string())
        .quiet()
        .with_context(|| format!("create the disk {}", path.display()))
}

/// The base disk as people hand disks to a pool: qcow2, without what was never written.
pub fn packed_base(files: &GuestFiles) -> Result<PathBuf> {
    let _one_at_a_time = exclusive("images")?;
    let packed = files.base.with_extension("qcow2");
    if !newer(&packed, &[&files.base]) {
        let fresh = packed.with_extension("new");
        let convert = Program::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&files.base).arg(&fresh);
        convert.quiet().with_context(|| format!("pack {}", files.base.display()))?;
        fs::rename(&fresh, &packed).with_context(|| format!("write {}", packed.display()))?;
    }
    Ok(packed)
}

fn system(workload: &Path) -> Result<Initramfs> {
    let mut tree = Initramfs::with_busybox()?;
    tree.program("start", START);
    tree.program("bound", BOUND);
    tree.host_file("bin/rebec-workload", workload)?;
    Ok(tree)
}

fn write_base(image: &Path, workload: &Path) -> Result<()> {
    let mut tree = system(workload)?;
    tree.program("init", ROOT_INIT);
    tree.program("data/README", "Blocks written by the workload go here.\n");
    let folder = tempfile::tempdir_in(paths::images()).context("create a folder for the base disk")?;
    tree.unpack(folder.path())?;
    let file = fs::File::create(image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(DISK_BYTES).with_context(|| format!("size {}", image.display()))?;
    ext4(image, folder.path(), "has_journal")
}
