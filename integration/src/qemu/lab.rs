//! Machines, the switch between them and a folder of evidence, as one value that cleans up after itself.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{
    Accel, Machine, Shape,
    image::{self, Share},
    machine::{MachineConfig, ORDER_DEADLINE},
    switch::Switch,
    tsc,
};
use crate::{
    appliance::Appliance,
    paths,
    progress::say,
    provision::{Emulator, Provisions},
};

/// What a lab consists of.
pub struct LabConfig<'a> {
    /// Names the folder of evidence.
    pub name: &'a str,
    /// Names of the machines, in order of their ports.
    pub machines: &'a [&'a str],
    /// How they run; none leaves it to what the host can give.
    pub accel: Option<Accel>,
    /// Memory of each in MiB.
    pub memory_mib: u32,
    /// What each finds on `/share`.
    pub share: Share,
    /// What every link between two machines is like.
    pub link: Shape,
    /// More words for QEMU: other devices of each machine.
    pub devices: &'a [&'a str],
}

/// What machines boot.
#[derive(Debug, Clone, Copy)]
pub enum System<'a> {
    /// The lab's own initramfs, with busybox and what tests use.
    Bare,
    /// The appliance, told its name and address on the kernel's command line.
    Appliance(&'a Appliance),
}

/// A running lab. Its evidence is removed when it ends well, and kept otherwise.
pub struct Lab {
    /// In order of their ports; port `n` has the address `10.0.0.(n + 1)`.
    pub machines: Vec<Machine>,
    /// The network between them.
    pub switch: Switch,
    evidence: PathBuf,
    keep: bool,
    starting: Starting,
}

/// What every machine of a lab is started with.
struct Starting {
    emulator: Emulator,
    kernel: PathBuf,
    initramfs: PathBuf,
    share: PathBuf,
    accel: Accel,
    memory_mib: u32,
    is_appliance: bool,
}

impl Lab {
    /// Boots all machines at once and waits until each is ready, with its address set.
    pub fn start(provisions: &Provisions, config: &LabConfig<'_>) -> Result<Self> {
        Self::start_with(provisions, config, System::Bare)
    }

    /// The same with another system in the machines.
    pub fn start_with(provisions: &Provisions, config: &LabConfig<'_>, system: System<'_>) -> Result<Self> {
        const TRIES: u32 = 3;
        let accel = Accel::choose(config.accel, provisions)?;
        for _ in 0..TRIES {
            match Self::start_once(provisions, config, system, accel)? {
                Started::Ready(lab) => return Ok(*lab),
                Started::WrongClock(name) => {
                    say("lab", format_args!("machine {name} measured its clock wrongly: booting again with the right frequency"));
                }
            }
        }
        bail!("lab machines measured their clocks wrongly {TRIES} times; the host is too busy")
    }

    fn start_once(provisions: &Provisions, config: &LabConfig<'_>, system: System<'_>, accel: Accel) -> Result<Started> {
        let (kernel, initramfs) = match system {
            System::Bare => (provisions.lab.elf.clone(), image::lab_initramfs(&provisions.lab)?),
            System::Appliance(appliance) => (appliance.vmlinux()?, appliance.lab_initrd()?),
        };
        let evidence = evidence_folder(config.name)?;
        let share = evidence.join("share.img");
        config.share.write(&share)?;
        let switch = Switch::start(config.machines.len(), Some(&evidence.join("network.pcap")))?;
        for one in 0..config.machines.len() {
            for other in 0..one {
                switch.shape(one, other, config.link);
            }
        }
        let (emulator, is_appliance) = (provisions.emulator.clone(), matches!(system, System::Appliance(_)));
        let starting = Starting { emulator, kernel, initramfs, share, accel, memory_mib: config.memory_mib, is_appliance };
        let mut lab = Self { machines: Vec::new(), switch, evidence, keep: true, starting };
        say("lab", format_args!("booting {}", config.machines.join(" and ")));
        for (port, name) in config.machines.iter().enumerate() {
            let machine = lab.start_machine(port, name, "", config.devices)?;
            lab.machines.push(machine);
        }
        let clocks_are_right = lab.wait_ready()?;
        if let Some((machine, _)) = lab.machines.iter().zip(clocks_are_right).find(|(_, right)| !right) {
            let name = machine.name().to_owned();
            lab.keep = false;
            return Ok(Started::WrongClock(name));
        }
        Ok(Started::Ready(Box::new(lab)))
    }

    /// Waits for all machines, side by side: a clock is watched for seconds. Says of each whether its clock runs as it should.
    fn wait_ready(&self) -> Result<Vec<bool>> {
        std::thread::scope(|scope| {
            let start = |(port, machine)| scope.spawn(move || self.wait_machine(port, machine));
            let waiting: Vec<_> = self.machines.iter().enumerate().map(start).collect();
            waiting.into_iter().map(|one| one.join().map_err(|_| anyhow!("the thread that waits for a machine panicked"))?).collect()
        })
    }

