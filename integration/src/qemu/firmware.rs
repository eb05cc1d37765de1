//! Spare machines as they are found: firmware looks for something to boot and finds the appliance's ISO as a CD, as a USB disk, or its
//! kernel and initrd on the network.
//!
//! No program of the lab is in these machines: they are looked at from outside, by what they say on their serial port.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::Accel;
use crate::{appliance::Appliance, provision::Provisions};

/// Debian's UEFI firmware, and its empty variables.
const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const MEMORY_MIB: &str = "1024";
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
}

/// Where it finds the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// The ISO as a CD.
    Cd,
    /// The ISO as a USB disk.
    Usb,
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
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35", "-m", MEMORY_MIB]);
        command.args(accel.arguments()).arg("-serial").arg(format!("file:{}", console.display()));
        if firmware == Firmware::Uefi {
            let variables = folder.join("variables");
            fs::copy(UEFI_VARIABLES, &variables).with_context(|| format!("copy {UEFI_VARIABLES}"))?;
            let flash = |options: &str, file: &Path| format!("if=pflash,format=raw,{options}file={}", file.display());
            command.args(["-drive", &flash("readonly=on,", Path::new(UEFI_CODE)), "-drive", &flash("", &variables)]);
        }
        let mut network = "user,id=net,restrict=on".to_owned();
        let drive = |kind: &str| format!("if=none,id=boot,format=raw,readonly=on,{kind}file={}", appliance.iso().display());
        match medium {
            Medium::Cd => command.args(["-drive", &drive("media=cdrom,"), "-device", "ide-cd,drive=boot,bootindex=0"]),
            Medium::Usb => command.args(["-device", "qemu-xhci", "-drive", &drive(""), "-device", "usb-storage,drive=boot,bootindex=0"]),
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
