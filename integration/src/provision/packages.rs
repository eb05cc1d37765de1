//! Debian packages of the machine the lab runs on.
//!
//! As root they are installed; without root the one command that does it is the error. Versions are the machine's own
//! affair: nothing here depends on a particular one.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::{command::Program, progress::say};

/// A package and what it is for.
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Why the lab wants it, for people.
    pub why: &'static str,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why }
}

/// Everything the lab uses beyond Rust and a C compiler.
pub const PACKAGES: &[Package] = &[
    package("qemu-system-x86", "lab machines"),
    package("seabios", "their firmware"),
    package("qemu-utils", "qcow2 disks of guests"),
    package("busybox-static", "user space of lab machines and guests"),
    package("cpio", "initramfs images"),
    package("zstd", "unpacking Debian 13 kernels and packing images"),
    package("lz4", "unpacking Debian 12 kernels"),
    package("xz-utils", "unpacking kernel modules"),
    package("kmod", "modules.dep for kernels"),
    package("e2fsprogs", "root file systems of guests"),
    package("xfsprogs", "/boot on XFS, as Rocky has it"),
    package("btrfs-progs", "/boot on btrfs, as openSUSE has it"),
    package("iproute2", "the namespace lab"),
    package("iputils-ping", "`ping`, for the test of a LAN with a vxlan device of Linux"),
    package("tcpdump", "captures of the namespace lab"),
    package("procps", "`kill` and `pgrep`, for tests of the command line and of the service"),
    package("systemd", "the agent as a service, in a Debian system of the namespace lab"),
    package("dnsmasq-base", "DHCP and router advertisements for the tests of rebec-links and of a pool without IPv4"),
    package("iperf3", "network benchmarks"),
    package("g++", "libFuzzer, in front of the fuzz targets"),
    package("debian-archive-keyring", "signatures of the kernels' archive"),
    package("xorriso", "the appliance's ISO"),
    package("mtools", "the files in its EFI system partition"),
    package("dosfstools", "the file system of its EFI system partition"),
    package("ovmf", "UEFI firmware of lab machines"),
    package("ovmf-ia32", "the same of 32 bits"),
];

/// An installation takes out what does not go with it: a `qemu-utils` from backports went when `qemu-system-x86` came.
const PASSES: usize = 2;
/// How long the package manager may take: downloads on a slow line included.
const INSTALL_DEADLINE: Duration = Duration::from_secs(900);

/// Installs what is missing, or says how.
pub fn ensure() -> Result<()> {
    for _ in 0..PASSES {
        let missing = missing();
        if missing.is_empty() {
            return Ok(());
        }
        for package in &missing {
            say("packages", format_args!("{} is missing: {}", package.name, package.why));
        }
        let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
        if !rustix::process::geteuid().is_root() {
            bail!("packages are missing and this is not root; run: sudo apt-get install --no-install-recommends --yes {}", names.join(" "));
        }
        say("packages", format_args!("installing {}", names.join(" ")));
        if install(&names).is_err() {
            // The package lists may be older than the archive: refresh them once.
            apt_get(&["update".to_owned()])?;
            install(&names)?;
        }
    }
    match missing().first() {
        None => Ok(()),
        Some(package) => bail!("package {} is still missing after apt-get; install it by hand", package.name),
    }
}

fn missing() -> Vec<&'static Package> {
    PACKAGES.iter().filter(|package| !installed(package.name)).collect()
}

fn install(names: &[&str]) -> Result<()> {
    let mut args = vec!["install".to_owned(), "--no-install-recommends".to_owned(), "--yes".to_owned()];
    args.extend(names.iter().map(|name| (*name).to_owned()));
    apt_get(&args)
}

fn apt_get(args: &[String]) -> Result<()> {
    let lock_wait = ["-o", "DPkg::Lock::Timeout=300", "-qq"];
    Program::new("apt-get").args(lock_wait).args(args).env("DEBIAN_FRONTEND", "noninteractive").deadline(INSTALL_DEADLINE).quiet()
}

fn installed(name: &str) -> bool {
    let status = Program::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", name]).output();
    status.is_ok_and(|status| status == "installed")
}
