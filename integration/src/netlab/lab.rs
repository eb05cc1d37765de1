//! Machines as network namespaces around one switch, their links' shapes and faults, and the folder of evidence.
//!
//! Namespaces are named `rbl-<pid>-<n>`, so that one run never touches another's, and what a killed run left can be told from what is in use.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::{command::Program, paths, progress::say};

const PREFIX: &str = "rbl-";
/// How long one `ip`, `tc` or the start of `tcpdump` may take on a busy host.
const SHORT: Duration = Duration::from_secs(20);
/// What a shaped link holds back before it drops: 50 ms at its rate.
const QUEUE: &str = "50ms";

static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// Machines and the switch between them. The evidence is removed when the lab ends well, and kept otherwise.
pub struct NetLab {
    /// Machine `n` has the address `10.0.0.(n + 1)`.
    pub machines: Vec<Machine>,
    switch: Namespace,
    capture: Option<Child>,
    evidence: PathBuf,
    keep: bool,
}

/// One machine: a network namespace with one link to the switch.
pub struct Machine {
    name: String,
    port: usize,
    namespace: Namespace,
    evidence: PathBuf,
}

impl NetLab {
    /// Sets up machines with links as fast as they go.
    pub fn start(name: &str, machines: &[&str]) -> Result<Self> {
        let evidence = evidence_folder(name)?;
        let switch = Namespace::create()?;
        switch.ip(&["link", "add", "switch", "type", "bridge"])?;
        switch.ip(&["link", "set", "switch", "up"])?;
        let mut lab = Self { machines: Vec::new(), switch, capture: None, evidence, keep: true };
        for (port, name) in machines.iter().enumerate() {
            let namespace = Namespace::create()?;
            let (inside, outside, address) = ("eth0", port_name(port), format!("{}/24", address(port)));
            lab.switch.ip(&["link", "add", &outside, "type", "veth", "peer", "name", inside, "netns", &namespace.name])?;
            lab.switch.ip(&["link", "set", &outside, "master", "switch", "up"])?;
            namespace.ip(&["addr", "add", &address, "dev", inside])?;
            namespace.ip(&["link", "set", inside, "up"])?;
            lab.machines.push(Machine { name: (*name).to_owned(), port, namespace, evidence: lab.evidence.clone() });
        }
        Ok(lab)
    }

    /// Plugs a further link of a machine into the switch; it is up and has no address.
    pub fn plug(&self, machine: &Machine, device: &str) -> Result<()> {
        let outside = format!("{}{device}", port_name(machine.port));
        self.switch.ip(&["link", "add", &outside, "type", "veth", "peer", "name", device, "netns", &machine.namespace.name])?;
        self.switch.ip(&["link", "set", &outside, "master", "switch", "up"])?;
        machine.ip(&["link", "set", device, "up"])?;
        Ok(())
    }

    /// Gives every machine's link a rate, both ways; none is as fast as it goes.
    pub fn shape(&self, rate_mbit: Option<u32>) -> Result<()> {
        self.machines.iter().try_for_each(|machine| self.shape_one(machine, rate_mbit))
    }

    /// Gives one machine's link a rate, both ways. A link that was cut is healed.
    pub fn shape_one(&self, machine: &Machine, rate_mbit: Option<u32>) -> Result<()> {
        for (namespace, device) in self.ends(machine) {
            match rate_mbit {
                None => namespace.unshape(&device)?,
                Some(rate) => {
                    // Enough for what the timer lets through at once, and for a few large frames.
                    let burst = (rate / 2).max(64);
                    let (rate, burst) = (format!("{rate}mbit"), format!("{burst}kb"));
                    namespace.tc(&["qdisc", "replace", "dev", &device, "root", "tbf", "rate", &rate, "burst", &burst, "latency", QUEUE])?;
                }
            }
        }
        // Who asked in vain during a cut is told "no route" for seconds after it.
        self.machines.iter().try_for_each(|machine| machine.namespace.ip(&["neigh", "flush", "all"]).map(drop))
    }

    /// Lets nothing pass to or from a machine, without either side being told: frames vanish, as in a switch that lost power.
    pub fn cut(&self, machine: &Machine) -> Result<()> {
        for (namespace, device) in self.ends(machine) {
            // A queue of no length. `replace` would keep the parameters of a queue of the same kind.
            namespace.unshape(&device)?;
            namespace.tc(&["qdisc", "add", "dev", &device, "root", "pfifo", "limit", "0"])?;
        }
        Ok(())
    }

