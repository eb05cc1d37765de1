//! A scheduler, by its own programs: what is asked of it and told to it as words of a command line, and what its answers mean.
//!
//! | | queue | nodes | a node drains, works again, is down, is forgotten |
//! |---|---|---|---|
//! | Slurm | `squeue --json` | `scontrol --oneliner show nodes` | `scontrol update`, `scontrol delete` |
//! | HTCondor | `condor_q -allusers -json` | | |
//! | a program | prints the queue | in the same answer, as `nodes` | `HOOK drain\|resume\|down\|forget NAME` |
//! | fixed | numbers of the file | | |
//!
//! Guests tell Slurm of themselves (`slurmd -Z`), because only they know what they have.

use std::time::Duration;

use rebec_pool::trade::{
    demand::Demand,
    queue::{self, Shape},
};
use serde::Deserialize;

use crate::{
    fleet::{Node, NodeState, Step, kind_of},
    program,
};

/// With this begins the reason of a drain that is this program's.
const MARK: &str = "rebec:";
/// Nodes of one answer.
const NODES_MAX: usize = 65_536;

/// Which scheduler, and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Slurm of Debian 12 or 13.
    Slurm,
    /// HTCondor: demand alone.
    Condor,
    /// A program that prints the queue; another is told about nodes, if there is one.
    Program {
        /// Prints the queue.
        queue: Vec<String>,
        /// Is told about nodes.
        hook: Vec<String>,
    },
    /// Always the same demand.
    Fixed(Demand),
}

/// A scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduler {
    /// Which.
    pub kind: Kind,
    /// Words before its programs, as in `sudo -u slurm`.
    pub before: Vec<String>,
    /// A program that says nothing for so long is ended.
    pub time: Duration,
    /// Which jobs count, and how.
    pub shape: Shape,
}

/// What it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What its queue wants.
    pub demand: Demand,
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Machines that take jobs and are no nodes of this pool.
    pub others: u32,
}

impl Scheduler {
    /// Whether it can be told about nodes.
    pub fn knows_nodes(&self) -> bool {
        match &self.kind {
            Kind::Slurm => true,
            Kind::Program { hook, .. } => !hook.is_empty(),
            Kind::Condor | Kind::Fixed(_) => false,
        }
    }

    /// Asks for queue and nodes, of which those count whose names begin with `prefix`.
    ///
    /// # Errors
    /// One line.
    pub async fn ask(&self, prefix: &str) -> Result<Answer, String> {
        let words = |words: &[&str]| self.before.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect::<Vec<_>>();
        let of = |name: &str, why: String| if why.contains(name) { why } else { format!("{name}: {why}") };
        let read = |name: &str, text: &str| queue::read_as(text, &self.shape).map_err(|why| of(name, why));
        match &self.kind {
            Kind::Slurm => {
                let text = program::answer(&words(&["squeue", "--json"]), self.time).await?;
                let demand = read("squeue", &text)?;
                let text = program::answer(&words(&["scontrol", "--oneliner", "show", "nodes"]), self.time).await?;
                let (nodes, others) = slurm_nodes(&text, prefix);
                Ok(Answer { demand, nodes, others })
            }
            Kind::Condor => {
                let text = program::answer(&words(&["condor_q", "-allusers", "-json"]), self.time).await?;
                // No job at all is no text at all.
                let demand = if text.trim().is_empty() { Demand::default() } else { read("condor_q", &text)? };
                Ok(Answer { demand, nodes: vec![], others: 0 })
            }
            Kind::Program { queue, .. } => {
                let name = queue.first().map_or("", String::as_str);
                let text = program::answer(queue, self.time).await?;
                let demand = read(name, &text)?;
                let (nodes, others) = program_nodes(&text, prefix).map_err(|why| of(name, why))?;
                Ok(Answer { demand, nodes, others })
            }
            Kind::Fixed(demand) => Ok(Answer { demand: *demand, nodes: vec![], others: 0 }),
        }
    }

    /// Tells it of a step that is its own; `why` is kept with the node where it can be.
    ///
    /// # Errors
    /// One line.
    pub async fn tell(&self, step: &Step, why: &str) -> Result<(), String> {
        let Some(words) = self.words(step, why) else { return Ok(()) };
        program::answer(&words, self.time).await.map(drop)
    }

