//! `rebec-vmm` as a process on a machine: started with the options users have, its serial port captured, its end awaited.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rebec_vmm_api::{MoveReport, Outcome, control::Status};

use super::{
    Console, Machine,
    lab::{expect, tail_of},
};
use crate::artifacts::{self, Artifact};

/// Between two looks at a process that is to end.
const POLL: Duration = Duration::from_millis(5);
/// How long a start, a request or an orderly end may take on a busy host.
pub const SHORT: Duration = Duration::from_secs(30);
/// How long a move may take.
pub const LONG: Duration = Duration::from_secs(180);

/// What a VM consists of: options of `rebec-vmm`, in its words.
#[derive(Debug, Clone, Default)]
pub struct VmmConfig {
    /// What boots; without one, what the first disk says. `receive` starts from it should the guest reset.
    pub kernel: PathBuf,
    /// Its command line.
    pub cmdline: String,
    /// As in `256M`.
    pub memory: String,
    /// Value of `--memory-max`; without one, its memory stays as it is.
    pub memory_max: Option<String>,
    /// Values of `--disk`.
    pub disks: Vec<String>,
    /// Values of `--net`.
    pub nets: Vec<String>,
    /// Value of `--ledger`.
    pub ledger: Option<PathBuf>,
    /// Value of `--cpu`; without one, none is said.
    pub cpu: Option<String>,
    /// Whether it has `--lease`.
    pub lease: bool,
    /// Control sockets of donors, for `receive`.
    pub donors: Vec<PathBuf>,
}

/// One VMM process. Dropped, it is killed.
pub struct Vmm {
    name: String,
    child: Child,
    /// The guest's serial port.
    pub console: Console,
    control: PathBuf,
    // Held for its Drop too: the folder of the control socket, whose path must be short wherever the repository lies.
    _sockets: tempfile::TempDir,
    log: PathBuf,
}

/// How `ctl` ended.
#[derive(Debug)]
pub struct Ctl {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

/// How `ctl migrate` ended.
#[derive(Debug)]
pub struct Moved {
    /// Its exit code.
    pub code: Option<i32>,
    /// The object it printed.
    pub report: MoveReport,
}

/// The program, built statically as users and lab machines get it; once per process.
pub fn program() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_none() {
        *built = Some(artifacts::build(Artifact::Vmm)?);
    }
    built.clone().context("invariant: built above")
}

impl Vmm {
    /// `rebec-vmm run` on a machine. `name` names its files in the evidence.
    pub fn run(machine: &Machine, name: &str, config: &VmmConfig) -> Result<Self> {
        let mut command = Command::new(program()?);
        command.args(["run", "--cmdline", &config.cmdline, "--memory", &config.memory]);
        if !config.kernel.as_os_str().is_empty() {
            command.arg("--kernel").arg(&config.kernel);
        }
        if let Some(max) = &config.memory_max {
            command.args(["--memory-max", max]);
        }
        Self::start(machine, name, command, config)
    }

    /// `rebec-vmm receive` on a machine, at `port` of its address. Returns when it listens.
    pub fn receive(machine: &Machine, name: &str, port: u16, config: &VmmConfig) -> Result<Self> {
        let mut command = Command::new(program()?);
        command.args(["receive", "--listen", &format!("{}:{port}", machine.address())]);
        for donor in &config.donors {
            command.arg("--donor").arg(donor);
        }
        if !config.kernel.as_os_str().is_empty() {
            command.arg("--kernel").arg(&config.kernel).args(["--cmdline", &config.cmdline]);
        }
        Self::start(machine, name, command, config)
    }

