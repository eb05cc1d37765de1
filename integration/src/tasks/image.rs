//! `cargo lab image`: the appliance's image, and `cargo lab pin`: the packages that it is made of.

use std::process::ExitCode;

use anyhow::Result;
use rebec_image_build::{deb, image};

use crate::{
    appliance::{Appliance, lock, mega},
    artifacts::{self, Artifact},
    paths, provision,
};

/// Builds the image, and the package for machines that have a system, and says where they are.
pub fn run() -> Result<ExitCode> {
    provision::provision()?;
    let appliance = Appliance::build()?;
    println!("{}: {:.1} MB", appliance.iso().display(), mega(appliance.iso_bytes()?));
    println!("{}: with initrd.img beside it, for PXE", appliance.vmlinuz().display());
    let package = deb::build(&artifacts::build(Artifact::Rebec)?, &artifacts::build(Artifact::Vmm)?, &paths::lab().join("image"))?;
    println!("{}: for machines that have a Debian already", package.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes the newest packages into the lock file.
pub fn pin() -> Result<ExitCode> {
    for locked in image::pin(&paths::cache(), &lock(), &[])? {
        println!("{} {} sha256 {}", locked.name, locked.version, locked.sha256);
    }
    Ok(ExitCode::SUCCESS)
}
