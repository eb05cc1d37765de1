//! Kernels of the lab: from a Debian package to the files a machine boots.
//!
//! A package is downloaded once, kept in the cache under its digest, and unpacked beside it:
//! ```text
//! cache/<sha256>.deb       the package
//! cache/<sha256>/vmlinuz   bzImage as shipped
//!               /vmlinux   the ELF inside it
//!               /lib/modules/<release>/...  with modules.dep
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rebec_image_build::{
    archive::MAIN,
    lock::Lock,
    package::{Store, Wanted},
};

use crate::{command::Program, paths, progress::say};

/// What a kernel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelRole {
    /// Lab machines: needs kvm-amd, vxlan, netem.
    Lab,
    /// Guests: Debian 13's kernel for clouds.
    Guest,
    /// Guests: Debian 12's kernel for clouds.
    Guest12,
}

impl KernelRole {
    /// All of them, in the order of [`super::Provisions`].
    pub const ALL: [Self; 3] = [Self::Lab, Self::Guest, Self::Guest12];

    /// Key in the lock file.
    fn name(self) -> &'static str {
        match self {
            Self::Lab => "lab-kernel",
            Self::Guest => "guest-kernel",
            Self::Guest12 => "guest-kernel-12",
        }
    }

    /// The package that always depends on the newest kernel of its flavour.
    fn wanted(self) -> Wanted<'static> {
        let (suite, package) = match self {
            Self::Lab => ("trixie", "linux-image-amd64"),
            Self::Guest => ("trixie", "linux-image-cloud-amd64"),
            Self::Guest12 => ("bookworm", "linux-image-cloud-amd64"),
        };
        Wanted { suite, component: MAIN, package, follow: Some("linux-image-") }
    }
}

/// A kernel, unpacked.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `uname -r` of it.
    pub release: String,
    /// The package's version.
    pub version: String,
    /// The kernel as shipped.
    pub bzimage: PathBuf,
    /// The ELF inside it.
    pub elf: PathBuf,
    /// The folder with `modules.dep`.
    pub modules: PathBuf,
}

/// Brings the kernel of a role: from the cache, or from the archive.
pub fn ensure(role: KernelRole, lock: &mut Lock) -> Result<Kernel> {
    let store = Store::open(&paths::cache())?;
    let before = lock.get(role.name()).cloned();
    let locked = store.ensure(role.wanted(), before.as_ref())?;
    if before.as_ref() != Some(&locked) {
        lock.set(role.name(), locked.clone())?;
    }
    if locked.unlocked {
        say("provision", format_args!("{} {} is not locked: review integration/lock.toml", locked.name, locked.version));
    }
    let kernel = rebec_image_build::kernel::unpack(&store, &locked)?;
    let elf = kernel.home.join("vmlinux");
    if !elf.exists() {
        unpack_elf(&kernel.bzimage, &elf)?;
    }
    Ok(Kernel { release: kernel.release, version: locked.version, bzimage: kernel.bzimage, elf, modules: kernel.modules })
}

/// Takes the ELF out of a bzImage (boot protocol 2.08: payload_offset at 0x248, payload_length at 0x24c).
pub fn unpack_elf(bzimage: &Path, elf: &Path) -> Result<()> {
    const SIZE_TRAILER_BYTES: usize = 4;
    let image = fs::read(bzimage).with_context(|| format!("read {}", bzimage.display()))?;
    let word = |at: usize| image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let fields = (image.get(0x1f1).copied(), word(0x248), word(0x24c));
    let (Some(setup_sectors), Some(offset), Some(length)) = fields else {
        bail!("{} is too short for a bzImage", bzimage.display());
    };
    let start = (usize::from(setup_sectors.max(4)) + 1) * 512 + offset as usize;
    // The compressed stream is followed by its unpacked size.
    let end = (start + length as usize).saturating_sub(SIZE_TRAILER_BYTES);
    let payload = image.get(start..end).with_context(|| format!("{}: its payload lies outside the file", bzimage.display()))?;
    let (packed, whole) = (elf.with_extension("packed"), elf.with_extension("new"));
    fs::write(&packed, payload).with_context(|| format!("write {}", packed.display()))?;
    let tool = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        _ => bail!("{}: its payload is neither zstd nor lz4", bzimage.display()),
    };
    let (input, output) = (fs::File::open(&packed), fs::File::create(&whole));
    let (input, output) = (input.context("open the payload")?, output.with_context(|| format!("create {}", whole.display()))?);
    Program::new(tool).arg("-dc").stdin(input).stdout(output).deadline(Duration::from_secs(60)).into_file()?;
    let magic = fs::read(&whole).with_context(|| format!("read {}", whole.display()))?;
    if !magic.starts_with(b"\x7fELF") {
        bail!("{}: unpacking its payload gave no ELF", bzimage.display());
    }
    fs::remove_file(&packed).context("remove the payload")?;
    fs::rename(&whole, elf).with_context(|| format!("write {}", elf.display()))
}