    /// The command line of a step; none where it is not for the scheduler.
    fn words(&self, step: &Step, why: &str) -> Option<Vec<String>> {
        let verb = match step {
            Step::Drain(_) => "drain",
            Step::Resume(_) => "resume",
            Step::Down(_) => "down",
            Step::Forget(_) => "forget",
            Step::Create { .. } | Step::Remove(_) => return None,
        };
        let node = format!("NodeName={}", step.node());
        let words = match &self.kind {
            Kind::Slurm if verb == "forget" => vec!["scontrol".to_owned(), "delete".to_owned(), node],
            Kind::Slurm => {
                let update = ["scontrol".to_owned(), "update".to_owned(), node, format!("State={}", verb.to_uppercase())];
                let reason = (verb != "resume").then(|| format!("Reason={MARK} {why}"));
                update.into_iter().chain(reason).collect()
            }
            Kind::Program { hook, .. } if !hook.is_empty() => {
                return Some(hook.iter().cloned().chain([verb.to_owned(), step.node().to_owned()]).collect());
            }
            _ => return None,
        };
        Some(self.before.iter().cloned().chain(words).collect())
    }
}

/// Nodes as `scontrol --oneliner show nodes` says them, and how many take jobs and are none of this pool's. A line that is none is passed over.
fn slurm_nodes(text: &str, prefix: &str) -> (Vec<Node>, u32) {
    let (mut nodes, mut others) = (vec![], 0_u32);
    for line in text.lines().take(NODES_MAX) {
        let field = |name: &str| {
            // A reason has blanks; what is looked for stands before it, or is it.
            let at = line.find(&format!(" {name}=")).map(|at| at + 1).or_else(|| line.starts_with(&format!("{name}=")).then_some(0))?;
            line.get(at + name.len() + 1..)
        };
        let word = |name: &str| field(name)?.split_whitespace().next();
        let (Some(name), Some(state)) = (word("NodeName"), word("State")) else { continue };
        let flags: Vec<&str> = state.trim_end_matches(['*', '~', '#', '!', '%', '$', '@', '^', '-']).split('+').collect();
        let has = |flag: &str| flags.contains(&flag);
        let is_silent = state.contains('*') || has("NOT_RESPONDING") || has("DOWN") || has("FAIL") || has("UNKNOWN") || has("FUTURE");
        let is_busy = ["ALLOCATED", "MIXED", "COMPLETING"].into_iter().any(has);
        let drains = has("DRAIN");
        let state = match (is_silent, is_busy) {
            (true, _) => NodeState::Down,
            (false, true) => NodeState::Busy,
            (false, false) => NodeState::Idle,
        };
        if kind_of(prefix, name).is_some() {
            let is_ours = field("Reason").is_some_and(|reason| reason.starts_with(MARK));
            nodes.push(Node { name: name.to_owned(), state, drains, is_ours });
        } else if !is_silent && !drains {
            others = others.saturating_add(1);
        }
    }
    (nodes, others)
}

/// Nodes as a program says them, beside its numbers.
#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    nodes: Vec<ToldNode>,
}

#[derive(Deserialize)]
struct ToldNode {
    name: String,
    state: String,
}

fn program_nodes(text: &str, prefix: &str) -> Result<(Vec<Node>, u32), String> {
    if !text.trim_start().starts_with('{') {
        return Ok((vec![], 0));
    }
    let told: Told = serde_json::from_str(text).map_err(|error| format!("`nodes`: {error}"))?;
    if told.nodes.len() > NODES_MAX {
        return Err(format!("{} nodes: at most {NODES_MAX}", told.nodes.len()));
    }
    let (mut nodes, mut others) = (vec![], 0);
    for node in told.nodes {
        let (state, drains) = match node.state.as_str() {
            "idle" => (NodeState::Idle, false),
            "busy" => (NodeState::Busy, false),
            "draining" => (NodeState::Busy, true),
            "drained" => (NodeState::Idle, true),
            "down" => (NodeState::Down, false),
            _ => return Err("`nodes`: a state is one of idle, busy, draining, drained and down".into()),
        };
        if kind_of(prefix, &node.name).is_some() {
            nodes.push(Node { name: node.name, state, drains, is_ours: drains });
        } else if state != NodeState::Down && !drains {
            others += 1;
        }
    }
    Ok((nodes, others))
}

#[cfg(test)]
mod tests;
