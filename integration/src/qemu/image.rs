//! What lab machines boot, and what they find on their shared disk.
//!
//! One initramfs serves every machine: busybox, the agent and the modules of the lab's kernel. Programs under test,
//! kernels and disks of guests come on a read-only ext4 disk mounted on `/share`, so that they are read when needed
//! and not unpacked into memory at every boot.

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

/// Modules of a lab machine: what it runs on, and what tests in it use.
const MODULES: &[&str] = &[
    "kvm_amd",
    "kvm_intel",
    "virtio_net",
    "virtio_blk",
    "virtio_rng",
    // ext4 asks for it by algorithm, which modules.dep does not tell.
    "crc32c_generic",
    "ext4",
    "vxlan",
    "veth",
    "tun",
    "bridge",
    "sch_netem",
    "sch_tbf",
    "sch_fq",
];

const SETUP: &str = "#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm /share /work
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=0755,size=80% work /work
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mkdir -p /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
sysctl -qw net.ipv4.ping_group_range='0 2147483647' kernel.printk='3 4 1 3'
";

const INITTAB: &str = "::sysinit:/lab/setup
::respawn:/lab/agent
::ctrlaltdel:/bin/poweroff -f
";

/// Writes the initramfs of lab machines.
pub fn lab_initramfs(kernel: &Kernel) -> Result<PathBuf> {
    let agent = artifacts::build(Artifact::Agent)?;
    let _one_at_a_time = exclusive("images")?;
    fs::create_dir_all(paths::images()).context("create the images folder")?;
    let path = paths::images().join(format!("lab-{}.cpio", kernel.release));
    if newer(&path, &[&agent, &kernel.bzimage, &std::env::current_exe().context("find this program")?]) {
        return Ok(path);
    }
    let mut tree = Initramfs::with_busybox()?;
    tree.link("init", "bin/init");
    tree.program("etc/inittab", INITTAB);
    tree.program("etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    tree.program("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    tree.program("lab/setup", SETUP);
    tree.host_file("lab/agent", &agent)?;
    tree.modules("lab/modules", modules::closure(kernel, MODULES)?);
    let fresh = path.with_extension("new");
    tree.write(&fresh)?;
    fs::rename(&fresh, &path).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Files for a machine's `/share`.
#[derive(Debug, Default, Clone)]
pub struct Share {
    files: Vec<(String, PathBuf)>,
}

impl Share {
    /// Adds a file of the host under a name with folders.
    #[must_use]
    pub fn with(mut self, name: &str, source: &Path) -> Self {
        self.files.push((name.to_owned(), source.to_owned()));
        self
    }

    /// Makes the disk image. Sparse files stay sparse.
    pub fn write(&self, image: &Path) -> Result<()> {
        const SLACK_BYTES: u64 = 32 << 20;
        let tree = tempfile::tempdir_in(image.parent().unwrap_or(Path::new("."))).context("create a folder for the share")?;
        let mut size = SLACK_BYTES;
        for (name, source) in &self.files {
            let target = tree.path().join(name);
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).context("create a folder for the share")?;
            }
            Program::new("cp").args(["--sparse=always", "--dereference"]).arg(source).arg(&target).quiet()?;
            // A tenth more for the file system's own tables.
            size += fs::metadata(&target).with_context(|| format!("read {}", target.display()))?.len() / 10 * 11;
        }
        let file = fs::File::create(image).with_context(|| format!("create {}", image.display()))?;
        file.set_len(size).with_context(|| format!("size {}", image.display()))?;
        drop(file);
        ext4(image, tree.path(), "^has_journal")
    }
}