    fn start(machine: &Machine, name: &str, mut command: Command, config: &VmmConfig) -> Result<Self> {
        let name = format!("{name}-{}", machine.name());
        let file = |end: &str| machine.evidence().join(format!("{name}.{end}"));
        let sockets = tempfile::Builder::new().prefix("rebec-").tempdir().context("create a folder for the control socket")?;
        let (control, log) = (sockets.path().join("control"), file("log"));
        command.args(["--serial", "stdio"]).arg("--control").arg(&control);
        command.args(config.disks.iter().flat_map(|disk| ["--disk", disk]));
        command.args(config.nets.iter().flat_map(|net| ["--net", net]));
        if let Some(ledger) = &config.ledger {
            command.arg("--ledger").arg(ledger);
        }
        if let Some(cpu) = &config.cpu {
            command.arg("--cpu").arg(cpu);
        }
        if config.lease {
            command.arg("--lease");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log).with_context(|| format!("make {}", log.display()))?);
        let mut child = machine.spawn(command)?;
        let (stdout, stdin) = (child.stdout.take().context("no stdout")?, child.stdin.take().context("no stdin")?);
        let console = Console::new(stdout, stdin, &file("console"))?;
        let mut vmm = Self { name, child, console, control, _sockets: sockets, log };
        vmm.wait_for_control()?;
        Ok(vmm)
    }

    fn wait_for_control(&mut self) -> Result<()> {
        let until = Instant::now() + SHORT;
        while !self.control.exists() {
            if let Some(status) = self.child.try_wait()? {
                // A VM may be over before anybody looks for its socket.
                return expect(status.success(), || format!("vmm {} ended with {status}: {}", self.name, tail_of(&self.log)));
            }
            expect(Instant::now() < until, || format!("vmm {} made no control socket: {}", self.name, tail_of(&self.log)))?;
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Its control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// The process that was started, which a user would send signals to; others may be below it.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What it said on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `rebec-vmm ctl` on the machine's side of the socket.
    pub fn ctl(&self, machine: &Machine, arguments: &[&str]) -> Result<Ctl> {
        let child = self.begin_ctl(machine, arguments)?;
        let Output { status, stdout, stderr } = wait_with_output(child, LONG).with_context(|| format!("ctl {}", arguments.join(" ")))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ctl { code: status.code(), stdout: text(stdout), stderr: text(stderr) })
    }

    /// Starts `rebec-vmm ctl`; the caller awaits it.
    pub fn begin_ctl(&self, machine: &Machine, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(program()?);
        command.arg("ctl").arg(&self.control).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        machine.spawn(command)
    }

    /// `ctl`, whose failure is an error.
    pub fn must(&self, machine: &Machine, arguments: &[&str]) -> Result<String> {
        let ctl = self.ctl(machine, arguments)?;
        expect(ctl.code == Some(0), || format!("ctl {} ended with {:?}: {}", arguments.join(" "), ctl.code, ctl.stderr.trim()))?;
        Ok(ctl.stdout)
    }

    /// The VM's state.
    pub fn status(&self, machine: &Machine) -> Result<Status> {
        let text = self.must(machine, &["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status of {}: `{}`", self.name, text.trim()))
    }

    /// Moves the VM to a machine that receives, and returns how that ended.
    pub fn migrate(&self, machine: &Machine, to: &Machine, port: u16, options: &[&str]) -> Result<Moved> {
        self.end_migrate(self.begin_migrate(machine, to, port, options)?)
    }

    /// Begins a move; [`Vmm::end_migrate`] awaits it.
    pub fn begin_migrate(&self, machine: &Machine, to: &Machine, port: u16, options: &[&str]) -> Result<Child> {
        let target = format!("{}:{port}", to.address());
        let arguments: Vec<&str> = ["migrate", "--to", &target].into_iter().chain(options.iter().copied()).collect();
        self.begin_ctl(machine, &arguments)
    }

    /// Waits for the end of a move.
    pub fn end_migrate(&self, child: Child) -> Result<Moved> {
        let output = wait_with_output(child, LONG).context("ctl migrate")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let report = serde_json::from_str(&text)
            .with_context(|| format!("migrate printed `{}` and said `{}`", text.trim(), String::from_utf8_lossy(&output.stderr).trim()))?;
        Ok(Moved { code: output.status.code(), report })
    }

    /// Waits for the process to end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, deadline).with_context(|| format!("vmm {}: {}", self.name, tail_of(&self.log)))
    }

    /// Whether the process is there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the process as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill vmm {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Moved {
    /// Fails unless the VM moved.
    pub fn check(&self) -> Result<&MoveReport> {
        let reason = self.report.reason.as_deref().unwrap_or("no reason given");
        expect(self.code == Some(0) && self.report.outcome == Outcome::Moved, || format!("the move ended with {:?}: {reason}", self.code))?;
        Ok(&self.report)
    }
}

/// Waits for a process to end.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= until {
            bail!("process {} did not end in {} s", child.id(), deadline.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// Waits for a process whose output is short enough for its pipes, or kills it.
pub fn wait_with_output(mut child: Child, deadline: Duration) -> Result<Output> {
    if let Err(error) = wait(&mut child, deadline) {
        child.kill().ok();
        child.wait().ok();
        return Err(error);
    }
    Ok(child.wait_with_output()?)
}
