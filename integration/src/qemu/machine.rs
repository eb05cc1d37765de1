//! One lab machine: a QEMU process with a kernel booted directly, its agent and its console.
//!
//! The agent's port and the network are Unix sockets in a private folder. Dropping the machine ends the process; should
//! this program die first, the kernel ends it.

use std::{
    fs,
    io::Write as _,
    ops::Deref,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Accel, tsc};
use crate::{channel::client::Client, guest::SPARING, netlab, provision::Emulator};

/// How long a machine may take from its start to its agent: five times what two busy cores were seen to need.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(150);
/// How long an order to a program in a machine may take unless it is known to be long.
pub const ORDER_DEADLINE: Duration = Duration::from_secs(60);

/// Name of the socket behind the serial port.
const SERIAL: &str = "serial";
const MONITOR: &str = "monitor";
const AGENT: &str = "agent";
/// Between two looks at a console.
const LOOK: Duration = Duration::from_millis(50);

/// What one machine is made of.
#[derive(Debug, Clone)]
pub struct MachineConfig<'a> {
    /// For people and for file names.
    pub name: &'a str,
    /// QEMU.
    pub emulator: &'a Emulator,
    /// The kernel: a bzImage, or the ELF inside one.
    pub kernel: &'a Path,
    /// The initramfs with the agent.
    pub initramfs: &'a Path,
    /// More words for the kernel.
    pub words: &'a str,
    /// How it runs.
    pub accel: Accel,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub vcpus: u8,
    /// A disk to be mounted on `/share`, read-only.
    pub share: Option<&'a Path>,
    /// The switch's socket and the machine's MAC.
    pub network: Option<(PathBuf, String)>,
    /// More words for QEMU: other devices.
    pub devices: &'a [&'a str],
    /// Where console and QEMU's own words are kept.
    pub evidence: &'a Path,
}

/// A running machine. Its agent's orders are methods of [`Client`], to which it derefs.
pub struct Machine {
    name: String,
    process: Child,
    client: Client,
    console: PathBuf,
    /// What QEMU says, and how it ended if nobody asked it to.
    said: PathBuf,
    /// Held for its Drop too.
    sockets: tempfile::TempDir,
}

impl Machine {
    /// Starts QEMU and takes its agent's connection; the kernel is still booting. Call from a thread that outlives the machine.
    pub fn start(config: &MachineConfig<'_>) -> Result<Self> {
        let name = config.name;
        let sockets = tempfile::Builder::new().prefix("rebec-").tempdir().context("create a folder for sockets")?;
        let port_path = sockets.path().join(AGENT);
        let listener = UnixListener::bind(&port_path).with_context(|| format!("listen on {}", port_path.display()))?;
        let console = config.evidence.join(format!("{name}.console"));
        let said = config.evidence.join(format!("{name}.qemu"));
        let said_file = fs::File::create(&said).with_context(|| format!("create {}", said.display()))?;
        // setpriv: should this program be killed, QEMU must not stay behind.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(&config.emulator.argv);
        arguments(&mut command, config, &console, sockets.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said_file);
        let mut process = command.spawn().with_context(|| format!("start machine {name}"))?;
        let stream = match accept(&listener, &mut process) {
            Ok(stream) => stream,
            Err(error) => {
                process.kill().ok();
                process.wait().ok();
                let words = fs::read_to_string(&said).unwrap_or_default();
                bail!("machine {name} did not start: {error}: {}", words.trim());
            }
        };
        let client = Client::new(name, stream)?;
        Ok(Self { name: name.to_owned(), process, client, console, said, sockets })
    }

