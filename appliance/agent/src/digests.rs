//! Digests of the disk images in the depot, taken once by a process of their own (`rebec-vmm digests`) and kept beside them. VMMs move disks
//! that stand on an image by them; without them they read the whole image.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use rebec_migrate::base::{SUMMARY_BYTES, Summary};
use rebec_pool::key::Digest;

use crate::{agent::Agent, depot::Depot};

const EXTENSION: &str = "digests";

/// Digests of an image, where they are whole and of this program's version.
pub fn of(depot: &Depot, image: &Digest) -> Option<PathBuf> {
    let path = path(depot, image);
    is_whole(&path).unwrap_or(false).then_some(path)
}

/// Takes the digests of an image that is here, if they are not here too, and says so before. A failure costs moves their speed, and nothing else.
pub async fn ensure(agent: &Agent, image: &Digest, begins: impl Fn()) {
    if of(&agent.depot, image).is_some() {
        return;
    }
    begins();
    let _one_at_a_time = agent.depot.digesting.lock().await;
    if of(&agent.depot, image).is_none()
        && let Err(error) = take(agent, image).await
    {
        log::warn!("image {}: take its digests: {error:#}; moves will read all of it", image.short());
    }
}

/// Where they are, or would be.
pub fn path(depot: &Depot, image: &Digest) -> PathBuf {
    depot.path(image).with_extension(EXTENSION)
}

/// Whether a file of a depot has digests of an image that is not there.
pub fn is_orphan(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION) && !path.with_extension("").exists()
}

fn is_whole(path: &Path) -> Result<bool> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut end = [0; SUMMARY_BYTES];
    file.read_exact_at(&mut end, length.checked_sub(SUMMARY_BYTES as u64).context("too short")?)?;
    Ok(Summary::from_end(&end, length).is_ok())
}

async fn take(agent: &Agent, image: &Digest) -> Result<()> {
    let new = agent.depot.new_file()?;
    let mut command = tokio::process::Command::new(&agent.options.vmm);
    command
        .arg("digests")
        .arg(agent.depot.path(image))
        .stdin(Stdio::null())
        .stdout(new.reopen()?)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let ended = command.spawn().context("start `rebec-vmm digests`")?.wait_with_output().await?;
    if !ended.status.success() {
        bail!("{}", String::from_utf8_lossy(&ended.stderr).trim().trim_start_matches("rebec-vmm: "));
    }
    let path = path(&agent.depot, image);
    tokio::task::block_in_place(|| -> Result<()> {
        new.as_file().sync_all()?;
        new.persist(&path)?;
        Ok(())
    })
}