    /// Records what crosses the switch, headers only and bounded, as `network.pcap*` in the evidence. Returns when it records.
    pub fn capture(&mut self) -> Result<()> {
        let file = self.evidence.join("network.pcap");
        let mut command = Command::new("tcpdump");
        // A bridge shows passing frames only to who listens promiscuously.
        command.args(["-i", "switch", "-n", "-s", "128", "-U", "-C", "16", "-W", "2", "-Z", "root", "-w"]).arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.capture = Some(self.switch.spawn(command).context("start tcpdump")?);
        let until = Instant::now() + SHORT;
        while !self.evidence.join("network.pcap0").exists() {
            expect(Instant::now() < until, || "tcpdump does not record".to_owned())?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// How much of the network's traffic is recorded, in bytes.
    pub fn captured(&self) -> u64 {
        ["network.pcap0", "network.pcap1"]
            .iter()
            .filter_map(|name| fs::metadata(self.evidence.join(name)).ok())
            .map(|file| file.len())
            .sum()
    }

    /// Whether these bytes crossed the switch among the first of a frame that was recorded.
    pub fn crossed(&self, bytes: &[u8]) -> Result<bool> {
        let recorded = ["network.pcap0", "network.pcap1"].map(|name| fs::read(self.evidence.join(name)).unwrap_or_default());
        expect(recorded.iter().any(|file| !file.is_empty()), || "nothing was recorded".to_owned())?;
        Ok(recorded.iter().any(|file| file.windows(bytes.len()).any(|at| at == bytes)))
    }

    /// Where consoles, logs and the capture are while the lab runs.
    pub fn evidence(&self) -> &Path {
        &self.evidence
    }

    /// Says that all went well: the evidence is removed with the lab.
    pub fn succeeded(&mut self) {
        self.keep = false;
    }

    fn ends<'a>(&'a self, machine: &'a Machine) -> [(&'a Namespace, String); 2] {
        [(&machine.namespace, "eth0".to_owned()), (&self.switch, port_name(machine.port))]
    }
}

impl Drop for NetLab {
    fn drop(&mut self) {
        if let Some(mut capture) = self.capture.take() {
            // The lab is ending: whether tcpdump was still there changes nothing.
            capture.kill().ok();
            capture.wait().ok();
        }
        if self.keep {
            say("lab", format_args!("consoles and logs are kept in {}", self.evidence.display()));
        } else {
            fs::remove_dir_all(&self.evidence).ok();
        }
    }
}

impl Machine {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the link.
    pub fn address(&self) -> Ipv4Addr {
        address(self.port)
    }

    /// Folder for what its processes write.
    pub fn evidence(&self) -> &Path {
        &self.evidence
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        self.namespace.ip(arguments)
    }

    /// Runs `bridge` inside.
    pub fn bridge(&self, arguments: &[&str]) -> Result<()> {
        let program = Program::new("bridge").args(["-n", &self.namespace.name]).args(arguments).deadline(SHORT);
        program.quiet().with_context(|| format!("bridge {}", arguments.join(" ")))
    }

    /// Starts a process inside.
    pub fn spawn(&self, command: Command) -> Result<Child> {
        self.namespace.spawn(command).with_context(|| format!("on machine {}", self.name))
    }

    /// Runs a closure in a thread whose sockets are this machine's.
    pub fn within<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.namespace.within(body)
    }

    /// A way into its network.
    pub fn entrance(&self) -> Entrance {
        self.namespace.entrance()
    }

    /// As [`Machine::within`], without waiting for the end.
    pub fn thread<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<Result<T>> {
        self.entrance().thread(body)
    }
}

/// A way into a machine's network, for whoever is not to hold on to the machine.
#[derive(Debug, Clone)]
pub struct Entrance {
    path: PathBuf,
}

impl Entrance {
    /// Runs a closure in a thread whose sockets are the machine's.
    pub fn within<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.thread(body).join().map_err(|_| anyhow!("a thread in {} panicked", self.path.display()))?
    }

    /// As [`Entrance::within`], without waiting for the end.
    pub fn thread<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<Result<T>> {
        let path = self.path.clone();
        thread::spawn(move || {
            let file = fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))?;
            Ok(body())
        })
    }
}

/// A network namespace, gone with its owner.
struct Namespace {
    name: String,
}

