//! The nodes of a scheduler: what is to be done about them, decided from what the agent and the scheduler say.
//!
//! A node is a VM and what the scheduler knows under the VM's name. Where it is in its life is read off both:
//! ```text
//! VM        scheduler   stage      what is done
//! none      none        -          a free machine gets a node, while the queue wants more than there are
//! starting  -           Starting   waits; after `boot` it is given up: the VM goes
//! up        none        Joining    the same: its guest tells the scheduler of itself
//! up        idle, busy  Working    at a machine that is called back or not wanted any more: drained
//! up        draining    Draining   its job ends
//! up        drained     Drained    the VM goes
//! up        down        Silent     after `silent`: as Dead
//! stopped   any         Dead       set down, so that its jobs are queued again; the VM goes
//! lost      any         Lost       after `silent`: set down; the VM is its host's, and is left alone
//! none      any         Orphan     set down if it seems to work, then forgotten
//! ```
//! Each step is one that may be repeated, so that whoever dies in between goes on from what there is. While the scheduler does not answer nothing is done about
//! nodes; while the demand is not known no node comes and none goes for want of work.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rebec_pool::trade::plan::Plan;

/// What nodes are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Their names begin so.
    pub name: String,
    /// So many machines of the own domain carry one.
    pub own: u32,
    /// There are never more.
    pub most: u32,
    /// From the start of a VM until the scheduler knows it.
    pub boot: Duration,
    /// A node without work stays so long.
    pub idle: Duration,
    /// So long a node or host may be silent.
    pub silent: Duration,
}

/// Whose machine a node is on; jobs do not mix the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The own domain's.
    Own,
    /// One that another domain lends.
    Borrowed,
}

impl Kind {
    /// As in names of nodes and as the feature that jobs ask for.
    pub fn word(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Borrowed => "borrowed",
        }
    }
}

/// A machine that may carry a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its host.
    pub host: String,
    /// Whose it is.
    pub kind: Kind,
}

/// How a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmState {
    /// On its way up.
    Starting,
    /// It runs, or moves, or waits for a move.
    Up,
    /// It does not run.
    Down,
    /// Its host does not answer.
    Lost,
}

/// A VM whose name is a node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// The host that has it.
    pub host: String,
    /// How it is.
    pub state: VmState,
}

/// What the scheduler says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// No job is on it.
    Idle,
    /// A job is.
    Busy,
    /// It does not answer the scheduler, or was set down.
    Down,
}

/// A node as the scheduler knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: NodeState,
    /// Whether it takes no more jobs.
    pub drains: bool,
    /// Whether this program said so, and not an administrator.
    pub is_ours: bool,
}

/// All that is known.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Machines that the queue wants; none where that is not known.
    pub wanted: Option<u32>,
    /// Where nodes may be.
    pub machines: Vec<Machine>,
    /// VMs whose names begin as nodes' do.
    pub vms: Vec<Vm>,
    /// Nodes; none where the scheduler did not answer.
    pub nodes: Option<Vec<Node>>,
}

/// One act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A VM is made.
    Create {
        /// Its name.
        name: String,
        /// On this host.
        host: String,
        /// Whose that is.
        kind: Kind,
    },
    /// The scheduler gives it no more jobs.
    Drain(String),
    /// It does again.
    Resume(String),
    /// The scheduler queues its jobs again.
    Down(String),
    /// The scheduler forgets it.
    Forget(String),
    /// The VM goes.
    Remove(String),
}

impl Step {
    /// The node that it is about.
    pub fn node(&self) -> &str {
        match self {
            Self::Create { name, .. }
            | Self::Drain(name)
            | Self::Resume(name)
            | Self::Down(name)
            | Self::Forget(name)
            | Self::Remove(name) => name,
        }
    }
}

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Joining,
    Idle,
    Busy,
    Draining,
    Drained,
    Silent,
    Dead,
    Lost,
    Orphan,
}

/// How long a host is left alone on which a node failed, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(600));
/// Numbers of nodes of one kind.
const NUMBER_MAX: u32 = 4096;

/// The engine: it remembers since when a node is in its stage, and where nodes failed.
#[derive(Debug)]
pub struct Fleet {
    terms: Terms,
    since: BTreeMap<String, (Stage, Duration)>,
    /// Hosts on which a node failed: until when they are left alone, and for how long.
    failed: BTreeMap<String, (Duration, Duration)>,
}

/// One node, from both sides.
struct Seen<'a> {
    name: &'a str,
    vm: Option<&'a Vm>,
    node: Option<&'a Node>,
    stage: Stage,
    age: Duration,
    /// Why it may not stay where it is.
    displaced: Option<&'static str>,
}