    /// Waits for the agent and mounts the share.
    pub fn wait_ready(&self, share: bool) -> Result<()> {
        if let Err(error) = self.client.wait_ready(BOOT_DEADLINE) {
            let console = fs::read_to_string(&self.console).unwrap_or_default();
            let last: Vec<&str> = console.lines().rev().take(5).collect();
            bail!("{error}; its console ends: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | "));
        }
        if share {
            // Drivers find their devices in their own time after they are loaded; the order's deadline ends a vain wait.
            self.shell("until [ -b /dev/vda ]; do sleep 0.1; done; mount -o ro -t ext4 /dev/vda /share")?;
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its console is written.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// Types a line at its serial console, as a person does.
    pub fn type_line(&self, line: &str) -> Result<()> {
        self.send(SERIAL, &format!("{line}\r")).with_context(|| format!("type at the console of machine {}", self.name))
    }

    /// Presses its power button.
    pub fn press_power_button(&self) -> Result<()> {
        self.send(MONITOR, "system_powerdown\n").with_context(|| format!("press the power button of machine {}", self.name))
    }

    /// Tells QEMU something, as a person does at its monitor.
    pub fn monitor(&self, command: &str) -> Result<()> {
        self.send(MONITOR, &format!("{command}\n")).with_context(|| format!("{command} on machine {}", self.name))
    }

    fn send(&self, socket: &str, text: &str) -> std::io::Result<()> {
        let mut stream = UnixStream::connect(self.sockets.path().join(socket))?;
        stream.set_read_timeout(Some(ORDER_DEADLINE))?;
        stream.write_all(text.as_bytes())?;
        // The port takes a few bytes at a time, and what has not been taken when the connection closes is lost: QEMU closes it
        // when it has read to the end.
        stream.shutdown(std::net::Shutdown::Write)?;
        std::io::copy(&mut stream, &mut std::io::sink()).map(|_| ())
    }

    /// Waits until it has switched itself off.
    pub fn wait_off(&mut self, deadline: Duration) -> Result<()> {
        let ended = netlab::vmm::wait(&mut self.process, deadline);
        let status = ended.with_context(|| format!("machine {} did not switch itself off", self.name))?;
        ensure!(status.success(), "machine {}: QEMU ended with {status}", self.name);
        Ok(())
    }

    /// Waits until its console has said something.
    pub fn wait_console(&self, text: &str, deadline: Duration) -> Result<()> {
        self.find_on_console(&format!("{text:?}"), deadline, |said| said.contains(text).then_some(()))
    }

    /// Waits until something can be found in all that its console has said. `what` is its name for people.
    pub fn find_on_console<T>(&self, what: &str, deadline: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let start = Instant::now();
        while start.elapsed() < deadline {
            let said = fs::read(&self.console).with_context(|| format!("read {}", self.console.display()))?;
            if let Some(found) = find(&String::from_utf8_lossy(&said)) {
                return Ok(found);
            }
            std::thread::sleep(LOOK);
        }
        bail!("the console of machine {} did not say {what} in {} s", self.name, deadline.as_secs())
    }

    /// Runs a line of shell; an exit code other than 0 is an error.
    pub fn shell(&self, line: &str) -> Result<String> {
        self.client.check(&["sh", "-c", line], ORDER_DEADLINE)
    }

    /// Large pages for its guests' memory: without them each 4 KiB page is an exit of the emulated processor. They are made when memory is touched, and
    /// not later by a thread that is out of processor and holds up a guest meanwhile.
    pub fn give_large_pages(&self) -> Result<()> {
        let settings =
            "cd /sys/kernel/mm/transparent_hugepage; echo 3600000 > khugepaged/scan_sleep_millisecs; echo always > shmem_enabled";
        self.shell(settings).map(drop)
    }

    /// Cuts its power.
    pub fn kill(&mut self) {
        if let Ok(Some(status)) = self.process.try_wait() {
            // Evidence that cannot be written must not hide what it is evidence of.
            fs::write(&self.said, format!("QEMU ended by itself: {status}\n")).ok();
        }
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Deref for Machine {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn arguments(command: &mut Command, config: &MachineConfig<'_>, console: &Path, sockets: &Path) {
    let path = |path: &Path| path.display().to_string().replace(',', ",,");
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35"]).args(config.accel.arguments());
    command.args(["-name", config.name, "-smp", &config.vcpus.to_string(), "-m", &config.memory_mib.to_string()]);
    command.arg("-kernel").arg(config.kernel).arg("-initrd").arg(config.initramfs);
    // tsc=reliable: under emulation the watchdog would call the clock unstable whenever the host is busy.
    let mut cmdline =
        "console=ttyS0 loglevel=4 panic=-1 tsc=reliable no_timer_check mitigations=off audit=0 random.trust_cpu=on".to_owned();
    if config.accel == Accel::Tcg {
        cmdline += &format!(" {SPARING}");
        if let Some(khz) = tsc::known_khz() {
            cmdline += &format!(" tsc_early_khz={khz}");
        }
    }
    cmdline += config.words;
    command.args(["-append", &cmdline]);
    // What is said while nobody is connected goes to the log alone.
    let serial = format!("socket,id=serial,path={},server=on,wait=off,logfile={}", path(&sockets.join(SERIAL)), path(console));
    command.args(["-chardev", &serial, "-serial", "chardev:serial"]);
    command.args(["-monitor", &format!("unix:{},server=on,wait=off", path(&sockets.join(MONITOR)))]);
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    command.args(["-chardev", &format!("socket,id=agent,path={}", path(&sockets.join(AGENT)))]);
    command.args(["-device", &format!("virtserialport,chardev=agent,name={}", crate::channel::PORT_NAME)]);
    if let Some(share) = config.share {
        command.args(["-drive", &format!("file={},if=none,id=share,format=raw,readonly=on", path(share))]);
        command.args(["-device", "virtio-blk-pci,drive=share"]);
    }
    if let Some((switch, mac)) = &config.network {
        command.args(["-netdev", &format!("stream,id=net,server=off,addr.type=unix,addr.path={}", path(switch))]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net,mac={mac},romfile=")]);
    }
    command.args(config.devices);
}

fn accept(listener: &UnixListener, process: &mut Child) -> Result<UnixStream> {
    const DEADLINE: Duration = Duration::from_secs(60);
    listener.set_nonblocking(true).context("listen for the agent")?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).context("take the agent's connection")?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("take the agent's connection"),
        }
        if let Some(status) = process.try_wait().context("watch QEMU")? {
            bail!("QEMU ended with {status}");
        }
        if start.elapsed() > DEADLINE {
            bail!("QEMU did not open the agent's port in {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