impl Namespace {
    fn create() -> Result<Self> {
        let name = format!("{PREFIX}{}-{}", std::process::id(), NAMESPACES.fetch_add(1, Ordering::Relaxed));
        Program::new("ip").args(["netns", "add", &name]).deadline(SHORT).quiet().context("make a network namespace; it needs root")?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        // Routers are not part of the lab, and their solicitations would only disturb captures.
        namespace.within(|| fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok())?;
        Ok(namespace)
    }

    fn entrance(&self) -> Entrance {
        Entrance { path: Path::new("/run/netns").join(&self.name) }
    }

    fn ip(&self, arguments: &[&str]) -> Result<String> {
        Program::new("ip")
            .args(["-n", &self.name])
            .args(arguments)
            .deadline(SHORT)
            .output()
            .with_context(|| format!("ip {}", arguments.join(" ")))
    }

    fn tc(&self, arguments: &[&str]) -> Result<()> {
        Program::new("tc")
            .args(["-n", &self.name])
            .args(arguments)
            .deadline(SHORT)
            .quiet()
            .with_context(|| format!("tc {}", arguments.join(" ")))
    }

    fn unshape(&self, device: &str) -> Result<()> {
        let shaped = Program::new("tc").args(["-n", &self.name, "qdisc", "show", "dev", device]).deadline(SHORT).output()?;
        if shaped.contains("noqueue") { Ok(()) } else { self.tc(&["qdisc", "del", "dev", device, "root"]) }
    }

    fn spawn(&self, mut command: Command) -> Result<Child> {
        // A child begins in the namespace of the thread that makes it.
        let name = command.get_program().to_string_lossy().into_owned();
        self.within(move || command.spawn())?.with_context(|| format!("start {name}"))
    }

    fn within<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.entrance().within(body)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nobody is left to tell; `clean` finds what stays.
        Program::new("ip").args(["netns", "del", &self.name]).deadline(SHORT).quiet().ok();
    }
}

/// Ends the processes and removes the namespaces of runs that are no more; returns how many namespaces there were.
pub fn clean() -> Result<usize> {
    let listed = Program::new("ip").args(["netns", "list"]).deadline(SHORT).output()?;
    let names: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| is_left_over(name)).collect();
    for name in &names {
        let processes = Program::new("ip").args(["netns", "pids", name]).deadline(SHORT).output()?;
        for process in processes.split_whitespace().filter_map(|text| text.parse().ok()) {
            // It may end by itself meanwhile.
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), nix::sys::signal::Signal::SIGKILL).ok();
        }
        Program::new("ip").args(["netns", "del", name]).deadline(SHORT).quiet()?;
    }
    Ok(names.len())
}

/// Whether a namespace is one of ours whose run has ended.
fn is_left_over(name: &str) -> bool {
    let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
    process.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn address(port: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, port as u8 + 1)
}

fn port_name(port: usize) -> String {
    format!("port{port}")
}

fn evidence_folder(name: &str) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let folder = paths::runs().join(format!("{name}-{}-{now}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Reads a small file, for the error message that quotes it.
pub(super) fn tail_of(path: &Path) -> String {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(64 << 10).read_to_string(&mut text));
    match read {
        Ok(_) => text.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" | "),
        Err(error) => format!("({}: {error})", path.display()),
    }
}

/// Fails if `ok` is false, saying what was expected.
pub fn expect(ok: bool, what: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { bail!(what()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ended_runs_left_is_cleaned() {
        assert!(is_left_over("rbl-4294967295-0"));
        assert!(!is_left_over(&format!("rbl-{}-0", std::process::id())));
        assert!(!is_left_over("rbl-x-0") && !is_left_over("other"));
    }

    #[test]
    fn a_cut_link_passes_nothing_until_it_is_healed() {
        let mut lab = NetLab::start("netlab-cut", &["a", "b"]).unwrap();
        let [a, b] = [lab.machines[0].address(), lab.machines[1].address()];
        let receive = lab.machines[1].within(move || std::net::UdpSocket::bind((b, 9)).unwrap()).unwrap();
        let send = lab.machines[0].within(move || std::net::UdpSocket::bind((a, 9)).unwrap()).unwrap();
        receive.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let passes = || {
            // A cut link may tell the sender that its queue is full.
            send.send_to(b"x", (b, 9)).ok();
            receive.recv(&mut [0; 16]).is_ok()
        };
        assert!(passes());
        lab.cut(&lab.machines[1]).unwrap();
        assert!(!passes());
        lab.shape(Some(100)).unwrap();
        assert!(passes());
        lab.cut(&lab.machines[0]).unwrap();
        assert!(!passes());
        lab.shape(None).unwrap();
        assert!(passes());
        lab.succeeded();
    }
}
