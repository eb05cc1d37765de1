//! A pool of agents: one in each machine of a namespace lab, driven by the `rebec` command line as a user drives it.
//!
//! ```text
//! lab ── machine a1 (namespace) ── rebec agent ── rebec-vmm ── bench guest
//!   │        └ veth, shaped ┐          ▲ Unix socket
//!   └── switch              │          └── rebec --socket ... vm run|move|console
//! ```
//! State folders lie in `/tmp`, because the path of a Unix socket is short; what they say is copied to the evidence when a story fails.

mod beats;
mod cli;
mod host;
mod processes;
mod seat;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

pub use self::{
    beats::Beats,
    cli::{Answer, Asked},
    host::{Host, plain},
    processes::{Vmm, clean},
    seat::Seat,
};
use super::{NetLab, lab::expect};
use crate::artifacts::{self, Artifact};

/// How long what is asked of a pool may take until it shows.
pub const SOON: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL: Duration = Duration::from_millis(100);
const PREFIX: &str = "rbl-";

/// Agents, one a machine, and where they keep their state.
pub struct Agents {
    /// The machines and links.
    pub lab: NetLab,
    /// The agents, in the order of the machines.
    pub hosts: Vec<Host>,
    state: PathBuf,
    keep: bool,
}

/// The `rebec` program, built statically; once per process.
pub fn program() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_none() {
        *built = Some(artifacts::build(Artifact::Rebec)?);
    }
    built.clone().context("invariant: built above")
}

/// Agent and VMM of a later version, built statically; once per process.
pub fn later() -> Result<(PathBuf, PathBuf)> {
    static BUILT: Mutex<Option<(PathBuf, PathBuf)>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_none() {
        let agent = artifacts::build(Artifact::Later)?;
        let vmm = agent.with_file_name("vmm-later");
        fs::remove_file(&vmm).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        std::os::unix::fs::symlink(&agent, &vmm).with_context(|| format!("make {}", vmm.display()))?;
        *built = Some((agent, vmm));
    }
    built.clone().context("invariant: built above")
}

impl Agents {
    /// Starts an agent on each machine; none belongs to a pool.
    pub fn start(story: &str, names: &[&str]) -> Result<Self> {
        Self::start_on(NetLab::start(story, names)?, names.len(), |_| ())
    }

    /// The same on the first machines of a lab, each host changed before its agent starts.
    pub fn start_on(lab: NetLab, hosts: usize, change: impl Fn(&mut Host)) -> Result<Self> {
        static FOLDERS: AtomicU32 = AtomicU32::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let state = Path::new("/tmp").join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
        let mut agents = Self { lab, hosts: vec![], state, keep: true };
        for machine in 0..hosts {
            let mut host = Host::new(&agents.lab.machines[machine], &agents.state);
            change(&mut host);
            agents.hosts.push(host);
            agents.restart(machine)?;
        }
        Ok(agents)
    }

    /// Makes the hosts one pool: the first founds it with domain `alpha`; each of the others joins alpha, or founds the domain named for it.
    pub fn found(&self, domains: &[&str]) -> Result<()> {
        self.hosts[0].must(&["pool", "init", "lab", "--domain", domains[0]])?;
        for (index, host) in self.hosts.iter().enumerate().skip(1) {
            let first = domains.iter().position(|domain| *domain == domains[index]) == Some(index);
            let asked: &[&str] = if first { &["domain", "invite", domains[index]] } else { &["host", "invite"] };
            let issuer = if first { 0 } else { domains.iter().position(|domain| *domain == domains[index]).unwrap_or_default() };
            let ticket = self.hosts[issuer].ticket(asked)?;
            host.must(&["pool", "join", &ticket])?;
        }
        let all = u64::try_from(self.hosts.len())?;
        self.everywhere("every host answers every other", |host| Ok(host.must(&["pool", "status"])?["hosts_reachable"] == all))
    }

    /// Imports the bench guest as image `bench` and creates LAN `office` with a range of its own, both at home on the first host.
    pub fn furnish(&self) -> Result<()> {
        let kernel = super::guest::build()?.display().to_string();
        self.hosts[0].must(&["image", "import", "bench", "--kernel", &kernel, "--cmdline", "stats_ms=0"])?;
        self.hosts[0].must(&["lan", "create", "office", "--range", "10.7.0.0/24"])?;
        self.at_home("the image and the LAN are known", |host| Ok(host.knows("image", "bench")? && host.knows("lan", "office")?))
    }

    /// Waits until something holds at every host of the first one's domain: what is not shared is told to no other.
    pub fn at_home(&self, what: &str, holds: impl Fn(&Host) -> Result<bool>) -> Result<()> {
        let domain = |host: &Host| Ok::<_, anyhow::Error>(host.must(&["pool", "status"])?["domain"].clone());
        let home = domain(&self.hosts[0])?;
        for host in &self.hosts {
            if domain(host)? == home {
                eventually(&format!("{what}, at {}", host.name()), SOON, || holds(host))?;
            }
        }
        Ok(())
    }

    /// Starts a VM with the bench guest on a host; `options` of `vm run` before what the guest is told.
    pub fn run(&self, vm: &str, host: &str, memory: &str, options: &[&str], load: &str) -> Result<Value> {
        let words = ["vm", "run", vm, "--image", "bench", "--host", host, "--memory", memory];
        let words: Vec<&str> = words.into_iter().chain(options.iter().copied()).chain(["--cmdline", load]).collect();
        self.hosts[0].must(&words)
    }

    /// Starts the agent of a host that has none, and waits until it answers.
    pub fn restart(&mut self, host: usize) -> Result<()> {
        self.hosts[host].start(&self.lab.machines[host])
    }

    /// Waits until something holds at every host.
    pub fn everywhere(&self, what: &str, holds: impl Fn(&Host) -> Result<bool>) -> Result<()> {
        self.hosts.iter().try_for_each(|host| eventually(&format!("{what}, at {}", host.name()), SOON, || holds(host)))
    }

    /// All is well: nothing is kept.
    pub fn succeeded(&mut self) {
        self.lab.succeeded();
        self.keep = false;
    }

    /// A host by its name.
    pub fn host(&self, name: &str) -> &Host {
        let found = self.hosts.iter().find(|host| host.name() == name);
        found.expect("invariant: stories name hosts of their own")
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            host.kill().ok();
        }
        // VMMs outlive their agents, and hold the folders.
        processes::kill_all(&self.state);
        if self.keep {
            self.hosts.iter().for_each(|host| host.keep_evidence(self.lab.evidence()));
        }
        fs::remove_dir_all(&self.state).ok();
    }
}

/// Waits until something holds. An error while asking is one more reason to ask again.
pub fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        let asked = holds();
        if matches!(asked, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > until {
            let why = asked.err().map(|error| format!(": {error:#}")).unwrap_or_default();
            bail!("not so after {} s: {what}{why}", patience.as_secs());
        }
        thread::sleep(POLL);
    }
}

/// Fails unless a JSON value is what it should be.
pub fn same(what: &str, have: &Value, want: impl Into<Value>) -> Result<()> {
    let want = want.into();
    expect(*have == want, || format!("{what} is {have}, not {want}"))
}
