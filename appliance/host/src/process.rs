//! The VMM as a process: its command line, its start, and its end as seen by an agent that may not be its parent.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::unix::{
        ffi::OsStrExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rebec_book::{
    key::Id,
    record::{VmBody, VmPrivate},
};
use rebec_cpu::Model;
use rebec_vmm_api::{MacAddr, dns_name};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{process::Child, sync::oneshot};

use crate::{
    control::Control,
    depot::Depot,
    derived::Derived,
    disks,
    handover::Handover,
    ledger,
    limits::{InMemory, Limits},
    said,
};

/// Stations that are told on the command line; the others follow over the control socket.
pub const STATIONS_MAX: usize = 64;
/// How long a VMM may take until its control socket answers: where no unpacked kernel could be kept it unpacks one, which took half a minute
/// on a slow machine that started three VMs at once. One that ends is noticed at once.
const START_TIME: Duration = Duration::from_secs(120);
/// How long an earlier VMM's processes may take to go.
const GONE_TIME: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_PERIOD: Duration = Duration::from_millis(2);
/// Of the log, what is told when a VMM does not start.
const LAST_WORDS_BYTES: u64 = 500;
/// Of the log, what is searched for why a VMM ended.
const END_WORDS_BYTES: u64 = 64 << 10;

/// What every VMM of this machine is started with.
pub struct Programs<'a> {
    /// `rebec-vmm`.
    pub vmm: &'a Path,
    /// Where its image's parts are.
    pub depot: &'a Depot,
    /// What it may take.
    pub limits: &'a Limits,
    /// What guests are given of the processor at most.
    pub cpu_max: &'a Model,
}

/// The VM of a VMM that is to start.
pub struct Machine<'a> {
    /// Its id.
    pub id: Id,
    /// Its folder, which holds its disks.
    pub folder: &'a Path,
    /// What it is.
    pub body: &'a VmBody,
    /// What others are not told of it.
    pub private: &'a VmPrivate,
    /// Endpoint and socket of each of its NICs.
    pub ports: Vec<(SocketAddrV4, UdpSocket)>,
    /// The stations of its LANs.
    pub stations: &'a Stations,
    /// What names of each NIC's LAN end with, as far as they can be asked for.
    pub domains: Vec<Option<String>>,
}

/// Where a station is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its VXLAN endpoint.
    pub endpoint: SocketAddrV4,
    /// Its address on the LAN.
    pub address: Ipv4Addr,
    /// What it is called there, if that can be asked for.
    pub name: Option<String>,
}

/// Stations of the LANs of a VM's NICs, by NIC and station, and where they are.
pub type Stations = BTreeMap<(MacAddr, MacAddr), Place>;

/// Kills a VMM that does not answer; what it forked goes with it. Not a process that has got its number meanwhile: `pid` was the VMM of
/// `folder`. Whether there was anything to kill.
pub fn kill(pid: u32, folder: &Path) -> Result<bool> {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(false),
        opened => opened.context("reach its process")?,
    };
    // Read while the descriptor holds the process: if this is about another one, the VMM has gone and the signal reaches nobody.
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let control = folder.join("control.sock");
    if !words.split(|byte| *byte == 0).any(|word| word == control.as_os_str().as_bytes()) {
        return Ok(false);
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Err(Errno::SRCH) => Ok(false),
        sent => sent.map(|()| true).context("kill its process"),
    }
}

/// How a VMM is to begin.
pub enum Beginning {
    /// From its kernel, or what its disk says.
    Boot,
    /// By arriving.
    Arrive {
        /// Where.
        at: UnixListener,
        /// Connections to VMs that lend it what they hold.
        donors: Vec<UnixStream>,
    },
}

/// Starts the VMM of a VM whose folder is ready, and waits until it answers. It knows the first [`STATIONS_MAX`] stations then.
pub async fn start(programs: &Programs<'_>, machine: Machine<'_>, how: Beginning) -> Result<Process> {
    let folder = machine.folder;
    wait_absent(folder).await?;
    let mut child = spawn(programs, machine, how)?;
    wait_ready(&mut child, folder).await?;
    Ok(Process::Child(child))
}

