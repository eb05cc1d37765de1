//! Kernels kept unpacked (`--kernel-cache`): a bzImage costs its unpacking once, and not at every start.
//!
//! A kept kernel is named by the digest of the bzImage it came from, so another kernel under an old name is another file. It appears
//! whole or not at all, and is unpacked by a sealed process of its own: no VM can write what another VM starts from.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

use super::Named;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const THIS_PROGRAM: &str = "/proc/self/exe";
const STDIN: &str = "/proc/self/fd/0";

/// The same kernel, unpacked, from `folder`; unpacked into it now if it is not there. An ELF is what it is already.
pub fn unpacked(kernel: Named, folder: &Path) -> Result<Named> {
    let digest = match digest(&kernel.file).with_context(|| format!("kernel {}: read", kernel.path.display()))? {
        Some(digest) => digest,
        None => return Ok(kernel),
    };
    let kept = folder.join(format!("{}.vmlinux", digest.to_hex()));
    let file = match File::open(&kept) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            unpack(&kernel, folder, &kept)?;
            File::open(&kept)
        }
        other => other,
    };
    let file = file.with_context(|| format!("kernel cache {}: open", kept.display()))?;
    Ok(Named { path: kernel.path, file })
}

/// Of the whole file; `None` if it needs no unpacking.
fn digest(file: &File) -> io::Result<Option<blake3::Hash>> {
    let mut file = file.try_clone()?;
    let mut magic = Vec::new();
    (&mut file).take(ELF_MAGIC.len() as u64).read_to_end(&mut magic)?;
    if magic == ELF_MAGIC {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&magic).update_reader(file)?;
    Ok(Some(hasher.finalize()))
}

/// Unpacks into a file with a name of its own, and gives it the name that counts when all of it is on the disk.
fn unpack(kernel: &Named, folder: &Path, kept: &Path) -> Result<()> {
    let what = || format!("kernel cache {}", folder.display());
    let out = NamedTempFile::new_in(folder).with_context(|| format!("{}: make a file; does the folder exist?", what()))?;
    let child = Command::new(THIS_PROGRAM)
        .args(["unpack", STDIN])
        .stdin(kernel.file.try_clone().with_context(what)?)
        .stdout(out.reopen().with_context(what)?)
        .stderr(Stdio::piped())
        .output()
        .context("start `rebec-vmm unpack`")?;
    let said = String::from_utf8_lossy(&child.stderr);
    ensure!(child.status.success(), "kernel {}: unpack: {}", kernel.path.display(), said.trim().trim_start_matches("rebec-vmm: "));
    out.as_file().sync_all().with_context(what)?;
    // Somebody else may have been faster, with the same bytes.
    out.persist(kept).with_context(|| format!("kernel cache {}: name the file", kept.display()))?;
    log::info!("kernel {}: unpacked, and kept as {}", kernel.path.display(), kept.display());
    Ok(())
}
