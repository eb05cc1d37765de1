//! A scripted scheduler: it knows nodes by their consoles, gives a job to each that is idle, and is told about nodes by a file of orders. What it knows is a
//! file, replaced whole, that `rebec-elastic` reads.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::netlab::agents::{Host, Seat, plain};

/// What it looks after.
pub struct Queue<'a> {
    host: &'a Host,
    file: PathBuf,
    orders: PathBuf,
    orders_read: usize,
    written: String,
    nodes: BTreeMap<String, Node>,
    jobs: Vec<Job>,
    boots: BTreeMap<String, Duration>,
    first_seen: BTreeMap<String, Instant>,
}

struct Node {
    seat: Seat,
    drains: bool,
    is_down: bool,
    job: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Waits,
    Runs,
    Done,
    Lost,
}

/// What came of the jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Their results are right.
    pub done: usize,
    /// They were lost, or wrong.
    pub lost: usize,
    /// They have not ended.
    pub open: usize,
}

impl<'a> Queue<'a> {
    /// An empty queue beside a host's agent.
    pub fn open(host: &'a Host, folder: &Path) -> Result<Self> {
        let (file, orders) = (folder.join("queue.json"), folder.join("orders"));
        fs::write(&orders, "")?;
        let (written, nodes, jobs, boots, first_seen) = Default::default();
        let mut queue = Self { host, file, orders, orders_read: 0, written, nodes, jobs, boots, first_seen };
        queue.write()?;
        Ok(queue)
    }

    /// What a source of demand reads.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Where what is told about nodes is written.
    pub fn orders(&self) -> &Path {
        &self.orders
    }

    /// One job more.
    pub fn submit(&mut self) -> Result<usize> {
        self.jobs.push(Job::Waits);
        self.write()?;
        Ok(self.jobs.len() - 1)
    }

    /// The node that runs a job.
    pub fn node_of(&self, job: usize) -> Option<&str> {
        self.nodes.iter().find(|(_, node)| node.job == Some(job)).map(|(name, _)| name.as_str())
    }

    /// A node whose name begins so and that runs a job.
    pub fn runs_on(&self, beginning: &str) -> Option<&str> {
        self.nodes.iter().find(|(name, node)| name.starts_with(beginning) && node.job.is_some()).map(|(name, _)| name.as_str())
    }

    /// Some node whose name begins so.
    pub fn a_node(&self, beginning: &str) -> Result<String> {
        self.nodes.keys().find(|name| name.starts_with(beginning)).cloned().with_context(|| format!("no node {beginning}*"))
    }

    /// Whether it knows a node.
    pub fn knows(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// Whether it knows none.
    pub fn is_bare(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What came of the jobs.
    pub fn tally(&self) -> Tally {
        let count = |state: Job| self.jobs.iter().filter(|job| **job == state).count();
        Tally { done: count(Job::Done), lost: count(Job::Lost), open: count(Job::Waits) + count(Job::Runs) }
    }

    /// The time from a VM's appearance until its guest beat.
    pub fn boot(&self, node: &str) -> Duration {
        self.boots.get(node).copied().unwrap_or_default()
    }

    /// A job ends: its guest checks what it has written.
    pub fn end(&mut self, job: usize) -> Result<()> {
        let node = self.nodes.values_mut().find(|node| node.job == Some(job)).context("that job runs nowhere")?;
        node.job = None;
        let is_whole = node.seat.beats().and_then(|()| node.seat.check_memory());
        self.jobs[job] = if is_whole.is_ok() { Job::Done } else { Job::Lost };
        self.write()?;
        is_whole
    }

    /// Looks once at orders and nodes, and gives jobs to idle nodes.
    pub fn turn(&mut self) -> Result<()> {
        self.obey()?;
        self.meet()?;
        for node in self.nodes.values_mut().filter(|node| node.job.is_none() && !node.drains && !node.is_down) {
            let Some(job) = self.jobs.iter().position(|job| *job == Job::Waits) else { break };
            (node.job, self.jobs[job]) = (Some(job), Job::Runs);
        }
        self.write()
    }

    fn obey(&mut self) -> Result<()> {
        let text = fs::read_to_string(&self.orders)?;
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().skip(self.orders_read) {
            let (verb, name) = line.split_once(' ').with_context(|| format!("the order `{line}`"))?;
            let Some(node) = self.nodes.get_mut(name) else { continue };
            match verb {
                "drain" => node.drains = true,
                "resume" => node.drains = false,
                // Its job is lost with it.
                "down" | "forget" => {
                    node.is_down = true;
                    if let Some(job) = node.job.take() {
                        self.jobs[job] = Job::Lost;
                    }
                    if verb == "forget" {
                        self.nodes.remove(name);
                        self.first_seen.remove(name);
                    }
                }
                _ => anyhow::bail!("the order `{line}`"),
            }
        }
        self.orders_read = lines.len();
        Ok(())
    }

    /// Takes in nodes whose guests beat.
    fn meet(&mut self) -> Result<()> {
        let vms = self.host.must(&["vm", "ls"])?;
        let vms = vms.as_array().context("vm ls prints a list")?;
        for vm in vms {
            let name = plain(&vm["name"]).to_owned();
            if self.nodes.contains_key(&name) || !name.starts_with("node-") {
                continue;
            }
            let seen = *self.first_seen.entry(name.clone()).or_insert_with(Instant::now);
            if vm["state"] == "running" {
                let seat = Seat::take(self.host, &name)?;
                self.boots.insert(name.clone(), seen.elapsed());
                self.nodes.insert(name, Node { seat, drains: false, is_down: false, job: None });
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let count = |state: Job| self.jobs.iter().filter(|job| **job == state).count();
        let state = |node: &Node| match (node.is_down, node.drains, node.job.is_some()) {
            (true, ..) => "down",
            (_, true, true) => "draining",
            (_, true, false) => "drained",
            (_, false, true) => "busy",
            (_, false, false) => "idle",
        };
        let nodes: Vec<_> = self.nodes.iter().map(|(name, node)| json!({"name": name, "state": state(node)})).collect();
        let text = json!({"queued": count(Job::Waits), "running": count(Job::Runs), "widest": 1, "nodes": nodes}).to_string();
        ensure!(text.len() < 1 << 16, "a queue of the lab is short");
        if text != self.written {
            let new = self.file.with_extension("new");
            fs::write(&new, &text)?;
            fs::rename(&new, &self.file)?;
            self.written = text;
        }
        Ok(())
    }
}
