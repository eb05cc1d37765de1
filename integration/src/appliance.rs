//! The appliance's image, made of our own programs, and what the lab adds to it to reach into its machines.
//!
//! ```text
//! image/              vmlinuz, initrd.img, rebec.iso, manifest.json, as users get them
//! images/appliance-lab.cpio   the lab's programs and that initrd, one after the other: the kernel unpacks both
//!       /appliance-vmlinux   the kernel, unpacked
//! ```
//! PID 1 of the appliance starts `/lab/start` if there is such a file; only here there is one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use rebec_image_build::{
    cpio::Tree,
    image::{self, Order},
};

use crate::{
    artifacts::{self, Artifact},
    command::Program,
    made::newer,
    paths,
    progress::say,
    provision::{exclusive, kernel::unpack_elf},
};

/// What an ISO may take.
const ISO_BYTES_MAX: u64 = 84_000_000;
const BUSYBOX: &str = "/bin/busybox";
/// The kernel unpacks an archive only from a multiple of this.
const ALIGNMENT: usize = 4;

/// An image that was built.
#[derive(Debug, Clone)]
pub struct Appliance {
    folder: PathBuf,
}

impl Appliance {
    /// The image in a folder, as it is.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Builds the programs and the image, if something changed since the last time.
    pub fn build() -> Result<Self> {
        let (rebec, vmm) = (artifacts::build(Artifact::Rebec)?, artifacts::build(Artifact::Vmm)?);
        let _one_at_a_time = exclusive("appliance")?;
        let appliance = Self { folder: paths::lab().join("image") };
        let (lock, this) = (lock(), std::env::current_exe().context("find this program")?);
        if newer(&appliance.folder.join("manifest.json"), &[&rebec, &vmm, &lock, &this]) {
            return Ok(appliance);
        }
        say("image", format_args!("building in {}", appliance.folder.display()));
        let order = Order { rebec, vmm, out: appliance.folder.clone(), cache: paths::cache(), lock, newest: false, firmware: vec![] };
        image::build(&order)?;
        let iso_bytes = appliance.iso_bytes()?;
        if iso_bytes > ISO_BYTES_MAX {
            bail!("{} has {:.1} MB, at most {:.0} are allowed", appliance.iso().display(), mega(iso_bytes), mega(ISO_BYTES_MAX));
        }
        Ok(appliance)
    }

    /// The kernel.
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The ELF inside the kernel: QEMU starts it at once, where an emulated processor needs seconds to unpack the kernel as shipped.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let _one_at_a_time = exclusive("images")?;
        fs::create_dir_all(paths::images()).context("create the images folder")?;
        let path = paths::images().join("appliance-vmlinux");
        if !newer(&path, &[&self.vmlinuz()]) {
            unpack_elf(&self.vmlinuz(), &path)?;
        }
        Ok(path)
    }

    /// The initrd.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd.img")
    }

    /// The hybrid ISO.
    pub fn iso(&self) -> PathBuf {
        self.folder.join("rebec.iso")
    }

    /// Its size.
    pub fn iso_bytes(&self) -> Result<u64> {
        Ok(fs::metadata(self.iso()).with_context(|| format!("size of {}", self.iso().display()))?.len())
    }

    /// The initrd with the lab's programs in front.
    pub fn lab_initrd(&self) -> Result<PathBuf> {
        let agent = artifacts::build(Artifact::Agent)?;
        let _one_at_a_time = exclusive("images")?;
        fs::create_dir_all(paths::images()).context("create the images folder")?;
        let path = paths::images().join("appliance-lab.cpio");
        let (initrd, this) = (self.initrd(), std::env::current_exe().context("find this program")?);
        if newer(&path, &[&agent, &initrd, &this]) {
            return Ok(path);
        }
        let mut bytes = lab_programs(&agent)?.to_bytes();
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(fs::read(&initrd).with_context(|| format!("read {}", initrd.display()))?);
        let fresh = path.with_extension("new");
        fs::write(&fresh, bytes).with_context(|| format!("write {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// The lock file of the image's packages.
pub fn lock() -> PathBuf {
    paths::workspace().join("image-build/lock.toml")
}

/// Bytes in millions.
pub fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// The lab's agent, and busybox where the appliance's PID 1 lets programs look for others.
fn lab_programs(agent: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    tree.host_file("lab/start", agent)?;
    tree.folder("share");
    tree.host_file("usr/bin/busybox", Path::new(BUSYBOX))?;
    let listing = Program::new(BUSYBOX).arg("--list").output()?;
    for applet in listing.lines().filter(|applet| *applet != "busybox") {
        tree.link(&format!("usr/bin/{applet}"), "/usr/bin/busybox");
    }
    Ok(tree)
}
