//! The course of events: jobs are submitted, run and end, machines come and go, and brokers decide every interval.
//!
//! At one moment what ends comes first, then machines that arrive, then what is submitted, then the schedulers, then the brokers, then the schedulers again.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use rebec_pool::trade::policy::{Policy, Reclaim};

use crate::{
    cluster::{Cluster, Machine},
    costs::Costs,
    made::Chance,
    outcome::{Account, DomainOutcome, Outcome},
    trace::{Job, Trace},
};

/// A domain that takes part.
#[derive(Debug, Clone)]
pub struct DomainSetup {
    /// Its name.
    pub name: String,
    /// Its jobs.
    pub trace: Trace,
    /// Its machines, of one processor each.
    pub machines: u32,
    /// What it lends and borrows.
    pub policy: Policy,
}

/// All that a simulation depends on.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Who trades. Their traces begin at the same moment.
    pub domains: Vec<DomainSetup>,
    /// What trade costs.
    pub costs: Costs,
    /// Between two decisions of the brokers, in seconds; at least 1.
    pub interval_s: u64,
    /// Whose turn it is first among brokers, each time anew.
    pub seed: u64,
}

/// What is told of a simulation while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// So many jobs of all have ended, with sharing and without.
    Progress {
        /// So far.
        ended: usize,
        /// In the end.
        of: usize,
    },
    /// How a domain stands when its broker has decided.
    Sample {
        /// In seconds from the beginning.
        now_s: u64,
        /// Its number.
        domain: usize,
        /// Machines that its jobs run on.
        running: u64,
        /// Machines that waiting jobs want.
        queued: u64,
        /// Own machines that others have.
        lent: u32,
        /// Machines of others that it has.
        borrowed: u32,
    },
    /// A job of a domain has used a machine.
    Used {
        /// The machine, by number among those of all domains, in their order.
        machine: Machine,
        /// Whose job.
        domain: usize,
        /// Which, in the order in which those that take part were submitted.
        job: usize,
        /// From when.
        from_s: u64,
        /// To when.
        to_s: u64,
    },
}

/// Simulates with sharing and without.
pub fn simulate(setup: &Setup, seen: &mut dyn FnMut(Seen)) -> Outcome {
    let fits: Vec<Vec<Job>> = setup.domains.iter().map(fitting).collect();
    let jobs: usize = fits.iter().map(Vec::len).sum();
    let told = |before: usize, seen: &mut dyn FnMut(Seen), trades: bool| {
        let mut tell = |what: Seen| match what {
            Seen::Progress { ended, .. } => seen(Seen::Progress { ended: before + ended, of: 2 * jobs }),
            other if trades => seen(other),
            _ => {}
        };
        Simulation::new(setup, &fits, trades).run(&mut tell)
    };
    let alone = told(0, seen, false);
    let shared = told(jobs, seen, true);
    let outcome = |number: usize| {
        let domain = &setup.domains[number];
        let done = DomainOutcome::of(
            number,
            &shared[number],
            &alone[number],
            domain.trace.jobs.len() - fits[number].len(),
            domain.trace.never_ran,
        );
        (domain.name.clone(), done)
    };
    Outcome { domains: (0..setup.domains.len()).map(outcome).collect::<BTreeMap<_, _>>() }
}

/// The jobs that are not wider than their cluster.
fn fitting(domain: &DomainSetup) -> Vec<Job> {
    domain.trace.jobs.iter().copied().filter(|job| job.width <= domain.machines).collect()
}

/// What happens at a time, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A job ends, if it is still at this attempt.
    End { domain: usize, job: usize, attempt: u32 },
    /// A machine is back at its owner's.
    Home { machine: Machine },
    /// A machine takes work of who has it.
    Ready { machine: Machine },
}

/// A machine that another domain has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lent {
    pub borrower: usize,
    pub since_s: u64,
    pub until: Option<u64>,
    pub reclaim: Reclaim,
    /// It is to come back: no new work is put on it.
    pub recalled: bool,
}

/// One machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub owner: usize,
    pub lent: Option<Lent>,
    /// It boots, halts, or a VM moves off it.
    pub busy_with_itself: bool,
    /// The job of its holder that runs on it, and since when.
    pub job: Option<(usize, u64)>,
}

