//! The story of a build: packages, modules, initrd, ISO, manifest. And of pinning: the newest packages into the lock file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    archive::{Archive, MAIN, sha256},
    firmware::{self, Firmware},
    initrd::{self, Programs},
    iso::{self, BootPrograms},
    kernel,
    lock::{Lock, Locked},
    manifest::{File, LockState, Manifest},
    modules,
    package::{Store, Wanted},
    progress::say,
};

const SUITE: &str = "trixie";
const KERNEL: &str = "kernel";
const ISOLINUX: &str = "isolinux";
const SYSLINUX: &str = "syslinux";
const SHIM: &str = "shim";
const SHIM_HELPERS: &str = "shim-helpers";
const GRUB: &str = "grub";
const GRUB_IA32: &str = "grub-ia32";

/// Roles and the packages that fill them.
const PACKAGES: [(&str, Wanted<'static>); 7] = [
    (KERNEL, Wanted { follow: Some("linux-image-"), ..wanted("linux-image-amd64") }),
    (ISOLINUX, wanted("isolinux")),
    (SYSLINUX, wanted("syslinux-common")),
    (SHIM, wanted("shim-signed")),
    (SHIM_HELPERS, wanted("shim-helpers-amd64-signed")),
    (GRUB, wanted("grub-efi-amd64-signed")),
    (GRUB_IA32, wanted("grub-efi-ia32-unsigned")),
];

const fn wanted(package: &str) -> Wanted<'_> {
    Wanted { suite: SUITE, component: MAIN, package, follow: None }
}

/// Packages of firmware, each by a role of its own name.
fn firmware_packages(names: &[String]) -> impl Iterator<Item = (&str, Wanted<'_>)> {
    names.iter().map(|name| (name.as_str(), Wanted { component: firmware::COMPONENT, ..wanted(name) }))
}

/// What to build.
#[derive(Debug, Clone)]
pub struct Order {
    /// `rebec`, a static program.
    pub rebec: PathBuf,
    /// `rebec-vmm`, a static program.
    pub vmm: PathBuf,
    /// Where the image goes.
    pub out: PathBuf,
    /// Where packages are kept.
    pub cache: PathBuf,
    /// The lock file.
    pub lock: PathBuf,
    /// Take the newest packages, whatever is locked.
    pub newest: bool,
    /// Packages of firmware that the image is to have.
    pub firmware: Vec<String>,
}

/// Builds an image: `vmlinuz`, `initrd.img`, `rebec.iso` and `manifest.json` in the folder of the order.
pub fn build(order: &Order) -> Result<Manifest> {
    let version = env!("CARGO_PKG_VERSION");
    let mut programs = BTreeMap::new();
    for (name, path) in [("rebec", &order.rebec), ("rebec-vmm", &order.vmm)] {
        programs.insert(name.to_owned(), sha256_of_program(path)?);
    }
    fs::create_dir_all(&order.out).with_context(|| format!("create {}", order.out.display()))?;
    let store = Store::open(&order.cache)?;
    if order.newest {
        Archive::open(&order.cache, SUITE)?.refresh()?;
    }
    let wanted = PACKAGES.into_iter().chain(firmware_packages(&order.firmware));
    let packages = gather(&store, &Lock::load(&order.lock)?, order.newest, wanted)?;
    let kernel = kernel::unpack(&store, package(&packages, KERNEL)?)?;
    let work = tempfile::tempdir_in(&order.out).context("create a folder to work in")?;

    say("image", format_args!("kernel {} and its modules", kernel.release));
    let modules = modules::stage(&kernel, &work.path().join("modules"))?;
    let out = |name: &str| order.out.join(name);
    fs::copy(&kernel.bzimage, out("vmlinuz")).with_context(|| format!("copy {}", kernel.bzimage.display()))?;
    say("image", format_args!("initrd with {} modules", modules.keys().filter(|name| name.contains(".ko")).count()));
    let mut firmware = Firmware::default();
    for name in &order.firmware {
        firmware.add(name, &store.unpack(package(&packages, name)?, |_| Ok(()))?)?;
        say("image", format_args!("with {name}: {:.1} MB of firmware", firmware.bytes() as f64 / 1e6));
    }
    let initrd = initrd::build(&modules, firmware, Programs { rebec: &order.rebec, vmm: &order.vmm }, version)?;
    fs::write(out("initrd.img"), initrd).with_context(|| format!("write {}", out("initrd.img").display()))?;

    say("image", "hybrid ISO");
    let unpacked = |role| store.unpack(package(&packages, role)?, |_| Ok(()));
    let boot = BootPrograms {
        isolinux: unpacked(ISOLINUX)?,
        syslinux: unpacked(SYSLINUX)?,
        shim: unpacked(SHIM)?,
        shim_helpers: unpacked(SHIM_HELPERS)?,
        grub: unpacked(GRUB)?,
        grub_ia32: unpacked(GRUB_IA32)?,
    };
    let id = sha256(&out("initrd.img"))?;
    iso::write(&out("rebec.iso"), &out("vmlinuz"), &out("initrd.img"), &boot, &id[..12], work.path())?;

    let state = LockState::of(packages.values());
    let mut manifest = Manifest { version: version.to_owned(), state, kernel: kernel.release, packages, programs, files: BTreeMap::new() };
    for name in ["vmlinuz", "initrd.img", "rebec.iso"] {
        let bytes = fs::metadata(out(name)).with_context(|| format!("size of {name}"))?.len();
        manifest.files.insert(name.to_owned(), File { bytes, sha256: sha256(&out(name))? });
    }
    manifest.write(&out("manifest.json"))?;
    Ok(manifest)
}

/// Writes the newest version of every package into a lock file, and of some of firmware.
pub fn pin(cache: &Path, lock: &Path, firmware: &[String]) -> Result<Vec<Locked>> {
    let store = Store::open(cache)?;
    let mut lock = Lock::load(lock)?;
    Archive::open(cache, SUITE)?.refresh()?;
    let mut pinned = Vec::new();
    for (role, wanted) in PACKAGES.into_iter().chain(firmware_packages(firmware)) {
        let mut locked = store.resolve(wanted, lock.get(role))?;
        locked.unlocked = false;
        lock.set(role, locked.clone())?;
        pinned.push(locked);
    }
    Ok(pinned)
}

fn gather<'a>(
    store: &Store,
    lock: &Lock,
    newest: bool,
    all: impl Iterator<Item = (&'a str, Wanted<'a>)>,
) -> Result<BTreeMap<String, Locked>> {
    let mut packages = BTreeMap::new();
    for (role, wanted) in all {
        let before = lock.get(role);
        let locked = if newest { store.resolve(wanted, before)? } else { store.ensure(wanted, before)? };
        if locked.unlocked {
            say("image", format_args!("{} {} is not locked: this image is marked as unlocked", locked.name, locked.version));
        }
        packages.insert(role.to_owned(), locked);
    }
    Ok(packages)
}

fn package<'a>(packages: &'a BTreeMap<String, Locked>, role: &str) -> Result<&'a Locked> {
    packages.get(role).with_context(|| format!("no package for {role}"))
}

/// The digest of a program, which must be an ELF.
fn sha256_of_program(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read program {}; build it first", path.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is not a program; give a static x86-64 ELF", path.display());
    }
    sha256(path)
}
