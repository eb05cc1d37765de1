//! A VM in a lab machine: `rebec-vmm` with the options users have, started by the agent.
//!
//! One value is one VMM process on one machine. A move therefore has two: the one that sends and the one that receives.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use rebec_vmm_api::{MoveReport, control::Status};

use super::{Lab, lab::address, machine::ORDER_DEADLINE, orders::Orders};
use crate::{
    artifacts::{self, Artifact},
    channel::client::Job,
    guest::{self, GuestFiles},
    progress::say,
    provision::Kernel,
    qemu::image::Share,
};

/// The program, where the share has it.
pub const PROGRAM: &str = "/share/bin/rebec-vmm";
/// How long a VM may take from its start to its workload: five times what two busy cores were seen to need.
pub const GUEST_BOOT_DEADLINE: Duration = Duration::from_secs(240);
/// How often a move's progress is shown.
const SHOWN_EVERY: Duration = Duration::from_secs(5);
/// LAN of the lab's VMs.
const VNI: u32 = 7;

/// What a VM is, wherever it runs.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// For people, files and sockets.
    pub name: &'static str,
    /// Distinguishes MAC, address and UDP port; from 1.
    pub number: u8,
    /// As in `256M`.
    pub memory: &'static str,
    /// Processors.
    pub vcpus: u8,
}

impl VmSpec {
    /// Its MAC.
    pub fn mac(&self) -> String {
        format!("52:54:00:77:00:{:02x}", self.number)
    }

    /// Its address on the LAN.
    pub fn address(&self) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its port's endpoint while it runs on a machine.
    pub fn endpoint(&self, machine: usize) -> String {
        format!("{}:{}", address(machine), 4800 + u16::from(self.number))
    }

    /// Where its disk lies in a machine.
    pub fn disk(&self) -> String {
        format!("/work/{}.qcow2", self.name)
    }

    fn serial(&self) -> String {
        format!("/run/{}.serial", self.name)
    }

    fn control(&self) -> String {
        format!("/run/{}.control", self.name)
    }
}

/// Files every lab machine needs to run VMs.
pub fn share(kernel: &Kernel, files: &GuestFiles, vmm: Option<&PathBuf>) -> Result<Share> {
    let vmm = match vmm {
        Some(path) => artifacts::ensure_static(path).map(|()| path.clone())?,
        None => artifacts::build(Artifact::Vmm)?,
    };
    Ok(Share::default()
        .with("bin/rebec-vmm", &vmm)
        .with("guest/vmlinuz", &kernel.bzimage)
        .with("guest/vmlinux", &kernel.elf)
        .with("guest/initramfs", &files.initramfs)
        .with("guest/base.raw", &files.base))
}

/// One VMM process. Dropped, it is ended.
pub struct Vm {
    /// What it runs.
    pub spec: VmSpec,
    /// The machine it is on, by port.
    pub machine: usize,
    job: Job,
    log: PathBuf,
}

impl Vm {
    /// Boots a VM with a fresh disk over the shared base. `peers` are VMs on its LAN and where they are.
    pub fn run(lab: &Lab, machine: usize, spec: &VmSpec, peers: &[(&VmSpec, usize)]) -> Result<Self> {
        let host = &lab.machines[machine];
        let disk = lab.evidence().join(format!("{}.qcow2", spec.name));
        guest::overlay(&disk, "/share/guest/base.raw")?;
        host.put_file(&spec.disk(), &disk, 0o600, ORDER_DEADLINE)?;
        fs::remove_file(&disk).with_context(|| format!("remove {}", disk.display()))?;
        let cmdline = format!("{} rebec.name={} rebec.ip=dhcp", guest::cmdline(), spec.name);
        let mut argv = words(&["run", "--kernel", "/share/guest/vmlinux", "--initramfs", "/share/guest/initramfs"]);
        argv.extend(words(&["--cmdline", &cmdline, "--memory", spec.memory, "--vcpus", &spec.vcpus.to_string()]));
        Self::start(lab, machine, spec, peers, argv, "run")
    }

    /// Waits on a machine for a VM to arrive.
    pub fn receive(lab: &Lab, machine: usize, spec: &VmSpec, peers: &[(&VmSpec, usize)], donors: &[&VmSpec]) -> Result<Self> {
        let mut argv = words(&["receive", "--listen", &Self::listen(machine)]);
        for donor in donors {
            argv.extend(words(&["--donor", &donor.control()]));
        }
        let vm = Self::start(lab, machine, spec, peers, argv, "receive")?;
        let port = format!("{:04X}", Self::PORT);
        let ready = format!(
            "n=0; until grep -q ':{port} 00000000:0000 0A' /proc/net/tcp; do n=$((n+1)); [ $n -gt 300 ] && exit 1; sleep 0.1; done"
        );
        let listens = lab.machines[machine].check(&["sh", "-c", &ready], ORDER_DEADLINE);
        listens.with_context(|| format!("rebec-vmm receive on machine {} does not listen: {}", lab.machines[machine].name(), vm.said()))?;
        Ok(vm)
    }

    const PORT: u16 = 7000;

    /// Where `receive` listens on a machine.
    pub fn listen(machine: usize) -> String {
        format!("{}:{}", address(machine), Self::PORT)
    }