/// A simulation under way.
pub(crate) struct Simulation<'a> {
    pub setup: &'a Setup,
    pub now_s: u64,
    /// The time at 0, in seconds since 1970.
    pub begins: u64,
    pub clusters: Vec<Cluster<'a>>,
    pub slots: Vec<Slot>,
    /// Of each domain: own machines that others have, and machines of others, without those that were called back.
    pub lent: Vec<u32>,
    pub borrowed: Vec<u32>,
    pub accounts: Vec<Account>,
    pub chance: Chance,
    trades: bool,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    /// The next job of each domain to be submitted.
    submits: Vec<usize>,
    started: Vec<usize>,
}

impl<'a> Simulation<'a> {
    fn new(setup: &'a Setup, fits: &'a [Vec<Job>], trades: bool) -> Self {
        let (mut clusters, mut slots) = (vec![], vec![]);
        for (owner, (domain, jobs)) in setup.domains.iter().zip(fits).enumerate() {
            let first = slots.len() as Machine;
            clusters.push(Cluster::new(jobs, first..first + domain.machines));
            slots.extend((0..domain.machines).map(|_| Slot { owner, lent: None, busy_with_itself: false, job: None }));
        }
        let none = vec![0; clusters.len()];
        Self {
            setup,
            now_s: 0,
            begins: setup.domains.iter().find_map(|domain| domain.trace.begins).unwrap_or_default(),
            accounts: vec![Account::default(); clusters.len()],
            submits: vec![0; clusters.len()],
            clusters,
            slots,
            lent: none.clone(),
            borrowed: none,
            chance: Chance(setup.seed),
            trades: trades && setup.domains.len() > 1,
            events: BinaryHeap::new(),
            started: vec![],
        }
    }

    fn run(mut self, seen: &mut dyn FnMut(Seen)) -> Vec<Account> {
        let of: usize = self.clusters.iter().map(|cluster| cluster.left).sum();
        let (step, mut told) = ((of / 200).max(1), 0);
        let interval_s = self.setup.interval_s.max(1);
        let mut decides_s = interval_s;
        while let Some(next_s) = self.next_s() {
            self.now_s = if self.trades { next_s.min(decides_s) } else { next_s };
            while self.events.peek().is_some_and(|Reverse((at, _))| *at == self.now_s) {
                if let Some(Reverse((_, event))) = self.events.pop() {
                    self.happen(event, seen);
                }
            }
            self.submit();
            self.schedule();
            if self.trades && self.now_s == decides_s {
                self.decide(seen);
                self.schedule();
                self.sample(seen);
                decides_s += interval_s;
                // Nobody waits and nothing is lent: nothing to decide before something happens.
                let rests = self.lent.iter().all(|lent| *lent == 0) && self.clusters.iter().all(|cluster| cluster.queued == 0);
                if let Some(next_s) = self.next_s().filter(|_| rests) {
                    decides_s = decides_s.max(next_s.div_ceil(interval_s).saturating_mul(interval_s));
                }
            }
            let ended = of - self.clusters.iter().map(|cluster| cluster.left).sum::<usize>();
            if ended >= told + step || ended == of && told < of {
                told = ended;
                seen(Seen::Progress { ended, of });
            }
        }
        for machine in 0..self.slots.len() as Machine {
            self.settle(machine);
        }
        self.accounts
    }

    /// When something happens next; never, once all jobs have ended.
    fn next_s(&self) -> Option<u64> {
        if self.clusters.iter().all(|cluster| cluster.left == 0) {
            return None;
        }
        let submits = self.clusters.iter().zip(&self.submits).filter_map(|(cluster, next)| cluster.jobs.get(*next)).map(|job| job.submit_s);
        let event = self.events.peek().map(|Reverse((at, _))| *at);
        // Without either, what waits may wait for a broker alone.
        Some(submits.chain(event).min().unwrap_or(u64::MAX))
    }

    fn happen(&mut self, event: Event, seen: &mut dyn FnMut(Seen)) {
        match event {
            Event::End { domain, job, attempt } => {
                if self.clusters[domain].standing[job].attempt == attempt {
                    self.end(domain, job, seen);
                }
            }
            Event::Home { machine } => {
                self.settle(machine);
                let slot = &mut self.slots[machine as usize];
                slot.busy_with_itself = false;
                self.clusters[slot.owner].own.idle.push(machine);
            }
            Event::Ready { machine } => {
                self.slots[machine as usize].busy_with_itself = false;
                self.free(machine);
            }
        }
    }

