//! Spare machines as they are found: firmware looks for something to boot and finds the appliance's ISO as a CD, as a USB disk, or its
//! kernel and initrd on the network.
//!
//! No program of the lab is in these machines: they are looked at from outside, by what they say on their serial port.

use std::{
    fs,
    os::unix::fs::{FileExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::Accel;
use crate::{appliance::Appliance, command::Program, provision::Provisions};

/// Debian's UEFI firmware, and its empty variables.
const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// The same of 32 bits, which Debian has with Secure Boot alone: it wants a chipset that guards its variables, and without keys lets everything start.
const UEFI_32_CODE: &str = "/usr/share/OVMF/OVMF32_CODE_4M.secboot.fd";
const UEFI_32_VARIABLES: &str = "/usr/share/OVMF/OVMF32_VARS_4M.fd";
const MEMORY_MIB: &str = "1024";
const SECTOR_BYTES: u64 = 512;
const STICK_SECTORS: u64 = (160 << 20) / SECTOR_BYTES;
const FIRST_SECTOR: u32 = 2048;
/// What QEMU's user network gives the first machine of each.
const ADDRESS: &str = "10.0.2.15";
/// What the network card's boot program asks for first.
const NETWORK_SCRIPT: &str = "boot.ipxe";
const LOOK: Duration = Duration::from_millis(200);

/// What starts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF of 32 bits, on a processor of 64.
    Uefi32,
}

/// Where it finds the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// The ISO as a CD.
    Cd,
    /// The ISO as a USB disk.
    Usb,
    /// The ISO's files, copied onto a FAT file system of a USB disk.
    Copied,
    /// Kernel and initrd over TFTP.
    Network,
}

/// A machine that boots; ends when dropped.
pub struct Spare {
    what: String,
    process: Child,
    console: PathBuf,
}

impl Spare {
    /// Switches a machine on.
    pub fn start(provisions: &Provisions, appliance: &Appliance, firmware: Firmware, medium: Medium, folder: &Path) -> Result<Self> {
        let what = format!("{firmware:?}, {medium:?}");
        let console = folder.join(format!("{firmware:?}-{medium:?}.console").to_lowercase());
        let accel = Accel::choose(None, provisions)?;
        // setpriv: should this program be killed, QEMU must not stay behind.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(&provisions.emulator.argv);
        let chipset = if firmware == Firmware::Uefi32 { "q35,smm=on" } else { "q35" };
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", chipset, "-m", MEMORY_MIB]);
        command.args(accel.arguments()).arg("-serial").arg(format!("file:{}", console.display()));
        let flashes = match firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some((UEFI_CODE, UEFI_VARIABLES)),
            Firmware::Uefi32 => Some((UEFI_32_CODE, UEFI_32_VARIABLES)),
        };
        if let Some((code, empty)) = flashes {
            let variables = folder.join("variables");
            fs::copy(empty, &variables).with_context(|| format!("copy {empty}"))?;
            let flash = |options: &str, file: &Path| format!("if=pflash,format=raw,{options}file={}", file.display());
            command.args(["-drive", &flash("readonly=on,", Path::new(code)), "-drive", &flash("", &variables)]);
        }
        if firmware == Firmware::Uefi32 {
            command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        }
        let mut network = "user,id=net,restrict=on".to_owned();
        let image = match medium {
            Medium::Copied => copied(appliance, folder).context("copy the ISO's files onto a stick")?,
            _ => appliance.iso(),
        };
        let drive = |kind: &str| format!("if=none,id=boot,format=raw,readonly=on,{kind}file={}", image.display());
        match medium {
            Medium::Cd => command.args(["-drive", &drive("media=cdrom,"), "-device", "ide-cd,drive=boot,bootindex=0"]),
            Medium::Usb | Medium::Copied => {
                command.args(["-device", "qemu-xhci", "-drive", &drive(""), "-device", "usb-storage,drive=boot,bootindex=0"])
            }
            Medium::Network => {
                let served = serve_files(appliance, folder).context("gather the files of the network boot")?;
                network += &format!(",tftp={},bootfile={NETWORK_SCRIPT}", served.display());
                &mut command
            }
        };
        let first = if medium == Medium::Network { ",bootindex=0" } else { ",romfile=" };
        command.args(["-netdev", &network, "-device", &format!("e1000e,netdev=net{first}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let process = command.spawn().with_context(|| format!("start the machine that boots by {what}"))?;
        Ok(Self { what, process, console })
    }

    /// Waits for the status screen of a host with an address and a key. Returns what its serial port said.
    pub fn wait_host(&mut self, deadline: Duration) -> Result<String> {
        let start = Instant::now();
        loop {
            let said = String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned();
            if said.contains("\nkey ") && said.contains(&format!("\naddresses  {ADDRESS}")) {
                return Ok(said);
            }
            let tail = || said.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" | ");
            if let Some(status) = self.process.try_wait()? {
                bail!("the machine that boots by {} ended with {status}; its console ends: {}", self.what, tail());
            }
            if start.elapsed() > deadline {
                bail!("the machine that boots by {} is no host after {} s; its console ends: {}", self.what, deadline.as_secs(), tail());
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A stick as it is bought, with one FAT file system in a partition, and the ISO's files on it.
fn copied(appliance: &Appliance, folder: &Path) -> Result<PathBuf> {
    let (tree, stick) = (folder.join("files"), folder.join("stick.raw"));
    let tool = |name: &str| Program::new(name).env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    tool("xorriso").args(["-osirrox", "on", "-indev"]).arg(appliance.iso()).args(["-extract", "/"]).arg(&tree).quiet()?;
    let disk = fs::File::create(&stick)?;
    disk.set_len(STICK_SECTORS * SECTOR_BYTES)?;
    let mut table = [0; SECTOR_BYTES as usize];
    // One entry, bootable, of FAT32 by sectors.
    table[446] = 0x80;
    table[446 + 4] = 0x0c;
    table[446 + 8..446 + 12].copy_from_slice(&FIRST_SECTOR.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&(STICK_SECTORS as u32 - FIRST_SECTOR).to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write_all_at(&table, 0)?;
    let blocks = (STICK_SECTORS - u64::from(FIRST_SECTOR)) / 2;
    tool("mkfs.vfat").args(["-F", "32", "--offset", &FIRST_SECTOR.to_string()]).arg(&stick).arg(blocks.to_string()).quiet()?;
    let partition = format!("{}@@{}", stick.display(), u64::from(FIRST_SECTOR) * SECTOR_BYTES);
    let mut copying = tool("mcopy").args(["-s", "-Q", "-i", &partition]);
    for entry in fs::read_dir(&tree)? {
        copying = copying.arg(entry?.path());
    }
    copying.arg("::/").quiet()?;
    Ok(stick)
}

/// A folder with what the network serves.
fn serve_files(appliance: &Appliance, folder: &Path) -> Result<PathBuf> {
    let served = folder.join("tftp");
    fs::create_dir(&served)?;
    symlink(appliance.vmlinuz(), served.join("vmlinuz"))?;
    symlink(appliance.initrd(), served.join("initrd.img"))?;
    let script = "#!ipxe\nkernel vmlinuz initrd=initrd.img console=ttyS0 quiet\ninitrd initrd.img\nboot\n";
    fs::write(served.join(NETWORK_SCRIPT), script)?;
    Ok(served)
}

impl Drop for Spare {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
