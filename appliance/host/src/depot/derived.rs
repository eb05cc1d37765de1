//! What is made of a part once and kept beside it: the digests of a disk image, by which VMMs move the disks that stand on it without
//! reading it, and the ELF inside a kernel, or inside the one that an image's own disk would start, which saves each start its unpacking. Parts may
//! come from anywhere, so a sealed process (`rebec-vmm digests`, `rebec-vmm unpack`) reads them.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rebec_book::{key::Digest, record::ImageBody};
use rebec_migrate::base::{SUMMARY_BYTES, Summary};

use super::Depot;
use crate::handover::Handover;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Derived {
    /// Of a disk image.
    Digests,
    /// Of a kernel that is packed.
    Kernel,
    /// Of a disk image that says itself what starts.
    OwnKernel,
}

impl Derived {
    const ALL: [Self; 3] = [Self::Digests, Self::Kernel, Self::OwnKernel];

    fn extension(self) -> &'static str {
        match self {
            Self::Digests => "digests",
            Self::Kernel => "vmlinux",
            Self::OwnKernel => "starts",
        }
    }

    /// What has `rebec-vmm` make it.
    fn subcommand(self) -> &'static [&'static str] {
        match self {
            Self::Digests => &["digests"],
            Self::Kernel => &["unpack"],
            Self::OwnKernel => &["unpack", "--disk"],
        }
    }

    /// What is lost without it.
    fn loss(self) -> &'static str {
        match self {
            Self::Digests => "moves will read all of it",
            Self::Kernel | Self::OwnKernel => "each start will unpack it",
        }
    }

    /// How long it may take: what a part says must not hold up what is made of others. Digests take as long as a part is large.
    fn time_max(self) -> Option<Duration> {
        match self {
            Self::Digests => None,
            Self::Kernel | Self::OwnKernel => Some(super::judge::TIME_MAX),
        }
    }

    /// Where it is, or would be.
    fn path(self, depot: &Depot, part: &Digest) -> PathBuf {
        depot.path(part).with_extension(self.extension())
    }

    /// Where it is, if it is there, whole, and of this program's version.
    pub fn of(self, depot: &Depot, part: &Digest) -> Option<PathBuf> {
        let path = self.path(depot, part);
        let is_there = match self {
            Self::Digests => are_whole(&path).unwrap_or(false),
            // It got its name when all of it was on the disk.
            Self::Kernel | Self::OwnKernel => path.exists(),
        };
        is_there.then_some(path)
    }

    /// Makes it of a part that is here, if it is wanted and not there, and says so before. A failure costs time, and nothing else.
    async fn ensure(self, vmm: &Path, depot: &Depot, part: &Digest, begins: impl Fn()) {
        let is_wanted = || self.of(depot, part).is_none() && !(self == Self::Kernel && is_elf(&depot.path(part)));
        if !is_wanted() {
            return;
        }
        begins();
        let _one_at_a_time = depot.deriving.lock().await;
        if is_wanted()
            && let Err(error) = self.make(vmm, depot, part).await
        {
            log::warn!("part {}: rebec-vmm {}: {error:#}; {}", part.short(), self.subcommand().join(" "), self.loss());
        }
    }

    async fn make(self, vmm: &Path, depot: &Depot, part: &Digest) -> Result<()> {
        let new = depot.new_file()?;
        let mut handover = Handover::default();
        let mut command = tokio::process::Command::new(vmm);
        command.args(self.subcommand()).arg(handover.open(&depot.path(part))?);
        command.stdin(handover.send()?).stdout(new.reopen()?).stderr(Stdio::piped()).kill_on_drop(true);
        let work = command.spawn().context("start it")?.wait_with_output();
        let ended = match self.time_max() {
            Some(time) => tokio::time::timeout(time, work).await.with_context(|| format!("no end within {} s", time.as_secs()))??,
            None => work.await?,
        };
        if !ended.status.success() {
            bail!("{}", String::from_utf8_lossy(&ended.stderr).trim().trim_start_matches("rebec-vmm: "));
        }
        let path = self.path(depot, part);
        tokio::task::block_in_place(|| -> Result<()> {
            new.as_file().sync_all()?;
            new.persist(&path)?;
            Ok(())
        })
    }
}

/// Makes all that is made of an image's parts, which are here; `vmm` is the program that does.
pub async fn ensure(vmm: &Path, depot: &Depot, image: &ImageBody, begins: impl Fn()) {
    if let Some(kernel) = &image.kernel {
        Derived::Kernel.ensure(vmm, depot, &kernel.digest, &begins).await;
    }
    if let Some(disk) = &image.disk {
        Derived::Digests.ensure(vmm, depot, &disk.part.digest, &begins).await;
        if image.kernel.is_none() {
            Derived::OwnKernel.ensure(vmm, depot, &disk.part.digest, &begins).await;
        }
    }
}

/// Whether a file of a depot is made of a part that is not there.
pub fn is_orphan(path: &Path) -> bool {
    let is_derived = Derived::ALL.iter().any(|derived| path.extension().is_some_and(|extension| extension == derived.extension()));
    is_derived && !path.with_extension("").exists()
}

/// Removes what was made of a part.
pub fn remove(depot: &Depot, part: &Digest) -> std::io::Result<()> {
    for derived in Derived::ALL {
        match fs::remove_file(derived.path(depot, part)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn are_whole(path: &Path) -> Result<bool> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut end = [0; SUMMARY_BYTES];
    file.read_exact_at(&mut end, length.checked_sub(SUMMARY_BYTES as u64).context("too short")?)?;
    Ok(Summary::from_end(&end, length).is_ok())
}

/// Whether a kernel needs no unpacking.
fn is_elf(kernel: &Path) -> bool {
    let mut magic = [0; ELF_MAGIC.len()];
    File::open(kernel).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == ELF_MAGIC
}
