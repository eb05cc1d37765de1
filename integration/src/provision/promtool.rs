//! Prometheus' own reader of what programs count, out of its Debian package: nothing is installed.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rebec_image_build::{
    archive::MAIN,
    lock::Lock,
    package::{Store, Wanted},
};

use super::exclusive;
use crate::paths;

const ROLE: &str = "promtool";
/// Of this machine's suite or an older one: the program uses its C library.
const WANTED: Wanted<'_> = Wanted { suite: "bookworm", component: MAIN, package: "prometheus", follow: None };

/// Finds or brings the program.
pub fn ensure() -> Result<PathBuf> {
    let _one_at_a_time = exclusive("promtool")?;
    let mut lock = Lock::load(&paths::workspace().join("integration/lock.toml"))?;
    let store = Store::open(&paths::cache())?;
    let before = lock.get(ROLE).cloned();
    let locked = store.ensure(WANTED, before.as_ref())?;
    if before.as_ref() != Some(&locked) {
        lock.set(ROLE, locked.clone())?;
    }
    let home = store.unpack(&locked, |_| Ok(())).with_context(|| format!("unpack {} {}", locked.name, locked.version))?;
    Ok(home.join("usr/bin/promtool"))
}
