//! Everything this process will ever open, opened while it still may. After `seal()` no path is opened, no socket is
//! connected and no name is resolved: what is missing here is missing for good.

mod disks;
mod files;
mod kept;

use std::{
    fs::File,
    net::TcpListener,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    cli::{BootOptions, ReceiveOptions, RunOptions, Shared},
    control, ctl,
    lan::Lan,
    listen,
    seal::{self, SealOptions, StopSignal},
    serial,
    vm::MTU,
};

pub use disks::{DiskFile, base};
pub use files::Named;

/// What both `run` and `receive` hold.
pub struct Opened {
    pub kvm: File,
    pub disks: Vec<DiskFile>,
    pub lans: Vec<Lan>,
    pub serial: serial::Backend,
    pub control: Option<control::Bound>,
    pub ledger: Option<File>,
    control_path: Option<PathBuf>,
}

impl Opened {
    /// The end of opening: returns in the sealed process, which hears there when it shall end.
    pub fn seal(&self) -> Result<StopSignal> {
        let mut at_end = self.serial.at_end();
        if let Some(path) = self.control_path.clone() {
            at_end.push(Box::new(move || listen::remove(&path)));
        }
        Ok(seal::seal(SealOptions { at_end })?.stop)
    }
}

/// What a machine boots from.
pub struct BootFiles {
    pub kernel: Named,
    pub initramfs: Option<Named>,
}

/// Where `receive` hears of its VM.
pub struct Doors {
    pub listener: TcpListener,
    pub donors: Vec<UnixStream>,
}

/// Opens a kernel.
pub fn kernel(path: &Path) -> Result<Named> {
    files::open_read("kernel", path)
}

/// Opens what `run` names.
pub fn for_run(options: &RunOptions) -> Result<(Opened, BootFiles)> {
    let files = boot_files(&options.kernel, &options.boot)?;
    Ok((shared(&options.shared, disks::Missing::Refuse)?, files))
}

/// Opens what `receive` names.
pub fn for_receive(options: &ReceiveOptions) -> Result<(Opened, Doors, Option<BootFiles>)> {
    let files = options.kernel.as_ref().map(|kernel| boot_files(kernel, &options.boot)).transpose()?;
    let listener = TcpListener::bind(options.listen).with_context(|| format!("listen on {}", options.listen))?;
    let donors = options.donors.iter().map(|path| ctl::donor_connection(path)).collect::<Result<_, _>>()?;
    Ok((shared(&options.shared, disks::Missing::Create)?, Doors { listener, donors }, files))
}

fn boot_files(kernel: &Path, options: &BootOptions) -> Result<BootFiles> {
    let kernel = self::kernel(kernel)?;
    let kernel = match &options.kernel_cache {
        Some(folder) => kept::unpacked(kernel, folder)?,
        None => kernel,
    };
    let initramfs = options.initramfs.as_ref().map(|path| files::open_read("initramfs", path)).transpose()?;
    Ok(BootFiles { kernel, initramfs })
}

fn shared(options: &Shared, missing: disks::Missing) -> Result<Opened> {
    Ok(Opened {
        kvm: rebec_kvm::open_kvm()?,
        disks: options.disks.iter().map(|disk| disks::open(disk, missing)).collect::<Result<_>>()?,
        lans: options.nets.iter().map(|net| Lan::bind(net, MTU)).collect::<Result<_, _>>()?,
        serial: serial::Backend::open(options.serial.as_ref())?,
        ledger: options.ledger.as_ref().map(|path| files::open_ledger(path)).transpose()?,
        control: options.control.as_ref().map(|path| control::Server::bind(path)).transpose()?,
        control_path: options.control.clone(),
    })
}
