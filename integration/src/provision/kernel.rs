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

use super::{
    archive::{Archive, Candidate, sha256},
    lock::{Lock, Locked},
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

    fn suite(self) -> &'static str {
        match self {
            Self::Lab | Self::Guest => "trixie",
            Self::Guest12 => "bookworm",
        }
    }

    /// The package that always depends on the newest kernel of its flavour.
    fn metapackage(self) -> &'static str {
        match self {
            Self::Lab => "linux-image-amd64",
            Self::Guest | Self::Guest12 => "linux-image-cloud-amd64",
        }
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
    let locked = lock.get(role.name()).cloned();
    let locked = match locked {
        Some(locked) if package_file(&locked).exists() => locked,
        Some(locked) => match fetch_locked(&locked)? {
            Some(()) => locked,
            None => resolve(role, Some(&locked), lock)?,
        },
        None => resolve(role, None, lock)?,
    };
    if locked.unlocked {
        say("provision", format_args!("{} {} is not locked: review integration/lock.toml", locked.name, locked.version));
    }
    unpack(&locked).with_context(|| format!("unpack {} {}", locked.name, locked.version))
}

fn package_file(locked: &Locked) -> PathBuf {
    paths::cache().join(format!("{}.deb", locked.sha256))
}

/// Downloads a locked package; none if the archive no longer has exactly that file.
fn fetch_locked(locked: &Locked) -> Result<Option<()>> {
    let archive = Archive::open(&locked.suite)?;
    let mut candidate = archive.exact(&locked.name, &locked.version)?;
    if candidate.is_none() {
        archive.refresh()?;
        candidate = archive.exact(&locked.name, &locked.version)?;
    }
    match candidate {
        Some(candidate) if candidate.sha256 == locked.sha256 => fetch(&archive, &candidate, locked).map(Some),
        _ => Ok(None),
    }
}

fn fetch(archive: &Archive, candidate: &Candidate, locked: &Locked) -> Result<()> {
    say("provision", format_args!("downloading {} {}", candidate.name, candidate.version));
    let file = archive.download(candidate)?;
    fs::rename(&file, package_file(locked)).with_context(|| format!("keep {}", file.display()))
}

/// Finds the newest kernel, downloads it and writes it into the lock file.
fn resolve(role: KernelRole, before: Option<&Locked>, lock: &mut Lock) -> Result<Locked> {
    let archive = Archive::open(role.suite())?;
    let meta = archive.newest(role.metapackage())?;
    let name = meta.depends.split([',', ' ']).find(|word| word.starts_with("linux-image-"));
    let name = name.with_context(|| format!("package {} {} depends on no kernel", meta.name, meta.version))?;
    let candidate = archive.newest(name)?;
    let locked = Locked {
        suite: role.suite().to_owned(),
        name: candidate.name.clone(),
        version: candidate.version.clone(),
        sha256: candidate.sha256.clone(),
        unlocked: true,
    };
    if let Some(before) = before {
        let gone = format!("{} {} is gone from the archive", before.name, before.version);
        say("provision", format_args!("{gone}; using {} {} (sha256 {})", locked.name, locked.version, locked.sha256));
    }
    fetch(&archive, &candidate, &locked)?;
    lock.set(role.name(), locked.clone())?;
    Ok(locked)
}

fn unpack(locked: &Locked) -> Result<Kernel> {
    let home = paths::cache().join(&locked.sha256);
    if !home.join("complete").exists() {
        say("provision", format_args!("unpacking {} {}", locked.name, locked.version));
        let package = package_file(locked);
        if sha256(&package)? != locked.sha256 {
            fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
            bail!("{} had other bytes than its digest says and was removed; run this again", package.display());
        }
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
        }
        Program::new("dpkg-deb").arg("--extract").arg(&package).arg(&home).quiet()?;
        // Debian 13 ships modules below /usr/lib, Debian 12 below /lib.
        let merged = home.join("usr/lib/modules");
        if merged.exists() {
            fs::create_dir_all(home.join("lib")).context("create lib")?;
            fs::rename(merged, home.join("lib/modules")).context("move modules to lib")?;
        }
        let release = release_in(&home)?;
        fs::rename(home.join("boot").join(format!("vmlinuz-{release}")), home.join("vmlinuz")).context("find the kernel")?;
        unpack_elf(&home.join("vmlinuz"), &home.join("vmlinux"))?;
        Program::new("depmod").arg("-b").arg(&home).arg(&release).quiet()?;
        fs::write(home.join("complete"), "").context("mark as complete")?;
    }
    let release = release_in(&home)?;
    Ok(Kernel {
        modules: home.join("lib/modules").join(&release),
        release,
        version: locked.version.clone(),
        bzimage: home.join("vmlinuz"),
        elf: home.join("vmlinux"),
    })
}

fn release_in(home: &Path) -> Result<String> {
    let folder = home.join("lib/modules");
    let mut entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let entry = entries.next().context("the package holds no modules")?.with_context(|| format!("read {}", folder.display()))?;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// Takes the ELF out of a bzImage (boot protocol 2.08: payload_offset at 0x248, payload_length at 0x24c).
fn unpack_elf(bzimage: &Path, elf: &Path) -> Result<()> {
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
    let packed = elf.with_extension("packed");
    fs::write(&packed, payload).with_context(|| format!("write {}", packed.display()))?;
    let tool = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        _ => bail!("{}: its payload is neither zstd nor lz4", bzimage.display()),
    };
    let (input, output) = (fs::File::open(&packed), fs::File::create(elf));
    let (input, output) = (input.context("open the payload")?, output.with_context(|| format!("create {}", elf.display()))?);
    Program::new(tool).arg("-dc").stdin(input).stdout(output).deadline(Duration::from_secs(60)).into_file()?;
    let magic = fs::read(elf).with_context(|| format!("read {}", elf.display()))?;
    if !magic.starts_with(b"\x7fELF") {
        bail!("{}: unpacking its payload gave no ELF", bzimage.display());
    }
    fs::remove_file(&packed).context("remove the payload")
}