impl Fleet {
    /// Nothing is known.
    pub fn new(terms: Terms) -> Self {
        Self { terms, since: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// A node could not be made on a host, or did not come up there: it is tried again later, and later still.
    pub fn failed(&mut self, now: Duration, host: &str) {
        let before = self.failed.get(host).map_or(Duration::ZERO, |(_, rest)| *rest);
        let rest = (before * 2).clamp(AGAIN.0, AGAIN.1);
        self.failed.insert(host.to_owned(), (now + rest, rest));
    }

    /// What is to be done now.
    pub fn look(&mut self, now: Duration, world: &World) -> Plan<Step> {
        let mut plan = Plan::nothing();
        let Some(nodes) = &world.nodes else {
            plan.refuse("nodes", "the scheduler does not answer: nothing is done about nodes".into());
            return plan;
        };
        let seen = self.see(now, world, nodes);
        for one in &seen {
            self.settle(now, one, &mut plan);
        }
        if let Some(wanted) = world.wanted {
            self.fit(now, wanted.min(self.terms.most), world, &seen, &mut plan);
        }
        plan
    }

    fn see<'a>(&mut self, now: Duration, world: &'a World, nodes: &'a [Node]) -> Vec<Seen<'a>> {
        let names: BTreeSet<&str> =
            world.vms.iter().map(|vm| vm.name.as_str()).chain(nodes.iter().map(|node| node.name.as_str())).collect();
        let names: Vec<&str> = names.into_iter().filter(|name| kind_of(&self.terms.name, name).is_some()).collect();
        self.since.retain(|name, _| names.contains(&name.as_str()));
        let see = |name: &'a str| {
            let vm = world.vms.iter().find(|vm| vm.name == name);
            let node = nodes.iter().find(|node| node.name == name);
            let stage = stage(vm, node);
            let since = self.since.entry(name.to_owned()).or_insert((stage, now));
            if since.0 != stage {
                *since = (stage, now);
            }
            let age = now.saturating_sub(since.1);
            let displaced = vm.and_then(|vm| self.terms.displaced(vm, &world.machines));
            Seen { name, vm, node, stage, age, displaced }
        };
        names.into_iter().map(see).collect()
    }

    /// What is to be done about a node by itself, however many are wanted.
    fn settle(&mut self, now: Duration, one: &Seen<'_>, plan: &mut Plan<Step>) {
        let name = || one.name.to_owned();
        let works = one.node.is_some_and(|node| node.state != NodeState::Down);
        let (silent, boot) = (self.terms.silent, self.terms.boot);
        match one.stage {
            Stage::Starting | Stage::Joining if one.age >= boot => {
                let what =
                    if one.stage == Stage::Starting { "it does not come up" } else { "its guest has not told the scheduler of itself" };
                plan.step(Step::Remove(name()), format!("{what} within {} s", boot.as_secs()));
                if let Some(vm) = one.vm {
                    self.failed(now, &vm.host);
                }
            }
            Stage::Starting | Stage::Joining => {
                if let Some(why) = one.displaced {
                    plan.step(Step::Remove(name()), why.into());
                }
            }
            Stage::Idle | Stage::Busy => {
                if let Some(vm) = one.vm {
                    self.failed.remove(&vm.host);
                }
                if let (Some(why), Some(false)) = (one.displaced, one.node.map(|node| node.drains)) {
                    plan.step(Step::Drain(name()), why.into());
                }
            }
            Stage::Draining => {}
            Stage::Drained if one.node.is_some_and(|node| node.is_ours) || one.displaced.is_some() => {
                plan.step(Step::Remove(name()), "its last job has ended".into());
            }
            Stage::Drained => plan.refuse(name(), "an administrator has drained it".into()),
            Stage::Silent if one.age >= silent => {
                plan.step(Step::Remove(name()), format!("the scheduler has not heard it for {} s", one.age.as_secs()));
            }
            Stage::Silent => {}
            Stage::Dead if works => plan.step(Step::Down(name()), "its VM does not run".into()),
            Stage::Dead => plan.step(Step::Remove(name()), "it does not run".into()),
            Stage::Lost if one.age >= silent && works => {
                plan.step(Step::Down(name()), format!("its host has not been heard for {} s", one.age.as_secs()));
            }
            Stage::Lost => plan.refuse(name(), "its host does not answer; `rebec host declare-dead` gives it up".into()),
            Stage::Orphan if works => plan.step(Step::Down(name()), "it has no VM".into()),
            Stage::Orphan => plan.step(Step::Forget(name()), "it has no VM".into()),
        }
    }

    /// As many as are wanted: new ones on free machines, or idle ones drained, those on borrowed machines first.
    fn fit(&mut self, now: Duration, wanted: u32, world: &World, seen: &[Seen<'_>], plan: &mut Plan<Step>) {
        let stays = |one: &&Seen<'_>| {
            let works = matches!(one.stage, Stage::Starting | Stage::Joining | Stage::Idle | Stage::Busy);
            works && one.displaced.is_none() && one.node.is_none_or(|node| !node.drains)
        };
        let have = seen.iter().filter(stays).count();
        let wanted = wanted as usize;
        if have >= wanted {
            let mut idle: Vec<&Seen<'_>> =
                seen.iter().filter(stays).filter(|one| one.stage == Stage::Idle && one.age >= self.terms.idle).collect();
            idle.sort_by_key(|one| (kind_of(&self.terms.name, one.name) == Some(Kind::Own), one.name));
            for one in idle.into_iter().take(have - wanted) {
                plan.step(Step::Drain(one.name.to_owned()), format!("the queue wants {wanted} of {have}, and it has been idle"));
            }
            return;
        }
        let mut lacking = wanted - have;
        // One that was to go for want of work may stay.
        for one in seen.iter().filter(|one| one.displaced.is_none() && matches!(one.stage, Stage::Draining | Stage::Drained)) {
            if lacking > 0 && one.node.is_some_and(|node| node.is_ours) {
                plan.steps.retain(|step| step.what.node() != one.name);
                plan.step(Step::Resume(one.name.to_owned()), format!("the queue wants {wanted}, and there are {have}"));
                lacking -= 1;
            }
        }
        self.failed.retain(|_, (until, rest)| *until + *rest * 2 > now);
        let mut taken: BTreeSet<String> = seen.iter().map(|one| one.name.to_owned()).collect();
        for machine in self.terms.free(&world.machines, &world.vms) {
            if lacking == 0 {
                return;
            }
            if let Some((until, _)) = self.failed.get(&machine.host).filter(|(until, _)| *until > now) {
                plan.refuse(&machine.host, format!("a node failed there; again in {} s", until.saturating_sub(now).as_secs()));
                continue;
            }
            let number = (1..=NUMBER_MAX).map(|number| format!("{}-{}-{number}", self.terms.name, machine.kind.word()));
            let Some(name) = number.into_iter().find(|name| !taken.contains(name)) else { continue };
            taken.insert(name.clone());
            let reason = format!("the queue wants {wanted}, and there are {have}");
            plan.step(Step::Create { name, host: machine.host.clone(), kind: machine.kind }, reason);
            lacking -= 1;
        }
        if lacking > 0 {
            plan.refuse("nodes", format!("{lacking} more are wanted than there are machines for"));
        }
    }
}

impl Terms {
    /// Machines without a node, own ones first, in the order of their names.
    fn free<'a>(&self, machines: &'a [Machine], vms: &[Vm]) -> Vec<&'a Machine> {
        let carries =
            |machine: &Machine| vms.iter().any(|vm| vm.host == machine.host && kind_of(&self.name, &vm.name) == Some(machine.kind));
        let own = |machine: &&Machine| machine.kind == Kind::Own;
        let carried = machines.iter().filter(own).filter(|machine| carries(machine)).count();
        let mut free: Vec<&Machine> = machines.iter().filter(|machine| !carries(machine)).collect();
        free.sort_by_key(|machine| (machine.kind, machine.host.as_str()));
        let mut left = (self.own as usize).saturating_sub(carried);
        free.retain(|machine| {
            machine.kind == Kind::Borrowed
                || left.checked_sub(1).is_some_and(|less| {
                    left = less;
                    true
                })
        });
        free
    }

    fn displaced(&self, vm: &Vm, machines: &[Machine]) -> Option<&'static str> {
        let kind = kind_of(&self.name, &vm.name)?;
        let stays = machines.iter().any(|machine| machine.host == vm.host && machine.kind == kind);
        match (stays, kind) {
            (true, _) => None,
            (false, Kind::Borrowed) => Some("its machine is called back, or was given back"),
            (false, Kind::Own) => Some("its machine takes no nodes any more"),
        }
    }
}

