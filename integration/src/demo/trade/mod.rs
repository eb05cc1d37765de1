//! `cargo lab demo trade --local`: a queue borrows machines, and gives them back without losing a job, in seconds.
//!
//! ```text
//! domain alpha                                       domain beta
//! host a1   the queue, rebec-elastic, a node of its  host b1   a borrowed node, which moves home while its job runs when beta wants
//!           own                                      host b2   the machine back; and one that is given back when its job has ended
//!        └─────────────────── one network ──────────────┘
//! ```
//! Nodes are VMs with the bench guest on alpha's LAN, from alpha's image. The queue (`queue`) is scripted, and its jobs are what a bench guest does: it dirties
//! its memory without a pause, and a job has ended well if every page of it is as it was written and the guest has never begun anew. Everything else is what
//! users run: brokers, policies, contracts, and `rebec-elastic` with a token of the role `scheduler`.

mod queue;
mod report;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

pub use self::report::TradeReport;
use self::{
    queue::Queue,
    report::{ContractSeen, Seen},
};
use crate::{
    artifacts::{self, Artifact},
    netlab::agents::{Agents, Host, plain},
    progress::say,
};

const LENDING: &str = "[lending]\nshare = \"100%\"\nto = [\"alpha\"]\nprice = 7200\nnotice = \"60s\"\nreclaim = [\"migrate\"]\n";
const BORROWING: &str = "[borrowing]\nprice = 7200\n";
/// What a node does, job or not.
const LOAD: &str = "stats_ms=0 heartbeat_ms=50 fill=text:3:30%,random:5:20%,zero dirty=0:lines:500";
/// No part of the story takes longer on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Tells the story.
pub fn tell() -> Result<TradeReport> {
    let elastic = artifacts::build(Artifact::Elastic)?;
    let mut agents = Agents::start("demo-trade", &["a1", "b1", "b2"])?;
    say("demo", "alpha has one host, beta has two");
    agents.found(&["alpha", "beta", "beta"])?;
    agents.furnish()?;
    for (host, text) in [(1, LENDING), (0, BORROWING)] {
        set_policy(&agents, &agents.hosts[host], text)?;
    }
    let report = Story::begin(&agents, &elastic)?.tell()?;
    if report.is_right() {
        agents.succeeded();
    }
    Ok(report)
}

/// Sets a domain's policy at the host of its broker.
pub fn set_policy(agents: &Agents, host: &Host, text: &str) -> Result<()> {
    let file = agents.lab.evidence().join(format!("policy-{}.toml", host.name()));
    fs::write(&file, text)?;
    host.must(&["policy", "set", &file.display().to_string()])?;
    Ok(())
}

/// Those who take part.
struct Story<'a> {
    agents: &'a Agents,
    queue: Queue<'a>,
    elastic: Child,
}

impl<'a> Story<'a> {
    fn begin(agents: &'a Agents, program: &Path) -> Result<Self> {
        let [a1, ..] = &agents.hosts[..] else { bail!("three hosts were asked for") };
        let folder = agents.lab.evidence();
        let queue = Queue::open(a1, folder)?;
        let token = a1.must(&["token", "create", "elastic", "--role", "scheduler"])?;
        let token_file = folder.join("token");
        fs::write(&token_file, token["token"].as_str().context("no token")?)?;
        let config = folder.join("elastic.toml");
        fs::write(&config, configuration(&queue))?;
        let key = a1.must(&["pool", "status"])?["host_key"].as_str().context("no key of the host")?.to_owned();
        let url = format!("https://{}:{}", agents.lab.machines[0].address(), rebec_api::API_PORT);
        let log = fs::File::create(folder.join("elastic.log"))?;
        let mut command = Command::new(program);
        command.args(["--host-url", &url, "--fingerprint", &key, "--token-file"]).arg(&token_file).arg("run").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let elastic = agents.lab.machines[0].spawn(command)?;
        Ok(Self { agents, queue, elastic })
    }

