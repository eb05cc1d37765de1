//! A domain's jobs and machines, and its scheduler: EASY backfill over two places that no job mixes, own machines and borrowed ones.
//!
//! The first that waits starts as soon as one of the places has room. Until then it has a reservation among the own machines, at the time when they will be
//! free by what users asked for; whoever came later may start before it if that does not move this time. Borrowed machines have no reservation: they may be
//! called back, and who fits there starts. Own machines are taken before borrowed ones.

use std::collections::BTreeMap;

use crate::{costs::Costs, queue::Queue, trace::Job};

/// A machine, by its number among all of the simulation.
pub type Machine = u32;

/// Where a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On machines of its domain.
    Own,
    /// On those of others.
    Borrowed,
}

/// Machines of one kind.
#[derive(Debug, Default)]
pub struct Place {
    /// Those on which nothing runs.
    pub idle: Vec<Machine>,
    /// Machines by when their job ends if it takes as long as was asked for, and by job.
    ends: BTreeMap<(u64, usize), u32>,
}

/// How far a job is.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Work that is done and kept, in seconds of a machine.
    pub kept_s: u64,
    /// Whether it lives in VMs: since it was started on borrowed machines.
    pub in_vms: bool,
    /// How often it has begun, gone on or been put elsewhere: what was to happen to an earlier attempt does not happen.
    pub attempt: u32,
    /// What it runs on; none if it waits or has ended.
    pub run: Option<Run>,
}

/// A job that runs.
#[derive(Debug, Clone)]
pub struct Run {
    /// Since when.
    pub since_s: u64,
    /// Of that, time in which it did nothing: a move home and on.
    pub stood_s: u64,
    /// When it ends.
    pub ends_s: u64,
    /// When it ends at the latest, by what its user asked for.
    pub latest_s: u64,
    /// Its machines.
    pub machines: Vec<Machine>,
    /// How many of them are its domain's own: all, none, or what came home.
    pub own: u32,
}

/// A domain while it is simulated.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// Its jobs, by number.
    pub jobs: &'a [Job],
    /// How far each is.
    pub standing: Vec<Standing>,
    /// Who waits.
    pub queue: Queue,
    /// Machines of its own.
    pub own: Place,
    /// Machines of others.
    pub borrowed: Place,
    /// What waiting jobs want.
    pub queued: u64,
    /// What running ones have.
    pub running: u64,
    /// Jobs that have not ended.
    pub left: usize,
}

impl<'a> Cluster<'a> {
    /// A cluster on whose machines nothing runs.
    pub fn new(jobs: &'a [Job], machines: std::ops::Range<Machine>) -> Self {
        Self {
            jobs,
            standing: vec![Standing::default(); jobs.len()],
            queue: Queue::new(jobs.len()),
            own: Place { idle: machines.rev().collect(), ends: BTreeMap::new() },
            borrowed: Place::default(),
            queued: 0,
            running: 0,
            left: jobs.len(),
        }
    }

    /// A job waits: it was submitted, or lost its machines.
    pub fn wait(&mut self, job: usize, costs: &Costs) {
        let width = self.jobs[job].width;
        let (_, asked_s, stood_s) = self.ahead(job, Side::Own, costs);
        self.queue.insert(job, width, stood_s + asked_s);
        self.queued += u64::from(width);
    }

    /// What is ahead of a job if it begins or goes on somewhere: how long it runs, how long at most, and how long it stands still before that.
    fn ahead(&self, job: usize, side: Side, costs: &Costs) -> (u64, u64, u64) {
        let Job { width, run_s, asked_s, .. } = self.jobs[job];
        let kept_s = self.standing[job].kept_s;
        let (run_s, asked_s) = (run_s.saturating_sub(kept_s), asked_s.saturating_sub(kept_s).max(1));
        // Who stood still in VMs goes on in them, wherever that is.
        if side == Side::Own && kept_s == 0 {
            return (run_s, asked_s, 0);
        }
        let stood_s = if kept_s == 0 { 0 } else { costs.moved_s(width as usize) };
        (costs.in_vm(run_s), costs.in_vm(asked_s), stood_s)
    }