/// Whose machine the name of a node tells of; none where it is none of these nodes.
pub fn kind_of(prefix: &str, name: &str) -> Option<Kind> {
    let (word, number) = name.strip_prefix(prefix)?.strip_prefix('-')?.split_once('-')?;
    let number: u32 = number.parse().ok()?;
    [Kind::Own, Kind::Borrowed].into_iter().find(|kind| kind.word() == word && (1..=NUMBER_MAX).contains(&number))
}

fn stage(vm: Option<&Vm>, node: Option<&Node>) -> Stage {
    match (vm.map(|vm| vm.state), node.map(|node| (node.state, node.drains))) {
        (None, _) => Stage::Orphan,
        (Some(VmState::Lost), _) => Stage::Lost,
        (Some(VmState::Down), _) => Stage::Dead,
        (Some(VmState::Starting), _) => Stage::Starting,
        (Some(VmState::Up), None) => Stage::Joining,
        (Some(VmState::Up), Some((NodeState::Down, _))) => Stage::Silent,
        (Some(VmState::Up), Some((NodeState::Busy, false))) => Stage::Busy,
        (Some(VmState::Up), Some((NodeState::Idle, false))) => Stage::Idle,
        (Some(VmState::Up), Some((NodeState::Busy, true))) => Stage::Draining,
        (Some(VmState::Up), Some((NodeState::Idle, true))) => Stage::Drained,
    }
}

#[cfg(test)]
mod tests;