    fn end(&mut self, domain: usize, job: usize, seen: &mut dyn FnMut(Seen)) {
        let cluster = &mut self.clusters[domain];
        let Some(run) = cluster.leave(job) else { return };
        cluster.left -= 1;
        let account = &mut self.accounts[domain];
        account.jobs += 1;
        account.completion_s += u128::from(self.now_s - cluster.jobs[job].submit_s);
        for machine in run.machines {
            self.off(machine, domain, seen);
            self.free(machine);
        }
    }

    fn submit(&mut self) {
        for (cluster, next) in self.clusters.iter_mut().zip(&mut self.submits) {
            while cluster.jobs.get(*next).is_some_and(|job| job.submit_s == self.now_s) {
                cluster.wait(*next, &self.setup.costs);
                *next += 1;
            }
        }
    }

    fn schedule(&mut self) {
        for domain in 0..self.clusters.len() {
            let mut started = std::mem::take(&mut self.started);
            self.clusters[domain].schedule(self.now_s, &self.setup.costs, &mut started);
            for job in started.drain(..) {
                self.goes_on(domain, job);
            }
            self.started = started;
        }
    }

    /// A job has begun, or has other machines than before.
    pub fn goes_on(&mut self, domain: usize, job: usize) {
        let standing = &self.clusters[domain].standing[job];
        let Some(run) = &standing.run else { return };
        for machine in &run.machines {
            let slot = &mut self.slots[*machine as usize];
            if slot.job.is_none() {
                slot.job = Some((job, self.now_s));
            }
        }
        self.events.push(Reverse((run.ends_s, Event::End { domain, job, attempt: standing.attempt })));
    }

    /// Nothing runs on a machine any more.
    pub fn off(&mut self, machine: Machine, domain: usize, seen: &mut dyn FnMut(Seen)) {
        if let Some((job, from_s)) = self.slots[machine as usize].job.take() {
            seen(Seen::Used { machine, domain, job, from_s, to_s: self.now_s });
        }
    }

    /// A machine on which nothing runs is its holder's to use, or goes home if it was called back.
    pub fn free(&mut self, machine: Machine) {
        let slot = &self.slots[machine as usize];
        match slot.lent {
            None => self.clusters[slot.owner].own.idle.push(machine),
            Some(lent) if lent.recalled => self.go_home(machine, self.setup.costs.halt_s),
            Some(lent) => self.clusters[lent.borrower].borrowed.idle.push(machine),
        }
    }

    /// A machine is lent, and boots a node of the borrower.
    pub fn lend(&mut self, machine: Machine, lent: Lent) {
        let slot = &mut self.slots[machine as usize];
        slot.lent = Some(lent);
        self.lent[slot.owner] += 1;
        self.borrowed[lent.borrower] += 1;
        self.ready_in(machine, self.setup.costs.boot_s);
    }

    /// A machine takes work again after some time.
    pub fn ready_in(&mut self, machine: Machine, after_s: u64) {
        self.slots[machine as usize].busy_with_itself = true;
        self.events.push(Reverse((self.now_s + after_s, Event::Ready { machine })));
    }

    /// A machine is called back: it counts as its owner's from now on.
    pub fn call_back(&mut self, machine: Machine) {
        let slot = &mut self.slots[machine as usize];
        if let Some(lent) = slot.lent.as_mut().filter(|lent| !lent.recalled) {
            lent.recalled = true;
            self.lent[slot.owner] -= 1;
            self.borrowed[lent.borrower] -= 1;
        }
    }

    /// A machine on which nothing runs is back after some time.
    pub fn go_home(&mut self, machine: Machine, after_s: u64) {
        self.call_back(machine);
        self.slots[machine as usize].busy_with_itself = true;
        self.events.push(Reverse((self.now_s + after_s, Event::Home { machine })));
    }

    /// A loan is over: both sides write the same down.
    fn settle(&mut self, machine: Machine) {
        self.call_back(machine);
        let slot = &mut self.slots[machine as usize];
        if let Some(lent) = slot.lent.take() {
            let seconds = self.now_s - lent.since_s;
            let (owner, borrower) = (slot.owner, lent.borrower);
            self.accounts[owner].lent_s = self.accounts[owner].lent_s.saturating_add(seconds);
            self.accounts[borrower].borrowed_s = self.accounts[borrower].borrowed_s.saturating_add(seconds);
        }
    }

    fn sample(&self, seen: &mut dyn FnMut(Seen)) {
        for (domain, cluster) in self.clusters.iter().enumerate() {
            let Cluster { running, queued, .. } = *cluster;
            seen(Seen::Sample { now_s: self.now_s, domain, running, queued, lent: self.lent[domain], borrowed: self.borrowed[domain] });
        }
    }
}