    fn wait_machine(&self, port: usize, machine: &Machine) -> Result<bool> {
        machine.wait_ready(true)?;
        if !self.starting.is_appliance {
            let wait = "until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done";
            machine.shell(&format!("{wait}; ip addr add {}/24 dev eth0 && ip link set eth0 up", address(port)))?;
        }
        if self.starting.accel == Accel::Tcg && !tsc::learn(machine)? {
            return Ok(false);
        }
        machine.set_clock()?;
        say("lab", format_args!("machine {} is ready", machine.name()));
        Ok(true)
    }

    fn start_machine(&self, port: usize, name: &str, more: &str, devices: &[&str]) -> Result<Machine> {
        let Starting { emulator, kernel, initramfs, share, accel, memory_mib, is_appliance } = &self.starting;
        let words = if *is_appliance {
            format!(" quiet rebec.state=ram rebec.hostname={name} rebec.ip={}/24{more}", address(port))
        } else {
            more.to_owned()
        };
        Machine::start(&MachineConfig {
            name,
            emulator,
            kernel,
            initramfs,
            words: &words,
            accel: *accel,
            memory_mib: *memory_mib,
            vcpus: accel.processors(),
            share: Some(share),
            network: Some((self.switch.socket(port), mac(port))),
            devices,
            evidence: &self.evidence,
        })
    }

    /// Puts another machine in the place of one, with more words on its kernel's command line and more devices, and waits until it is ready.
    /// Its clock is left alone.
    pub fn replace(&mut self, port: usize, name: &str, words: &str, devices: &[&str]) -> Result<&Machine> {
        self.machines[port].kill();
        self.machines[port] = self.start_machine(port, name, words, devices)?;
        let machine = &self.machines[port];
        machine.wait_ready(true)?;
        say("lab", format_args!("machine {name} is ready"));
        Ok(machine)
    }

    /// Where consoles, logs and the capture are while the lab runs.
    pub fn evidence(&self) -> &Path {
        &self.evidence
    }

    /// Sets every machine's clock anew: emulated processors drift.
    pub fn set_clocks(&self) -> Result<Duration> {
        let mut worst = Duration::ZERO;
        for machine in &self.machines {
            worst = worst.max(machine.set_clock()?);
        }
        Ok(worst)
    }

    /// Says that all went well: the evidence is removed with the lab.
    pub fn succeeded(&mut self) {
        self.keep = false;
    }

    /// Whether every machine has KVM.
    pub fn check_kvm(&self) -> Result<()> {
        for machine in &self.machines {
            machine
                .check(&["test", "-c", "/dev/kvm"], ORDER_DEADLINE)
                .with_context(|| format!("machine {} has no /dev/kvm; see {}", machine.name(), machine.console().display()))?;
        }
        Ok(())
    }
}

/// How a start ended.
enum Started {
    Ready(Box<Lab>),
    /// A machine whose kernel believes in a wrong frequency; the right one is known now.
    WrongClock(String),
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.machines.clear();
        // The share only repeats what is in the images folder.
        fs::remove_file(self.evidence.join("share.img")).ok();
        if self.keep {
            say("lab", format_args!("consoles, logs and network.pcap are kept in {}", self.evidence.display()));
        } else {
            fs::remove_dir_all(&self.evidence).ok();
        }
    }
}

/// The address of the machine at a port.
pub fn address(port: usize) -> String {
    format!("10.0.0.{}", port + 1)
}

/// The MAC of the machine at a port.
pub fn mac(port: usize) -> String {
    format!("52:54:00:1a:b0:{port:02x}")
}

fn evidence_folder(name: &str) -> Result<PathBuf> {
    sweep(&paths::runs());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let folder = paths::runs().join(format!("{name}-{}-{}", now.as_secs(), std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

/// Removes the shared disks, hundreds of megabytes each, of runs that were killed; their consoles stay.
fn sweep(runs: &Path) {
    for run in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = run.file_name().to_string_lossy().into_owned();
        let process = name.rsplit('-').next().unwrap_or_default();
        if !process.is_empty() && !Path::new("/proc").join(process).exists() {
            // Most have none.
            fs::remove_file(run.path().join("share.img")).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_disks_of_ended_runs_are_swept() {
        let runs = tempfile::tempdir().unwrap();
        let (ours, theirs) = (format!("demo-1-{}", std::process::id()), "demo-1-4194305".to_owned());
        for run in [&ours, &theirs] {
            fs::create_dir(runs.path().join(run)).unwrap();
            for file in ["share.img", "a.console"] {
                fs::write(runs.path().join(run).join(file), "x").unwrap();
            }
        }
        sweep(runs.path());
        assert!(runs.path().join(&ours).join("share.img").exists());
        assert!(!runs.path().join(&theirs).join("share.img").exists());
        assert!(runs.path().join(&theirs).join("a.console").exists());
    }
}