    fn tell(mut self) -> Result<TradeReport> {
        let [a1, b1, _] = &self.agents.hosts[..] else { bail!("three hosts were asked for") };
        say("demo", "three jobs pile up in alpha's queue");
        let began = Instant::now();
        let jobs: Vec<usize> = (0..3).map(|_| self.queue.submit()).collect::<Result<_>>()?;
        self.until("a borrowed node runs a job", |queue| Ok(queue.runs_on("node-borrowed-").is_some()))?;
        let first_job = began.elapsed();
        let boot = self.queue.runs_on("node-borrowed-").map(|node| self.queue.boot(node)).unwrap_or_default();
        self.until("all jobs run", |queue| Ok(jobs.iter().all(|job| queue.node_of(*job).is_some())))?;
        let contracts = of_state(a1, "active")?;
        let why = a1.must(&["why", &self.queue.a_node("node-borrowed-")?])?.to_string();

        say("demo", "beta wants one of its machines for itself");
        let recall_began = Instant::now();
        b1.must(&["demand", "set", "1"])?;
        self.until("a machine is back", |_| Ok(of_state(b1, "ended")?.len() == 1))?;
        let recall = recall_began.elapsed();
        let ended = of_state(b1, "ended")?;
        let freed = ended[0]["host"].as_str().map(|host| host.rsplit('/').next().unwrap_or(host).to_owned()).context("no host")?;
        let from = self.agents.host(&freed);
        self.until("its move is told", |_| Ok(move_from(from)?.1["outcome"].is_string()))?;
        let moved = move_from(from)?;
        let mover = moved.0.clone();
        self.until("its job runs on at home", |_| Ok(plain(&a1.vm(&mover)?["host"]) == "a1"))?;
        let moved_job =
            jobs.iter().copied().find(|job| self.queue.node_of(*job) == Some(mover.as_str())).context("the moved node runs no job")?;

        say("demo", format_args!("{mover} has moved home with its job, {:.2} s after beta's word; the jobs end", recall.as_secs_f64()));
        self.queue.end(moved_job)?;
        self.until("the moved node is gone", |queue| Ok(!queue.knows(&mover) && !a1.knows("vm", &mover)?))?;
        let other = jobs.iter().copied().find(|job| self.queue.node_of(*job).is_some_and(|node| node.starts_with("node-borrowed-")));
        self.queue.end(other.context("no job on a borrowed node is left")?)?;
        self.until("the second machine is given back", |_| Ok(of_state(b1, "ended")?.len() == 2))?;
        for job in jobs {
            if self.queue.node_of(job).is_some() {
                self.queue.end(job)?;
            }
        }
        self.until("no node is left", |queue| Ok(queue.is_bare() && a1.must(&["vm", "ls"])?.as_array().is_some_and(Vec::is_empty)))?;
        self.until("both accounts are settled", |_| Ok(settled(a1)? && settled(b1)? && of_state(a1, "ended")?.len() == 2))?;

        let rows = [a1, b1].map(|host| host.must(&["audit", "--tail", "500"]));
        let rows: Vec<Value> = rows.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flat_map(array).collect();
        let seen = Seen {
            agreed: contracts.len(),
            contracts: of_state(b1, "ended")?.iter().map(ContractSeen::of).collect(),
            lent: array(b1.must(&["account"])?),
            borrowed: array(a1.must(&["account"])?),
            audit: rows.iter().filter_map(|row| Some((row["asked"].as_str()?.to_owned(), row["refused"].is_null()))).collect(),
            why,
            moved: moved.1,
            jobs: self.queue.tally(),
            first_job,
            boot,
            recall,
            told: fs::read_to_string(self.agents.lab.evidence().join("elastic.log")).unwrap_or_default(),
        };
        Ok(TradeReport::new(seen))
    }

    /// Lets the queue work until something is so.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&Queue<'_>) -> Result<bool>) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.queue.turn()?;
            let asked = holds(&self.queue);
            if matches!(asked, Ok(true)) {
                return Ok(());
            }
            if let Some(status) = self.elastic.try_wait()? {
                bail!("rebec-elastic ended with {status}");
            }
            if Instant::now() > until {
                let why = asked.err().map(|error| format!(": {error:#}")).unwrap_or_default();
                bail!("not so after {} s: {what}{why}", PATIENCE.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        self.elastic.kill().ok();
        self.elastic.wait().ok();
    }
}

fn configuration(queue: &Queue<'_>) -> String {
    let (file, orders) = (queue.file().display(), queue.orders().display());
    format!(
        "[scheduler]\nkind = \"program\"\nevery = \"100ms\"\nqueue = [\"cat\", \"{file}\"]\nhook = [\"sh\", \"-c\", 'echo \"$@\" >> {orders}', \"hook\"]\n\n\
         [demand]\nfall = \"0s\"\nkeep = \"30s\"\n\n\
         [nodes]\nimage = \"bench\"\nlan = \"office\"\nmemory = \"64M\"\ncmdline = \"{LOAD}\"\nown = 1\nidle = \"300ms\"\nboot = \"60s\"\n"
    )
}

/// The VM that a host has sent away, and what its move took.
fn move_from(host: &Host) -> Result<(String, Value)> {
    let jobs = array(host.must(&["job", "ls"])?);
    let moved = jobs.into_iter().find(|job| job["what"].as_str().is_some_and(|what| what.starts_with("move VM")));
    let job = moved.with_context(|| format!("host {} has moved nothing", host.name()))?;
    let name = job["what"].as_str().and_then(|what| what.split(' ').nth(2)).unwrap_or_default();
    Ok((name.rsplit('/').next().unwrap_or(name).to_owned(), job["result"].clone()))
}

fn array(value: Value) -> Vec<Value> {
    if let Value::Array(list) = value { list } else { vec![] }
}

/// Contracts that a host knows in a state.
fn of_state(host: &Host, state: &str) -> Result<Vec<Value>> {
    Ok(array(host.must(&["contract", "ls"])?).into_iter().filter(|one| one["state"] == state).collect())
}

fn settled(host: &Host) -> Result<bool> {
    let lines = array(host.must(&["account"])?);
    Ok(!lines.is_empty() && lines.iter().all(|line| line["settled"] == true))
}
