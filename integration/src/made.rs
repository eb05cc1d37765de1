//! Files that the lab makes out of others: whether one is still fresh, and file systems that are the same bytes for the same content.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::command::Program;

/// Whether `path` exists and is younger than everything it is made of.
pub fn newer(path: &Path, sources: &[&Path]) -> bool {
    let age = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let Some(made) = age(path) else { return false };
    sources.iter().all(|source| age(source).is_some_and(|changed| changed < made))
}

/// Makes an ext4 file system with a folder's content, the same bytes for the same content.
pub fn ext4(image: &Path, content: &Path, features: &str) -> Result<()> {
    const UUID: &str = "6f2d6c61-6265-4331-8000-7265626563aa";
    Program::new("mkfs.ext4")
        .args([
            "-q",
            "-F",
            "-m",
            "0",
            "-U",
            UUID,
            "-E",
            &format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=0"),
            "-O",
            features,
            "-d",
        ])
        .arg(content)
        .arg(image)
        .env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin")
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .quiet()
        .with_context(|| format!("make the file system {}", image.display()))
}