/// Waits until nothing of an earlier VMM holds the sockets of a VM: a killed process is seen to end before its children are.
async fn wait_absent(folder: &Path) -> Result<()> {
    let deadline = tokio::time::Instant::now() + GONE_TIME;
    for name in ["control.sock", "console.sock"] {
        while UnixStream::connect(folder.join(name)).is_ok() {
            if tokio::time::Instant::now() > deadline {
                bail!("an earlier VMM of it still runs: {name} answers in {}", folder.display());
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }
    Ok(())
}

fn spawn(programs: &Programs<'_>, machine: Machine<'_>, how: Beginning) -> Result<Child> {
    let (Programs { vmm, depot, limits, cpu_max }, Machine { id, folder, body, private, ports, stations, domains }) = (programs, machine);
    let log = File::options().create(true).append(true).open(folder.join("vmm.log")).context("open vmm.log")?;
    let mut command = tokio::process::Command::new(vmm);
    let mut handover = Handover::default();
    // One that arrives has the size that it has where it comes from.
    let boots = matches!(how, Beginning::Boot);
    let at_least = |bytes: u64| if boots { format!(",size={bytes}") } else { String::new() };
    match how {
        Beginning::Boot => {
            command.arg("run");
        }
        Beginning::Arrive { at, donors } => {
            command.arg("receive").arg("--listen").arg(handover.give(at));
            donors.into_iter().for_each(|donor| {
                command.arg("--donor").arg(handover.give(donor));
            });
            command.arg("--vm").arg(id.to_string());
        }
    }
    let size = |bytes: u64| format!("{}M", bytes >> 20);
    command.arg("--memory").arg(size(body.memory_bytes)).arg("--vcpus").arg(body.vcpus.to_string());
    if let Some(max) = body.memory_max_bytes() {
        command.arg("--memory-max").arg(size(max));
    }
    let image = &body.image;
    // Without a kernel the VMM reads what starts out of the VM's disk, sealed, at each start.
    if let Some(kernel) = &image.kernel {
        let kernel = Derived::Kernel.of(depot, &kernel.digest).unwrap_or_else(|| depot.path(&kernel.digest));
        command.arg("--kernel").arg(handover.open(&kernel)?);
        if let Some(initramfs) = &image.initramfs {
            command.arg("--initramfs").arg(handover.open(&depot.path(&initramfs.digest))?);
        }
    }
    // The one that its image has is unpacked already; if its guest has put another in its place, the VMM sees that.
    let own = image.disk.as_ref().filter(|_| image.kernel.is_none()).and_then(|disk| Derived::OwnKernel.of(depot, &disk.part.digest));
    if let Some(own) = own {
        command.arg("--unpacked-kernel").arg(handover.open(&own)?);
    }
    command.arg("--cmdline").arg(&private.cmdline);
    if let Some(disk) = &image.disk {
        let layer = handover.open_with(&folder.join("disk.qcow2"), File::options().read(true).write(true))?;
        let base = handover.open(&depot.path(&disk.part.digest))?;
        let digests = Derived::Digests.of(depot, &disk.part.digest).map(|digests| handover.open(&digests)).transpose()?;
        let digests = digests.map(|digests| format!(",base-digests={digests}")).unwrap_or_default();
        let size = body.root_disk().map(|disk| at_least(disk.bytes)).unwrap_or_default();
        command.arg("--disk").arg(format!("{layer}{size},base={base}{digests}"));
    }
    if private.seed.is_some() {
        command.arg("--disk").arg(format!("{},ro", handover.open(&folder.join("seed.img"))?));
    }
    for disk in body.further_disks() {
        let file = handover.open_with(&disks::further(folder, &disk.name), File::options().read(true).write(true))?;
        command.arg("--disk").arg(format!("{file}{}", at_least(disk.bytes)));
    }
    let name = dns_name(&body.name);
    for (index, (nic, (endpoint, socket))) in body.nics.iter().zip(ports).enumerate() {
        let (mac, socket) = (MacAddr(nic.mac), handover.give(socket));
        let mut net = format!("vni={},mac={mac},local={endpoint},socket={socket},ip={}/{}", nic.vni, nic.address, nic.prefix);
        if nic.is_sealed() {
            net.push_str(",seal=on");
        }
        if nic.is_trunk() {
            net.push_str(",trunk=on");
        }
        if let Some(mtu) = nic.mtu {
            net.push_str(&format!(",mtu={mtu}"));
        }
        if let Some(domain) = domains.get(index).and_then(Option::as_ref) {
            let name = name.as_ref().map(|name| format!(",name={name}")).unwrap_or_default();
            net.push_str(&format!(",dns={},domain={domain}{name}", nic.resolver()));
        }
        net.push_str(&format!(",prefix6={}", nic.prefix6()));
        for ((_, station), Place { endpoint, address, name }) in stations.iter().take(STATIONS_MAX).filter(|((net, _), _)| *net == mac) {
            let name = name.as_ref().map(|name| format!("@{name}")).unwrap_or_default();
            net.push_str(&format!(",peer={station}@{endpoint}@{address}{name}"));
        }
        command.arg("--net").arg(net);
    }
    let devices = body.limits.clone().unwrap_or_default();
    let rates = [("--net-max", devices.net_bits), ("--disk-iops-max", devices.disk_requests), ("--disk-bytes-max", devices.disk_bytes)];
    for (option, rate) in rates {
        if let Some(rate) = rate.filter(|rate| *rate > 0) {
            command.arg(option).arg(rate.to_string());
        }
    }
    let model = body.cpu.as_ref().map_or_else(|| cpu_max.to_string(), |cpu| cpu.model.clone());
    if model != Model::Host.to_string() {
        command.arg("--cpu").arg(model);
    }
    if body.keeper.is_some() {
        command.arg("--lease");
    }
    if let Some(group) = limits.make(&id, body.granted_bytes(), body.vcpus, in_memory(folder, body), &devices)? {
        command.arg("--cgroup").arg(group);
    }
    command.arg("--serial").arg(format!("unix:{}", folder.join("console.sock").display()));
    command.arg("--control").arg(folder.join("control.sock")).arg("--ledger").arg(handover.give(ledger::open(folder)?));
    // Its own process group: a signal to the agent's does not reach it, and it outlives the agent.
    command.process_group(0).stdin(handover.send()?).stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {}", vmm.display()))
}

/// What of a VM's disks may lie in memory, and counts for its VMM then.
pub fn in_memory(folder: &Path, body: &VmBody) -> InMemory {
    InMemory::of(folder, disks_bytes(body))
}

/// All sizes of a VM's disks together; the base of the first is a part of the depot, which no VMM writes.
fn disks_bytes(body: &VmBody) -> u64 {
    body.root_disk().map(|disk| disk.bytes).into_iter().chain(body.further_disks().map(|disk| disk.bytes)).fold(0, u64::saturating_add)
}

/// Waits until the control socket answers, or says what the VMM said when it ended.
async fn wait_ready(child: &mut Child, folder: &Path) -> Result<()> {
    let socket = folder.join("control.sock");
    let deadline = tokio::time::Instant::now() + START_TIME;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the VMM ended with {status}: {}", last_words(folder));
        }
        if socket.exists() {
            let socket = socket.clone();
            let answered = tokio::task::spawn_blocking(move || Control::connect(&socket).is_ok()).await?;
            if answered {
                return Ok(());
            }
        }
        if tokio::time::Instant::now() > deadline {
            child.start_kill()?;
            bail!("the VMM did not answer within {} s: {}", START_TIME.as_secs(), last_words(folder));
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// The end of what the VMM said.
pub fn last_words(folder: &Path) -> String {
    let tail = said::tail_of(&folder.join("vmm.log"), LAST_WORDS_BYTES).unwrap_or_default();
    let words = tail.lines().rev().find(|line| !line.trim().is_empty() && !line.contains(": info: "));
    words.unwrap_or("it said nothing").to_owned()
}

/// A VMM that some agent started: ends when its process does.
pub enum Process {
    /// This agent is its parent and hears its exit code.
    Child(Child),
    /// An earlier agent was.
    Adopted(Adopted),
}

/// A VMM whose exit code nobody hears: what it leaves behind tells how it ended.
pub struct Adopted {
    end: oneshot::Receiver<()>,
    folder: PathBuf,
    /// Length of its log when it was adopted.
    said_bytes: u64,
}

impl Process {
    /// A VMM that runs already.
    pub fn adopt(pid: u32, folder: &Path) -> Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("its pid is not one")?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).context("watch its process")?;
        let (ended, end) = oneshot::channel();
        let wait = move || {
            let mut watched = [PollFd::new(&fd, PollFlags::IN)];
            while matches!(poll(&mut watched, None), Err(Errno::INTR)) {}
            // A watcher that has gone does not want to know.
            ended.send(()).unwrap_or_default();
        };
        std::thread::Builder::new().name("adopted".into()).stack_size(64 << 10).spawn(wait).context("watch its process")?;
        let said_bytes = std::fs::metadata(folder.join("vmm.log")).map_or(0, |log| log.len());
        Ok(Self::Adopted(Adopted { end, folder: folder.to_owned(), said_bytes }))
    }

    /// Waits for its end: the exit code, where it can be known.
    pub async fn ended(&mut self) -> Option<i32> {
        match self {
            Self::Child(child) => child.wait().await.ok().map(|status| status.code().unwrap_or(-1)),
            Self::Adopted(adopted) => {
                // Without a thread that watches, the process counts as ended: whoever asks next finds out.
                (&mut adopted.end).await.unwrap_or_default();
                adopted.ended_well().then_some(0)
            }
        }
    }
}

impl Adopted {
    /// A VMM that ends by itself takes its control socket away, and says why if it failed; one that was killed does neither.
    fn ended_well(&self) -> bool {
        let said = said::tail_after(&self.folder.join("vmm.log"), self.said_bytes, END_WORDS_BYTES).unwrap_or_default();
        let failed = said.lines().any(|line| line.starts_with("rebec-vmm: "));
        !failed && !self.folder.join("control.sock").exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_vmm_of_a_folder_is_killed() {
        let folder = Path::new("/nowhere/vms/1");
        let sleep = |word: &str| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", "kill -STOP $$", "sh", word]).spawn().unwrap()
        };
        let (mut vmm, mut other) = (sleep("/nowhere/vms/1/control.sock"), sleep("/nowhere/vms/2/control.sock"));
        // Until both are what they will be: a child is a copy of this process at first.
        while [&vmm, &other].iter().any(|child| !std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().starts_with(b"sh\0")) {
            std::thread::sleep(LOOK_PERIOD);
        }
        assert!(!kill(other.id(), folder).unwrap());
        assert!(other.try_wait().unwrap().is_none());
        assert!(kill(vmm.id(), folder).unwrap());
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&vmm.wait().unwrap()), Some(9));
        assert!(!kill(vmm.id(), folder).unwrap());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