    /// Starts all that may start now, and says which jobs.
    pub fn schedule(&mut self, now: u64, costs: &Costs, started: &mut Vec<usize>) {
        let head = loop {
            let Some(head) = self.queue.first() else { return };
            let width = self.jobs[head].width;
            if width as usize <= self.own.idle.len() {
                self.start(head, Side::Own, now, costs);
            } else if width as usize <= self.borrowed.idle.len() {
                self.start(head, Side::Borrowed, now, costs);
            } else {
                break head;
            }
            started.push(head);
        };
        if self.own.idle.is_empty() && self.borrowed.idle.is_empty() {
            return;
        }
        let (in_s, mut extra) = self.own.reservation(self.jobs[head].width, now);
        let mut from = head + 1;
        loop {
            let (own, borrowed) = (self.own.idle.len(), self.borrowed.idle.len());
            let own_takes = |width: u32, takes_s: u64| width as usize <= own && (takes_s <= in_s || width <= extra);
            let Some(job) = self.queue.next(from, |width, takes_s| own_takes(width, takes_s) || width as usize <= borrowed) else { return };
            let width = self.jobs[job].width;
            let (_, asked_s, stood_s) = self.ahead(job, Side::Own, costs);
            if own_takes(width, stood_s + asked_s) {
                if stood_s + asked_s > in_s {
                    extra -= width;
                }
                self.start(job, Side::Own, now, costs);
            } else {
                self.start(job, Side::Borrowed, now, costs);
            }
            started.push(job);
            from = job + 1;
        }
    }

    fn start(&mut self, job: usize, side: Side, now: u64, costs: &Costs) {
        let width = self.jobs[job].width;
        let (run_s, asked_s, stood_s) = self.ahead(job, side, costs);
        self.queue.remove(job);
        self.queued -= u64::from(width);
        self.running += u64::from(width);
        let standing = &mut self.standing[job];
        standing.in_vms = side == Side::Borrowed || standing.kept_s > 0;
        standing.attempt += 1;
        let place = match side {
            Side::Own => &mut self.own,
            Side::Borrowed => &mut self.borrowed,
        };
        let machines = place.idle.split_off(place.idle.len().saturating_sub(width as usize));
        let (ends_s, latest_s) = (now + stood_s + run_s, now + stood_s + asked_s);
        place.ends.insert((latest_s, job), width);
        let own = if side == Side::Own { width } else { 0 };
        standing.run = Some(Run { since_s: now, stood_s, ends_s, latest_s, machines, own });
    }

    /// A job runs no more, for whatever reason: its machines are the caller's.
    pub fn leave(&mut self, job: usize) -> Option<Run> {
        let run = self.standing[job].run.take()?;
        self.running -= u64::from(self.jobs[job].width);
        self.own.ends.remove(&(run.latest_s, job));
        self.borrowed.ends.remove(&(run.latest_s, job));
        Some(run)
    }

    /// A job goes on with some of its machines replaced, after its VMs stood still for a moment. Of the new ones `own` are its domain's.
    pub fn replace(&mut self, job: usize, gone: &[Machine], come: Vec<Machine>, own: u32, pause_s: u64) {
        let Some(run) = &mut self.standing[job].run else { return };
        self.own.ends.remove(&(run.latest_s, job));
        self.borrowed.ends.remove(&(run.latest_s, job));
        run.machines.retain(|machine| !gone.contains(machine));
        run.machines.extend(come);
        run.own += own;
        run.stood_s += pause_s;
        run.ends_s += pause_s;
        run.latest_s += pause_s;
        let abroad = run.machines.len() as u32 - run.own;
        let key = (run.latest_s, job);
        if run.own > 0 {
            self.own.ends.insert(key, run.own);
        }
        if abroad > 0 {
            self.borrowed.ends.insert(key, abroad);
        }
        self.standing[job].attempt += 1;
    }
}

impl Place {
    /// In how many seconds so many machines will be free here, and how many more there will be then. Never, if they are not here.
    fn reservation(&self, width: u32, now: u64) -> (u64, u32) {
        let (mut free, width) = (self.idle.len() as u64, u64::from(width));
        let mut at_s = None;
        for ((latest_s, _), machines) in &self.ends {
            if at_s.is_some_and(|at_s| at_s < *latest_s) {
                break;
            }
            free += u64::from(*machines);
            if free >= width {
                at_s = Some(*latest_s);
            }
        }
        let Some(at_s) = at_s else { return (u64::MAX, u32::MAX) };
        (at_s.saturating_sub(now), u32::try_from(free - width).unwrap_or(u32::MAX))
    }
}
