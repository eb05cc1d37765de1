//! One host of the pool: its agent as a process, its state folder, and the command line that asks it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    POLL, SOON,
    cli::{self, Answer, Asked},
    later, processes, program,
};
use crate::netlab::{
    Machine,
    lab::{expect, tail_of},
    vmm,
};

/// Where agents of the lab reach each other.
const MESH_PORT: u16 = 7116;
/// An agent that is told to end takes no longer.
const END_TIME: Duration = Duration::from_secs(20);
/// Of every state folder, what tells what happened.
const EVIDENCE: [&str; 3] = ["vmm.log", "console.log", "vm.json"];

/// A name without the domain that it has at hosts of others.
pub fn plain(name: &Value) -> &str {
    name.as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default()
}

/// A host.
pub struct Host {
    name: String,
    state: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    agent: Option<Child>,
    /// The address it is told to use; none leaves it to its agent.
    pub address: Option<std::net::IpAddr>,
    /// The name it asks for in the pool.
    pub called: String,
    /// Memory that its VMs may have, as in `512M`.
    pub memory: String,
    /// Whether its agent is told that its state folder does not survive a reboot.
    pub volatile: bool,
    /// What guests get of its processor at most, where that is not all.
    pub cpu_max: Option<String>,
    /// Whether its agent and the VMMs that this starts are of a later version.
    pub later: bool,
    /// Runs instead of the agent, which it is told to run as its last arguments.
    pub wrapper: Vec<String>,
}

impl Host {
    /// A host whose agent has not been started.
    pub fn new(machine: &Machine, states: &Path) -> Self {
        let name = machine.name().to_owned();
        Self {
            state: states.join(&name),
            socket: states.join(format!("{name}.sock")),
            log: machine.evidence().join(format!("agent-{name}.log")),
            agent: None,
            address: Some(machine.address().into()),
            called: name.clone(),
            memory: "1G".into(),
            volatile: false,
            cpu_max: None,
            later: false,
            wrapper: vec![],
            name,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its agent's state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its agent's API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What its agents have said.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts its agent, and waits until it answers.
    pub fn start(&mut self, machine: &Machine) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log).with_context(|| format!("open {}", self.log.display()))?;
        let mut words = self.wrapper.clone();
        let (agent, vmm) = if self.later { later()? } else { (program()?, vmm::program()?) };
        words.push(agent.display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("agent").arg("--state").arg(&self.state).arg("--socket").arg(&self.socket);
        command.args(["--port", &MESH_PORT.to_string()]);
        if let Some(address) = self.address {
            command.args(["--address", &address.to_string()]);
        }
        command.args(["--name", &self.called, "--memory", &self.memory]).arg("--vmm").arg(vmm);
        command.args(self.volatile.then_some("--volatile"));
        if let Some(cpu) = &self.cpu_max {
            command.args(["--cpu-max", cpu]);
        }
        command.env("RUST_LOG", "debug,iroh=warn,noq=warn,tracing=warn,rustls=info,hyper=info,netlink_proto=info,portmapper=warn");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut agent = machine.spawn(command)?;
        let until = Instant::now() + SOON;
        while !self.ask(&["pool", "status"])?.is_done() {
            let ended = agent.try_wait()?;
            expect(ended.is_none(), || format!("agent {} ended: {}", self.name, tail_of(&self.log)))?;
            expect(Instant::now() < until, || format!("agent {} does not answer: {}", self.name, tail_of(&self.log)))?;
            thread::sleep(POLL);
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// `kill -9` of the agent; its VMs run on.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        agent.kill().with_context(|| format!("kill agent {}", self.name))?;
        agent.wait()?;
        Ok(())
    }

    /// Ends the agent as a service manager does; its VMs run on.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        let process = nix::unistd::Pid::from_raw(agent.id().cast_signed());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).with_context(|| format!("end agent {}", self.name))?;
        let status = vmm::wait(&mut agent, END_TIME)?;
        expect(status.success(), || format!("agent {} ended with {status}: {}", self.name, tail_of(&self.log)))
    }

    /// The agent and all its VMs at once, as when the power goes.
    pub fn lose_power(&mut self) -> Result<()> {
        self.kill()?;
        processes::kill_all(&self.state);
        Ok(())
    }

    /// The same of a machine that keeps its state in memory: it starts with nothing.
    pub fn lose_state(&mut self) -> Result<()> {
        self.lose_power()?;
        fs::remove_dir_all(&self.state).with_context(|| format!("remove {}", self.state.display()))
    }

    /// The VMM of a VM.
    pub fn vmm(&self, id: &str) -> processes::Vmm {
        processes::Vmm::of(&self.state.join("vms").join(id))
    }

    /// Its state folder as its agent sees it, whose mounts may be its own.
    pub fn inside(&self) -> Result<PathBuf> {
        let agent = self.agent.as_ref().context("the agent does not run")?;
        let below = self.state.strip_prefix("/").context("the state folder's path")?;
        Ok(Path::new("/proc").join(agent.id().to_string()).join("root").join(below))
    }

    /// What the agent takes in memory, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let agent = self.agent.as_ref().context("the agent does not run")?;
        let status = fs::read_to_string(format!("/proc/{}/status", agent.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.split_whitespace().next().context("no VmRSS")?.parse()?;
        Ok(kib << 10)
    }

    /// The time its agent has had of processors.
    pub fn processor_time(&self) -> Result<Duration> {
        let agent = self.agent.as_ref().context("the agent does not run")?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.id()))?;
        // utime and stime are fields 14 and 15; the name, field 2, may hold spaces.
        let (_, fields) = stat.rsplit_once(") ").context("no name")?;
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
        Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
    }

