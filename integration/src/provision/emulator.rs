//! The QEMU that runs lab machines: this machine's own if it is new enough, else Debian 13's in a private folder.
//!
//! With QEMU 7.2 (Debian 12), three guests at once in an emulated machine, 6 of 12 boots crashed; with QEMU 10 none of 6
//! did (docs/notes/qemu-lab.md, which also says what that does not prove). Debian 13's build and its libraries are fetched by apt with signature checks, unpacked below the
//! cache and started through their own loader: nothing is installed, root is not needed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rebec_image_build::{
    archive::Archive,
    lock::{Lock, Locked},
};

use crate::{command::Program, paths, progress::say};

/// The oldest version that was seen to run guests reliably.
const MAJOR_MIN: u32 = 10;
const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
const SUITE: &str = "trixie";
const ROLE: &str = "emulator";

/// How to start QEMU.
#[derive(Debug, Clone)]
pub struct Emulator {
    /// Program and first arguments.
    pub argv: Vec<String>,
}

/// Finds or brings it.
pub fn ensure(lock: &mut Lock) -> Result<Emulator> {
    if major_version().is_some_and(|major| major >= MAJOR_MIN) {
        return Ok(Emulator { argv: vec![PROGRAM.to_owned()] });
    }
    let folder = |locked: &Locked| paths::cache().join(format!("qemu-{}", locked.sha256));
    let locked = match lock.get(ROLE).cloned() {
        Some(locked) if folder(&locked).join("complete").exists() => locked,
        before => fetch(before.as_ref(), &folder, lock)?,
    };
    if locked.unlocked {
        say("provision", format_args!("{} {} is not locked: review integration/lock.toml", locked.name, locked.version));
    }
    Ok(Emulator { argv: argv(&folder(&locked).join("root")) })
}

/// Downloads the package with all it needs, and unpacks it.
fn fetch(before: Option<&Locked>, folder: &impl Fn(&Locked) -> PathBuf, lock: &mut Lock) -> Result<Locked> {
    let archive = Archive::open(&paths::cache(), SUITE)?;
    let newest = archive.newest(PACKAGE)?;
    let locked = match before {
        Some(before) if before.sha256 == newest.sha256 => before.clone(),
        _ => Locked {
            suite: SUITE.to_owned(),
            name: newest.name.clone(),
            version: newest.version.clone(),
            sha256: newest.sha256.clone(),
            unlocked: true,
        },
    };
    if let Some(before) = before.filter(|before| before.sha256 != locked.sha256) {
        say("provision", format_args!("{PACKAGE} {} is gone from the archive; using {}", before.version, locked.version));
    }
    say(
        "provision",
        format_args!("downloading {PACKAGE} {} and its libraries: this machine's QEMU emulates SVM unreliably", locked.version),
    );
    let home = folder(&locked);
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("remove {}", home.display()))?;
    }
    let root = home.join("root");
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    for package in archive.download_with_dependencies(PACKAGE, &home.join("packages"))? {
        Program::new("dpkg-deb").arg("--extract").arg(&package).arg(&root).quiet()?;
    }
    fs::remove_dir_all(home.join("packages")).context("remove the packages of QEMU")?;
    let works = Emulator { argv: argv(&root) };
    works.program().arg("--version").quiet().context("start the QEMU that was fetched")?;
    fs::write(home.join("complete"), "").context("mark as complete")?;
    lock.set(ROLE, locked.clone())?;
    Ok(locked)
}

impl Emulator {
    /// QEMU, to be run to its end.
    pub fn program(&self) -> Program {
        Program::new(&self.argv[0]).args(&self.argv[1..])
    }
}

fn argv(root: &Path) -> Vec<String> {
    let at = |path: &str| root.join(path).display().to_string();
    let libraries = at("usr/lib/x86_64-linux-gnu");
    let loader = at("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let words = [loader, "--library-path".to_owned(), libraries, at("usr/bin/qemu-system-x86_64")];
    let firmware = ["-L".to_owned(), at("usr/share/qemu"), "-L".to_owned(), at("usr/share/seabios")];
    words.into_iter().chain(firmware).collect()
}

fn major_version() -> Option<u32> {
    let text = Program::new(PROGRAM).arg("--version").output().ok()?;
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}
