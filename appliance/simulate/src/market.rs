//! The brokers' turn: the decisions of `rebec_pool::trade`, and what they do to machines and jobs.

use std::collections::BTreeMap;

use rebec_pool::trade::{
    borrow::{self, Deal},
    demand::{Demand, Holdings},
    lend::{self, Ask, Offer},
    policy::Reclaim,
    recall,
    world::{Loan, Work, World},
};

use crate::{
    cluster::Machine,
    simulation::{Lent, Seen, Simulation},
};

impl Simulation<'_> {
    /// Each domain calls back what it wants back, then each borrows and gives back. Who is first is drawn by the seed.
    pub fn decide(&mut self, seen: &mut dyn FnMut(Seen)) {
        let mut order: Vec<usize> = (0..self.clusters.len()).collect();
        for last in (1..order.len()).rev() {
            let other = usize::try_from(self.chance.below(last as u64 + 1)).unwrap_or_default();
            order.swap(last, other);
        }
        for domain in &order {
            self.recall(*domain, seen);
        }
        for domain in &order {
            self.borrow(*domain, &order);
        }
    }

    fn world<'w>(&'w self, domain: usize, lent: &'w [Loan<'w>]) -> World<'w> {
        let cluster = &self.clusters[domain];
        let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let setup = &self.setup.domains[domain];
        World {
            now: self.begins + self.now_s,
            policy: &setup.policy,
            holdings: Holdings { owned: setup.machines, lent: self.lent[domain], borrowed: self.borrowed[domain] },
            demand: Demand { queued: number(cluster.queued), running: number(cluster.running), widest: cluster.queue.widest() },
            idle: number(cluster.own.idle.len() as u64),
            borrowed_idle: number(cluster.borrowed.idle.len() as u64),
            lent,
        }
    }

    fn recall(&mut self, owner: usize, seen: &mut dyn FnMut(Seen)) {
        if self.lent[owner] == 0 {
            return;
        }
        let loans = self.loans(owner);
        let plan = recall::plan(&self.world(owner, &loans));
        let called: Vec<(Machine, Reclaim)> = plan.steps.iter().map(|step| (step.what.machine, step.what.by)).collect();
        // Idle ones first: what is idle elsewhere may take in what moves.
        let mut working: BTreeMap<(usize, usize, Reclaim), Vec<Machine>> = BTreeMap::new();
        for (machine, by) in called {
            let slot = self.slots[machine as usize];
            let Some(lent) = slot.lent else { continue };
            self.call_back(machine);
            match slot.job {
                Some((job, _)) => working.entry((lent.borrower, job, by)).or_default().push(machine),
                None => {
                    self.clusters[lent.borrower].borrowed.idle.retain(|idle| *idle != machine);
                    self.go_home(machine, self.setup.costs.halt_s);
                }
            }
        }
        let mut moved = vec![0; self.clusters.len()];
        for ((borrower, job, by), machines) in working {
            // A job whose machines come back in two ways may have left already.
            let machines: Vec<Machine> = machines.into_iter().filter(|machine| self.slots[*machine as usize].job.is_some()).collect();
            match by {
                _ if machines.is_empty() => {}
                Reclaim::Wait => {}
                Reclaim::Kill => self.kill(borrower, job, seen),
                Reclaim::Migrate => self.migrate(borrower, job, &machines, &mut moved[borrower], seen),
            }
        }
    }

    /// What others have of a domain's machines and may be called back now.
    fn loans(&self, owner: usize) -> Vec<Loan<'_>> {
        let of_owner = self.slots.iter().zip(0..).filter(|(slot, _)| slot.owner == owner && !slot.busy_with_itself);
        let loans = of_owner.filter_map(|(slot, machine)| {
            let lent = slot.lent.filter(|lent| !lent.recalled)?;
            let work = slot.job.map_or(Some(Work::Idle), |(job, _)| self.work(lent.borrower, job))?;
            let borrower = self.setup.domains[lent.borrower].name.as_str();
            Some(Loan { machine, borrower, until: lent.until, reclaim: lent.reclaim, work })
        });
        loans.collect()
    }

    fn work(&self, domain: usize, job: usize) -> Option<Work> {
        let cluster = &self.clusters[domain];
        let (standing, run) = (&cluster.standing[job], cluster.standing[job].run.as_ref()?);
        let done_s = (self.now_s - run.since_s + standing.kept_s).saturating_mul(u64::from(cluster.jobs[job].width));
        Some(Work::Busy { job: job as u64, done_s, left_s: run.latest_s.saturating_sub(self.now_s) })
    }

    /// A job is ended, and begins anew later.
    fn kill(&mut self, borrower: usize, job: usize, seen: &mut dyn FnMut(Seen)) {
        let cluster = &mut self.clusters[borrower];
        let Some(run) = cluster.leave(job) else { return };
        let standing = &mut cluster.standing[job];
        let lost_s = (self.now_s - run.since_s + standing.kept_s).saturating_mul(u64::from(cluster.jobs[job].width));
        (standing.kept_s, standing.in_vms) = (0, false);
        standing.attempt += 1;
        cluster.wait(job, &self.setup.costs);
        let account = &mut self.accounts[borrower];
        account.wasted_s = account.wasted_s.saturating_add(lost_s);
        account.killed += 1;
        for machine in run.machines {
            self.off(machine, borrower, seen);
            self.free(machine);
        }
    }

    /// VMs leave machines: to idle ones that their domain has, at home before others. If these are too few, the whole job stands still at home.
    fn migrate(&mut self, borrower: usize, job: usize, machines: &[Machine], moved: &mut usize, seen: &mut dyn FnMut(Seen)) {
        let costs = self.setup.costs;
        let cluster = &mut self.clusters[borrower];
        let home = machines.len().min(cluster.own.idle.len());
        let third = machines.len() - home;
        let account = &mut self.accounts[borrower];
        if third <= cluster.borrowed.idle.len() {
            let mut come = cluster.own.idle.split_off(cluster.own.idle.len() - home);
            come.extend(cluster.borrowed.idle.split_off(cluster.borrowed.idle.len() - third));
            cluster.replace(job, machines, come, home as u32, costs.pause_s);
            account.moved += machines.len() as u64;
            for machine in machines {
                self.off(*machine, borrower, seen);
                *moved += 1;
                self.go_home(*machine, costs.moved_s(*moved));
            }
            self.goes_on(borrower, job);
            return;
        }
        let Some(run) = cluster.leave(job) else { return };
        let standing = &mut cluster.standing[job];
        let worked_s = costs.done_in_vm((self.now_s - run.since_s).saturating_sub(run.stood_s));
        standing.kept_s = (standing.kept_s + worked_s).min(cluster.jobs[job].run_s);
        standing.attempt += 1;
        cluster.wait(job, &costs);
        account.stood += 1;
        account.moved += run.machines.len() as u64;
        for machine in run.machines {
            self.off(machine, borrower, seen);
            let slot = self.slots[machine as usize];
            if slot.lent.is_none() {
                self.free(machine);
                continue;
            }
            *moved += 1;
            let after_s = costs.moved_s(*moved);
            if slot.lent.is_some_and(|lent| lent.recalled) { self.go_home(machine, after_s) } else { self.ready_in(machine, after_s) }
        }
    }

    fn borrow(&mut self, me: usize, order: &[usize]) {
        let name = |domain: usize| self.setup.domains[domain].name.as_str();
        let others = order.iter().filter(|other| **other != me);
        let worlds: Vec<(usize, World<'_>)> = others.map(|other| (*other, self.world(*other, &[]))).collect();
        let offers: Vec<Offer<'_>> = worlds.iter().filter_map(|(other, world)| lend::offer(name(*other), world).ok()).collect();
        let plan = borrow::plan(name(me), &self.world(me, &[]), &offers);
        let mut give_back = 0;
        let mut asks: Vec<(usize, u32, u32, Reclaim)> = vec![];
        for step in plan.steps {
            match step.what {
                Deal::GiveBack(machines) => give_back = machines as usize,
                Deal::Ask { lender, ask } => {
                    let lender = self.setup.domains.iter().position(|domain| domain.name == lender);
                    asks.extend(lender.map(|lender| (lender, ask.machines, ask.least, ask.reclaim)));
                }
            }
        }
        let idle = &mut self.clusters[me].borrowed.idle;
        for machine in idle.split_off(idle.len().saturating_sub(give_back)) {
            self.go_home(machine, self.setup.costs.halt_s);
        }
        for (lender, machines, least, reclaim) in asks {
            self.ask(me, lender, machines, least, reclaim);
        }
    }

    fn ask(&mut self, me: usize, lender: usize, machines: u32, least: u32, reclaim: Reclaim) {
        let ask = Ask { borrower: &self.setup.domains[me].name, machines, least, reclaim };
        let plan = lend::plan(&self.world(lender, &[]), &[ask]);
        let lent: Vec<(usize, Option<u64>, Reclaim)> =
            plan.steps.iter().map(|step| (step.what.machines as usize, step.what.until, step.what.reclaim)).collect();
        for (machines, until, reclaim) in lent {
            let idle = &mut self.clusters[lender].own.idle;
            for machine in idle.split_off(idle.len().saturating_sub(machines)) {
                self.lend(machine, Lent { borrower: me, since_s: self.now_s, until, reclaim, recalled: false });
            }
        }
    }
}
