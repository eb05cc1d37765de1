//! `cargo lab image`: the appliance's image, and `cargo lab pin`: the packages that it is made of.

use std::process::ExitCode;

use anyhow::Result;
use rebec_image_build::image;

use crate::{
    appliance::{Appliance, lock, mega},
    paths, provision,
};

/// Builds the image and says where it is.
pub fn run() -> Result<ExitCode> {
    provision::provision()?;
    let appliance = Appliance::build()?;
    println!("{}: {:.1} MB", appliance.iso().display(), mega(appliance.iso_bytes()?));
    println!("{}: with initrd.img beside it, for PXE", appliance.vmlinuz().display());
    Ok(ExitCode::SUCCESS)
}

/// Writes the newest packages into the lock file.
pub fn pin() -> Result<ExitCode> {
    for locked in image::pin(&paths::cache(), &lock())? {
        println!("{} {} sha256 {}", locked.name, locked.version, locked.sha256);
    }
    Ok(ExitCode::SUCCESS)
}
