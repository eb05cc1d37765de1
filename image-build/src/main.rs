//! `rebec-image-build`: builds the appliance's image, or pins the packages it is made of.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Parser, Subcommand};
use rebec_image_build::{
    deb,
    image::{self, Order},
    progress::elapsed_seconds,
};

/// Builds the appliance's image.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Folder for downloads and what is unpacked from them.
    #[arg(long, global = true, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Lock file of the packages.
    #[arg(long, global = true, value_name = "FILE")]
    lock: Option<PathBuf>,
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make vmlinuz, initrd.img, rebec.iso and manifest.json.
    Build {
        /// The static program `rebec`.
        #[arg(long, value_name = "PATH")]
        rebec: PathBuf,
        /// The static program `rebec-vmm`.
        #[arg(long, value_name = "PATH")]
        rebec_vmm: PathBuf,
        /// Folder for the image.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Take the newest packages of the archive, whatever is locked.
        #[arg(long)]
        unlocked: bool,
        /// A package of Debian's non-free-firmware for a card that wants it, such as firmware-bnx2; may be given again.
        #[arg(long, value_name = "PACKAGE")]
        firmware: Vec<String>,
    },
    /// Make a Debian package for hosts that already have a system.
    Deb {
        /// The static program `rebec`.
        #[arg(long, value_name = "PATH")]
        rebec: PathBuf,
        /// The static program `rebec-vmm`.
        #[arg(long, value_name = "PATH")]
        rebec_vmm: PathBuf,
        /// Folder for the package.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Write the newest packages of the archive into the lock file.
    Pin {
        /// And of packages of firmware.
        #[arg(long, value_name = "PACKAGE")]
        firmware: Vec<String>,
    },
}

fn main() {
    elapsed_seconds();
    if let Err(error) = run(Cli::parse()) {
        eprintln!("rebec-image-build: {error:#}");
        std::process::exit(1);
    }
}

fn run(cli: Cli) -> Result<()> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = home.parent().unwrap_or(home);
    let cache = cli.cache.unwrap_or_else(|| workspace.join("target/lab/cache"));
    let lock = cli.lock.unwrap_or_else(|| home.join("lock.toml"));
    match cli.command {
        Task::Build { rebec, rebec_vmm, out, unlocked, firmware } => {
            let manifest = image::build(&Order { rebec, vmm: rebec_vmm, out, cache, lock, newest: unlocked, firmware })?;
            for (name, file) in &manifest.files {
                println!("{name}: {:.1} MB, sha256 {}", file.bytes as f64 / 1e6, file.sha256);
            }
        }
        Task::Deb { rebec, rebec_vmm, out } => println!("{}", deb::build(&rebec, &rebec_vmm, &out)?.display()),
        Task::Pin { firmware } => {
            for locked in image::pin(&cache, &lock, &firmware)? {
                println!("{} {} sha256 {}", locked.name, locked.version, locked.sha256);
            }
        }
    }
    Ok(())
}