    fn start(lab: &Lab, machine: usize, spec: &VmSpec, peers: &[(&VmSpec, usize)], argv: Vec<String>, role: &str) -> Result<Self> {
        let host = &lab.machines[machine];
        let mut net = format!("vni={VNI},mac={},local={},ip={}/24", spec.mac(), spec.endpoint(machine), spec.address());
        for (peer, place) in peers {
            net += &format!(",peer={}@{}@{}", peer.mac(), peer.endpoint(*place), peer.address());
        }
        let mut all = words(&["env", "REBEC_LOG=info", PROGRAM]);
        all.extend(argv);
        all.extend(words(&["--disk", &spec.disk(), "--net", &net, "--ledger", &format!("/work/{}.ledger", spec.name)]));
        all.extend(words(&["--serial", &format!("unix:{}", spec.serial()), "--control", &spec.control()]));
        host.shell(&format!("rm -f {} {}", spec.serial(), spec.control()))?;
        let job = host.start(&all.iter().map(String::as_str).collect::<Vec<_>>())?;
        let log = lab.evidence().join(format!("{}-{}-{role}.log", spec.name, host.name()));
        Ok(Self { spec: spec.clone(), machine, job, log })
    }

    /// Connects to the guest's workload.
    pub fn orders(&self, lab: &Lab, first: u64) -> Result<Orders> {
        let console = lab.evidence().join(format!("{}.console", self.spec.name));
        let connected = Orders::connect(&lab.machines[self.machine], self.spec.name, &self.spec.serial(), &console, first);
        connected.map_err(|error| match self.job.ended() {
            Ok(Some(code)) => error.context(format!("rebec-vmm ended with code {code}: {}", self.said())),
            _ => error,
        })
    }

    /// `rebec-vmm ctl` for this VM; returns its exit code, stdout and stderr.
    pub fn ctl(&self, lab: &Lab, order: &[&str]) -> Result<String> {
        let mut argv = vec![PROGRAM, "ctl"];
        let control = self.spec.control();
        argv.push(&control);
        argv.extend_from_slice(order);
        lab.machines[self.machine].check(&argv, ORDER_DEADLINE)
    }

    /// What the VMM says of its VM.
    pub fn status(&self, lab: &Lab) -> Result<Status> {
        let text = self.ctl(lab, &["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status of vm {}: {text}", self.spec.name))
    }

    /// Begins to move the VM; [`Moving::finish`] waits for its end.
    pub fn begin_move(&self, lab: &Lab, to: usize, options: &[&str]) -> Result<Moving> {
        let (control, target) = (self.spec.control(), Self::listen(to));
        let mut argv = vec![PROGRAM, "ctl", &control, "migrate", "--to", &target];
        argv.extend_from_slice(options);
        let job = lab.machines[self.machine].start(&argv)?;
        Ok(Moving::new(job, self.spec.name))
    }

    /// Waits for the process to end by itself.
    pub fn wait_end(&self, deadline: Duration) -> Result<i32> {
        let done = self.job.finish(deadline).with_context(|| format!("wait for the VMM of {} to end", self.spec.name))?;
        self.keep(done.errors.as_bytes());
        Ok(done.code)
    }

    /// The end of what the process said on stderr; all of it goes to the evidence.
    pub fn said(&self) -> String {
        self.keep(&self.job.take_errors());
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(5).collect();
        last.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    fn keep(&self, bytes: &[u8]) {
        use std::io::Write as _;
        let file = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        // Evidence that cannot be written must not hide what it is evidence of.
        file.and_then(|mut file| file.write_all(bytes)).ok();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.said();
    }
}

/// A move under way.
pub struct Moving {
    job: Job,
    name: String,
}

impl Moving {
    /// A job that prints its progress on stderr and its report, as JSON, on stdout.
    pub fn new(job: Job, name: &str) -> Self {
        Self { job, name: name.to_owned() }
    }

    /// Waits for the end while passing on what `ctl migrate` says. The exit code goes with the report.
    pub fn finish(self, deadline: Duration) -> Result<(i32, MoveReport)> {
        let start = std::time::Instant::now();
        let (mut said, mut printed, mut shown) = (String::new(), Vec::new(), None::<std::time::Instant>);
        loop {
            let ended = self.job.ended()?;
            printed.extend(self.job.take_output());
            said += &String::from_utf8_lossy(&self.job.take_errors());
            while let Some(end) = said.find(['\n', '\r']) {
                let line: String = said.drain(..=end).collect();
                if !line.trim().is_empty() && shown.is_none_or(|shown| shown.elapsed() > SHOWN_EVERY) {
                    shown = Some(std::time::Instant::now());
                    say(&format!("move {}", self.name), line.trim());
                }
            }
            if let Some(code) = ended {
                let text = String::from_utf8_lossy(&printed);
                let report = serde_json::from_str(text.trim());
                return Ok((
                    code,
                    report.with_context(|| format!("move vm {}: exit code {code} and no report: {} {said}", self.name, text.trim()))?,
                ));
            }
            if start.elapsed() > deadline {
                bail!("move vm {}: not over after {} s", self.name, deadline.as_secs());
            }
            self.job.wait_output(Duration::from_secs(1));
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