    /// `rebec --json` with these words.
    pub fn ask(&self, words: &[&str]) -> Result<Answer> {
        self.begin(words)?.end()
    }

    /// Starts `rebec --json` with these words.
    pub fn begin(&self, words: &[&str]) -> Result<Asked> {
        cli::begin(&self.socket, words)
    }

    /// As [`Host::ask`], whose failure is an error; returns what was answered.
    pub fn must(&self, words: &[&str]) -> Result<Value> {
        self.ask(words)?.value().with_context(|| format!("at host {}", self.name))
    }

    /// Asks for what must be refused; returns the exit code and what was said.
    pub fn refused(&self, words: &[&str]) -> Result<(i32, String)> {
        let answer = self.ask(words)?;
        expect(!answer.is_done(), || format!("`rebec {}` was not refused: {}", words.join(" "), answer.stdout))?;
        Ok((answer.code, answer.stderr))
    }

    /// The ticket of an invitation.
    pub fn ticket(&self, words: &[&str]) -> Result<String> {
        let ticket = &self.must(words)?["ticket"];
        Ok(ticket.as_str().with_context(|| format!("no ticket: {ticket}"))?.to_owned())
    }

    /// Whether a list has something of that name, of whatever domain: `vm`, `lan`, `image`, `host`.
    pub fn knows(&self, noun: &str, name: &str) -> Result<bool> {
        let list = self.must(&[noun, "ls"])?;
        Ok(list.as_array().is_some_and(|list| list.iter().any(|one| plain(&one["name"]) == name)))
    }

    /// `vm show`.
    pub fn vm(&self, name: &str) -> Result<Value> {
        self.must(&["vm", "show", name])
    }

    /// Copies what its folders say to the evidence.
    pub fn keep_evidence(&self, evidence: &Path) {
        let Ok(vms) = fs::read_dir(self.state.join("vms")) else { return };
        for vm in vms.flatten() {
            let id = vm.file_name().to_string_lossy().chars().take(8).collect::<String>();
            for file in EVIDENCE {
                // What is not there is no evidence.
                fs::copy(vm.path().join(file), evidence.join(format!("{}-{id}-{file}", self.name))).ok();
            }
        }
    }
}
