//! Everything this process will ever open, opened while it still may. After `seal()` no path is opened, no socket is
//! connected and no name is resolved: what is missing here is missing for good.

mod disks;
mod files;
mod handed;
mod kept;
mod known;
mod qemu_lock;
mod rings;

use std::{
    fs::File,
    net::{TcpListener, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
};

use anyhow::{Context, Result};
use rebec_vmm_api::{Handle, NetConfig};

use crate::{
    cli::{BootOptions, JudgeOptions, Listen, ReceiveOptions, RunOptions, Shared, UnpackOptions},
    control, ctl,
    lan::Lan,
    listen,
    seal::{self, SealOptions, StopSignal},
    serial,
};

pub use disks::DiskFile;
pub use files::Named;
use handed::Handed;
pub use known::{KnownKernel, Remembered};

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
        let (sealed, ()) = seal::seal_making(SealOptions { at_end }, || disks::make_rings(&self.disks))?;
        Ok(sealed.stop)
    }
}

/// What a machine boots from, where that is not what its disk says.
pub struct BootFiles {
    pub kernel: Named,
    pub initramfs: Option<Named>,
}

/// What of a machine's start was handed over.
#[derive(Default)]
pub struct BootGiven {
    /// None: its disk says what starts.
    pub files: Option<BootFiles>,
    /// What its disk may say, unpacked.
    pub known: Option<KnownKernel>,
}

/// Where `receive` hears of its VM.
pub struct Doors {
    pub listener: OwnedFd,
    pub donors: Vec<UnixStream>,
}

/// Opens an image that others stand on, to read all of it.
pub fn base(image: &Handle) -> Result<DiskFile> {
    disks::base(image, &mut Handed::default())
}

/// Opens what `unpack` names.
pub fn for_unpacking(options: &UnpackOptions) -> Result<(Option<Named>, Option<DiskFile>)> {
    let mut handed = Handed::default();
    let kernel = options.kernel.as_ref().map(|kernel| files::open_read("kernel", kernel, &mut handed)).transpose()?;
    Ok((kernel, options.disk.as_ref().map(|disk| disks::base(disk, &mut handed)).transpose()?))
}

/// Opens what `judge` names.
pub fn for_judging(options: &JudgeOptions) -> Result<(Option<Named>, Option<DiskFile>, Option<KnownKernel>)> {
    let mut handed = Handed::default();
    let kernel = options.kernel.as_ref().map(|kernel| files::open_read("kernel", kernel, &mut handed)).transpose()?;
    let disk = options.disk.as_ref().map(|disk| disks::base(disk, &mut handed)).transpose()?;
    Ok((kernel, disk, known_kernel(options.unpacked_kernel.as_ref(), &mut handed)?))
}

/// Opens what `run` names.
pub fn for_run(options: &RunOptions) -> Result<(Opened, BootGiven)> {
    let mut handed = Handed::default();
    let given = boot_given(options.kernel.as_ref(), &options.boot, &mut handed)?;
    Ok((shared(&options.shared, disks::Missing::Refuse, &mut handed)?, given))
}

/// Opens what `receive` names.
pub fn for_receive(options: &ReceiveOptions) -> Result<(Opened, Doors, BootGiven)> {
    let mut handed = Handed::default();
    let given = boot_given(options.kernel.as_ref(), &options.boot, &mut handed)?;
    let listener = match options.listen {
        Listen::Address(address) => TcpListener::bind(address).with_context(|| format!("listen on {address}"))?.into(),
        Listen::Descriptor(number) => handed.take(number).context("--listen")?,
    };
    let donors = options.donors.iter().map(|donor| self::donor(donor, &mut handed)).collect::<Result<_>>()?;
    Ok((shared(&options.shared, disks::Missing::Create, &mut handed)?, Doors { listener, donors }, given))
}

fn boot_given(kernel: Option<&Handle>, options: &BootOptions, handed: &mut Handed) -> Result<BootGiven> {
    let files = kernel.map(|kernel| boot_files(kernel, options, handed)).transpose()?;
    Ok(BootGiven { files, known: known_kernel(options.unpacked_kernel.as_ref(), handed)? })
}

fn known_kernel(handle: Option<&Handle>, handed: &mut Handed) -> Result<Option<KnownKernel>> {
    let Some(handle) = handle else { return Ok(None) };
    let named = files::open_read("unpacked kernel", handle, handed)?;
    KnownKernel::open(named.file).map(Some).with_context(|| format!("unpacked kernel {}", named.path.display()))
}

fn boot_files(kernel: &Handle, options: &BootOptions, handed: &mut Handed) -> Result<BootFiles> {
    let kernel = files::open_read("kernel", kernel, handed)?;
    let kernel = match &options.kernel_cache {
        Some(folder) => kept::unpacked(kernel, folder)?,
        None => kernel,
    };
    let initramfs = options.initramfs.as_ref().map(|handle| files::open_read("initramfs", handle, handed)).transpose()?;
    Ok(BootFiles { kernel, initramfs })
}

fn donor(handle: &Handle, handed: &mut Handed) -> Result<UnixStream> {
    Ok(match handle {
        Handle::Path(path) => ctl::donor_connection(path)?,
        Handle::Descriptor(number) => handed.take(*number).context("--donor")?.into(),
    })
}

fn lan(net: &NetConfig, handed: &mut Handed) -> Result<Lan> {
    let socket = net.socket.map(|number| handed.take(number).with_context(|| format!("net {}", net.mac))).transpose()?;
    Ok(Lan::bind(net, socket.map(UdpSocket::from))?)
}

fn shared(options: &Shared, missing: disks::Missing, handed: &mut Handed) -> Result<Opened> {
    Ok(Opened {
        kvm: rebec_kvm::open_kvm()?,
        disks: options.disks.iter().map(|disk| disks::open(disk, missing, handed)).collect::<Result<_>>()?,
        lans: options.nets.iter().map(|net| lan(net, handed)).collect::<Result<_>>()?,
        serial: serial::Backend::open(options.serial.as_ref())?,
        ledger: options.ledger.as_ref().map(|ledger| files::open_ledger(ledger, handed)).transpose()?,
        control: options.control.as_ref().map(|path| control::Server::bind(path)).transpose()?,
        control_path: options.control.clone(),
    })
}
