//! The bench guest as a file: built with its own flags, so that tests always have the one of their checkout.

use std::{path::PathBuf, sync::Mutex, time::Duration};

use anyhow::{Context as _, Result};

use super::VmmConfig;
use crate::{command::Program, paths};

/// A first build takes seconds; a busy machine takes longer.
const BUILD_DEADLINE: Duration = Duration::from_secs(300);

/// Builds the bench guest and returns its ELF. Cargo decides what has to be done.
pub fn build() -> Result<PathBuf> {
    // Threads of one test program would only wait for cargo's lock, and say so.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let target = paths::lab().join("bench-guest");
    // The flags of a program without a host are in the folder's own .cargo/config.toml, which these variables would override.
    Program::new("env")
        .args(["-u", "RUSTFLAGS", "-u", "CARGO_ENCODED_RUSTFLAGS", "-u", "CARGO_BUILD_TARGET"])
        .args(["cargo", "build", "--quiet", "--release", "--target-dir"])
        .arg(&target)
        .folder(paths::workspace().join("integration/guest"))
        .deadline(BUILD_DEADLINE)
        .quiet()
        .context("build the bench guest")?;
    Ok(target.join("x86_64-unknown-linux-gnu/release/rebec-bench-guest"))
}

/// A VM with the bench guest: `memory` as in `128M`, `cmdline` as in `docs/formats/bench-guest.md`.
pub fn config(memory: &str, cmdline: &str) -> Result<VmmConfig> {
    Ok(VmmConfig { kernel: build()?, cmdline: cmdline.to_owned(), memory: memory.to_owned(), ..VmmConfig::default() })
}
