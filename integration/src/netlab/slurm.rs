//! A cluster of Debian 13's Slurm on machines of the lab: the controller on one, `slurmd` on others, each in that machine's network and all in one layer of
//! files over this host's own, which they cannot change.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Machine,
    lab::{expect, tail_of},
    vmm::SHORT,
};
use crate::command::Program;

const POLL: Duration = Duration::from_millis(50);
const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the layer, begins munge, and waits for its end. In namespaces of its own.
const AROUND: &str = r#"set -e
mount --make-rprivate /
mkdir -p "$SCENE"
mount -t tmpfs tmpfs "$SCENE"
mkdir "$SCENE/own" "$SCENE/work" "$SCENE/root"
cp -a "$SLURM/." "$SCENE/own"
mount -t overlay overlay -o "lowerdir=/,upperdir=$SCENE/own,workdir=$SCENE/work" "$SCENE/root"
cd "$SCENE/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
hostname ctl
printf '127.0.0.1 localhost\n%s ctl\n' "$ADDRESS" > etc/hosts
pivot_root . mnt
umount -l /mnt
for name in slurmctld slurmd slurmstepd; do ln -sf $name-wlm /usr/sbin/$name; done
mkdir -p /etc/munge /run/munge /var/log/munge /var/lib/munge /etc/slurm /var/spool/slurm
head -c 1024 /dev/urandom > /etc/munge/munge.key
chown -R root /etc/munge /var/log/munge /var/lib/munge
chmod -R go-rwx /etc/munge /var/log/munge
chmod 711 /var/lib/munge
chmod 755 /run/munge
echo CgroupPlugin=disabled > /etc/slurm/cgroup.conf
cat > /etc/slurm/slurm.conf <<END
ClusterName=lab
SlurmctldHost=ctl($ADDRESS)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurm
SlurmdSpoolDir=/var/spool/slurmd-%n
SlurmdPidFile=/run/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MaxNodeCount=64
TreeWidth=65533
SlurmctldParameters=cloud_reg_addrs
KillWait=1
PartitionName=main Nodes=ALL Default=YES State=UP
END
# The shell stays the first process, which takes in what jobs leave behind.
munged --foreground --force &
wait $!
"#;

/// A cluster. Dropped, all of it ends.
pub struct Slurm {
    around: Child,
    /// The first process of its namespaces, as this host numbers it.
    first: i32,
    evidence: PathBuf,
    controller: Option<Child>,
    nodes: Vec<Child>,
}

impl Slurm {
    /// Begins one on a machine, from the folder of Slurm's files; returns when its controller answers.
    pub fn begin(machine: &Machine, files: &Path) -> Result<Self> {
        let log = File::create(machine.evidence().join("munged.log"))?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-c", AROUND]);
        command.env("SCENE", machine.evidence().join("slurm")).env("SLURM", files).env("ADDRESS", machine.address().to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let around = machine.spawn(command)?;
        let mut slurm = Self { around, first: 0, evidence: machine.evidence().to_owned(), controller: None, nodes: vec![] };
        slurm.wait("munge answers", |slurm| {
            slurm.first = child_of(slurm.around.id().cast_signed()).unwrap_or(0);
            Ok(slurm.first != 0 && slurm.run(&["munge", "--no-input"]).is_ok())
        })?;
        slurm.restart(machine)?;
        Ok(slurm)
    }

    /// Starts the controller, and waits until it answers.
    pub fn restart(&mut self, machine: &Machine) -> Result<()> {
        self.controller = Some(self.spawn(machine, &["slurmctld", "-D"], "slurmctld.log")?);
        self.wait("slurmctld answers", |slurm| Ok(slurm.run(&["scontrol", "ping"]).is_ok_and(|said| said.contains("UP"))))
    }

    /// `kill -9` of the controller; jobs run on.
    pub fn kill_controller(&mut self) -> Result<()> {
        let Some(mut controller) = self.controller.take() else { return Ok(()) };
        // Its parent entered the namespaces for it, and ends with it.
        self.run(&["sh", "-c", "kill -9 $(pidof slurmctld)"])?;
        controller.wait()?;
        Ok(())
    }

    /// Starts `slurmd` on a machine as a node that tells of itself.
    pub fn join(&mut self, machine: &Machine, name: &str, conf: &str) -> Result<()> {
        let node = self.spawn(machine, &["slurmd", "-D", "-Z", "-N", name, "--conf", conf], &format!("slurmd-{name}.log"))?;
        self.nodes.push(node);
        Ok(())
    }

    /// Words before a program of it.
    pub fn enter(&self) -> Vec<String> {
        let first = self.first.to_string();
        let words = ["nsenter", "--target", &first, "--mount", "--uts", "--pid", "--ipc", "--net", "--", "env", "-i", PATH];
        words.map(str::to_owned).to_vec()
    }

    /// Runs a program of it, and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let enter = self.enter();
        Program::new(&enter[0]).args(&enter[1..]).args(words).deadline(SHORT).output().with_context(|| words.join(" "))
    }

    fn spawn(&self, machine: &Machine, words: &[&str], log: &str) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.evidence.join(log))?;
        let mut command = Command::new("nsenter");
        // The network is that of the machine.
        command.args(["--target", &self.first.to_string(), "--mount", "--uts", "--pid", "--ipc", "--", "env", "-i", PATH]);
        command.args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        machine.spawn(command)
    }

    fn wait(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let until = Instant::now() + SHORT;
        while !holds(self)? {
            let logs = ["munged.log", "slurmctld.log"].map(|log| tail_of(&self.evidence.join(log))).join(" | ");
            expect(self.around.try_wait()?.is_none() && Instant::now() < until, || format!("not so: {what}: {logs}"))?;
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // With their first process all of a namespace's end.
        if self.first != 0 {
            kill(Pid::from_raw(self.first), Signal::SIGKILL).ok();
        }
        self.around.kill().ok();
        self.around.wait().ok();
        for child in self.controller.iter_mut().chain(&mut self.nodes) {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn child_of(process: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?.split_whitespace().next()?.parse().ok()
}
