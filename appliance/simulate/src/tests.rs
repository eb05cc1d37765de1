//! Small courses of events that can be followed by hand, and what holds in all of them.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rebec_pool::trade::policy::{Modes, Policy, Reclaim};

use crate::{
    Costs, DomainSetup, Outcome, Seen, Setup, Trace,
    made::{self, Like},
    simulate,
    trace::Job,
};

const HOUR: u64 = 3600;
/// Costs that are seen in a sum.
const COSTS: Costs = Costs { boot_s: 10, halt_s: 20, slowdown_percent: 50, move_first_s: 5, move_next_s: 1, pause_s: 2 };

fn policy(mode: Reclaim) -> Policy {
    let mut policy = Policy::default();
    policy.lending.reclaim.value = Modes(vec![mode]);
    policy.borrowing.survives.value = Modes(vec![mode]);
    policy
}

/// Jobs of (submitted, runs, asked for, wide).
fn domain(name: &str, machines: u32, jobs: &[(u64, u64, u64, u32)], mode: Reclaim) -> DomainSetup {
    let jobs = jobs.iter().map(|&(submit_s, run_s, asked_s, width)| Job { submit_s, run_s, asked_s, width }).collect();
    DomainSetup { name: name.into(), trace: Trace { jobs, ..Trace::default() }, machines, policy: policy(mode) }
}

fn setup(domains: Vec<DomainSetup>) -> Setup {
    Setup { domains, costs: COSTS, interval_s: HOUR, seed: 1 }
}

/// What was used: domain, job, from, to; for one job the same as often as it is wide.
fn course(setup: &Setup) -> (Outcome, Vec<(usize, usize, u64, u64)>) {
    let mut used = vec![];
    let outcome = simulate(setup, &mut |seen| {
        if let Seen::Used { domain, job, from_s, to_s, .. } = seen {
            used.push((domain, job, from_s, to_s));
        }
    });
    (outcome, used)
}

fn ends(setup: &Setup) -> BTreeMap<(usize, usize), (u64, u64)> {
    course(setup).1.into_iter().map(|(domain, job, from, to)| ((domain, job), (from, to))).collect()
}

#[test]
fn who_came_later_starts_earlier_if_nobody_waits_longer_for_it() {
    // The second wants all four machines, and may have them at 100.
    let jobs = [(0, 80, 100, 2), (1, 10, 10, 4), (2, 90, 99, 1), (3, 96, 97, 1)];
    let ends = ends(&setup(vec![domain("a", 4, &jobs, Reclaim::Kill)]));
    assert_eq!(ends[&(0, 3)], (3, 99), "it asked for no more than is left until then");
    assert_eq!(ends[&(0, 1)], (99, 109));
    assert_eq!(ends[&(0, 2)], (109, 199), "it might have ended at 101");
}

#[test]
fn backfill_keeps_the_reservation() {
    // The head of width 3 may start at 100 by what the first asked for, and one machine of four is left over then.
    let jobs = [(0, 90, 100, 2), (1, 10, 10, 3), (2, 97, 98, 1), (3, 500, 500, 1), (4, 500, 500, 1)];
    let ends = ends(&setup(vec![domain("a", 4, &jobs, Reclaim::Kill)]));
    assert_eq!(ends[&(0, 2)], (2, 99), "it ends before the head may start");
    assert_eq!(ends[&(0, 3)], (3, 503), "it takes the machine that is left over");
    assert_eq!(ends[&(0, 1)], (99, 109), "the head starts as soon as there is room");
    assert_eq!(ends[&(0, 4)], (109, 609), "a second long one would have made it wait");
}

/// `b` has eight machines and nothing to do; `a` has one and a job of three hours on it. Its second job comes after the first hour.
fn lent(mode: Reclaim, rest: &[(u64, u64, u64, u32)], of_b: &[(u64, u64, u64, u32)]) -> Setup {
    let mut jobs = vec![(0, 3 * HOUR, 3 * HOUR, 1), (HOUR / 2, 2 * HOUR, 2 * HOUR, 1)];
    jobs.extend(rest);
    setup(vec![domain("a", 1, &jobs, mode), domain("b", 8, of_b, mode)])
}

/// When a borrowed machine takes work that was lacking at the first hour.
const BOOTED: u64 = HOUR + 10;

#[test]
fn a_borrowed_machine_boots_is_slower_and_halts() {
    let setup = lent(Reclaim::Kill, &[], &[(0, 1, 1, 1)]);
    let (outcome, used) = course(&setup);
    assert!(used.contains(&(0, 1, BOOTED, BOOTED + 3 * HOUR)), "{used:?}");
    let (a, b) = (&outcome.domains["a"], &outcome.domains["b"]);
    // It was lent at 1 h; at 5 h nothing runs on it and it goes back. The jobs have all ended at 4 h and 10 s.
    assert!((a.borrowed_node_h - (3.0 + 10.0 / 3600.0)).abs() < 1e-9 && a.borrowed_node_h == b.lent_node_h, "{outcome:?}");
    assert_eq!((a.jobs, b.jobs, a.wasted_node_h), (2, 1, 0.0));
    // Alone, the second job would have waited for the first: 3 h and 4.5 h. Shared: 3 h and 3.5 h and 10 s.
    assert!((a.mean_completion_alone_h - 3.75).abs() < 1e-9 && (a.mean_completion_h - (3.25 + 5.0 / 3600.0)).abs() < 1e-9, "{a:?}");
}

/// What `b` wants at the second hour: all of its machines.
const ALL_OF_B: [(u64, u64, u64, u32); 1] = [(2 * HOUR - 60, 600, 600, 8)];

#[test]
fn what_is_killed_begins_anew_and_is_counted() {
    let (outcome, used) = course(&lent(Reclaim::Kill, &[], &ALL_OF_B));
    assert!(used.contains(&(0, 1, BOOTED, 2 * HOUR)), "{used:?}");
    let b = used.iter().find(|(domain, ..)| *domain == 1).unwrap();
    assert_eq!((b.2, b.3), (2 * HOUR + 20, 2 * HOUR + 620), "the machine halts first");
    let a = &outcome.domains["a"];
    assert!((a.wasted_node_h - (1.0 - 10.0 / 3600.0)).abs() < 1e-9 && a.told.killed == 1, "{a:?}");
    assert_eq!(a.jobs, 2);
}

#[test]
fn who_waits_has_its_machine_when_the_job_has_ended() {
    let (outcome, used) = course(&lent(Reclaim::Wait, &[], &ALL_OF_B));
    assert!(used.contains(&(0, 1, BOOTED, BOOTED + 3 * HOUR)), "{used:?}");
    let b = used.iter().find(|(domain, ..)| *domain == 1).unwrap();
    assert_eq!(b.2, BOOTED + 3 * HOUR + 20);
    assert_eq!(outcome.domains["a"].wasted_node_h, 0.0);
}

#[test]
fn a_vm_moves_home_and_goes_on_or_stands_still_until_there_is_room() {
    // At home the first job runs until 3 h: the second stands still from 2 h on, after 3590 s in a VM, which are 2393 s of work.
    let (outcome, used) = course(&lent(Reclaim::Migrate, &[], &ALL_OF_B));
    assert!(used.contains(&(0, 1, BOOTED, 2 * HOUR)), "{used:?}");
    let left_s = (2 * HOUR - 2393) * 3 / 2 + 1;
    assert!(used.iter().any(|job| *job == (0, 1, 3 * HOUR, 3 * HOUR + 5 + left_s)), "{used:?}, {left_s}");
    let b = used.iter().find(|(domain, ..)| *domain == 1).unwrap();
    assert_eq!(b.2, 2 * HOUR + 5, "the machine is free when the VM has moved, and need not halt");
    let told = &outcome.domains["a"].told;
    assert_eq!((told.stood, told.moved, outcome.domains["a"].wasted_node_h), (1, 1, 0.0));

    // With room at home it goes on there: it stood still for two seconds.
    let mut setup = lent(Reclaim::Migrate, &[], &ALL_OF_B);
    setup.domains[0].trace.jobs[0].run_s = HOUR + 600;
    let (outcome, used) = course(&setup);
    assert!(used.contains(&(0, 1, BOOTED, 2 * HOUR)) && used.contains(&(0, 1, 2 * HOUR, BOOTED + 3 * HOUR + 2)), "{used:?}");
    assert_eq!((outcome.domains["a"].told.stood, outcome.domains["a"].told.moved), (0, 1));
}

#[test]
fn what_is_wider_than_its_cluster_is_left_out_and_counted() {
    let outcome = course(&setup(vec![domain("a", 2, &[(0, 5, 5, 3), (0, 5, 5, 2)], Reclaim::Kill)])).0;
    assert_eq!((outcome.domains["a"].jobs, outcome.domains["a"].left_out), (1, 1));
}

fn pair(mode: Reclaim, jobs: usize) -> Setup {
    let domain = |name: &str, machines, load_percent, seed| DomainSetup {
        name: name.into(),
        trace: made::trace(Like { jobs, machines, load_percent, seed }),
        machines,
        policy: policy(mode),
    };
    Setup { domains: vec![domain("busy", 64, 85, 1), domain("calm", 256, 40, 2)], costs: Costs::default(), interval_s: HOUR, seed: 7 }
}

/// The whole answer for two made traces: whoever changes the scheduler, the costs or a decision sees here what comes of it.
#[test]
fn a_small_run_is_what_it_was() {
    for (mode, golden) in [
        (Reclaim::Kill, include_str!("golden/kill.json")),
        (Reclaim::Wait, include_str!("golden/wait.json")),
        (Reclaim::Migrate, include_str!("golden/migrate.json")),
    ] {
        let outcome = simulate(&pair(mode, 2000), &mut |_| {});
        let text = serde_json::to_string_pretty(&outcome).unwrap();
        assert_eq!(text.trim(), golden.trim(), "{mode}");
    }
}

#[test]
fn sharing_helps_who_is_busy_and_moving_loses_nothing() {
    let [kill, migrate] = [Reclaim::Kill, Reclaim::Migrate].map(|mode| simulate(&pair(mode, 5000), &mut |_| {}));
    let (killed, moved) = (&kill.domains["busy"], &migrate.domains["busy"]);
    assert!(killed.change_percent() < -10.0 && moved.mean_completion_h < killed.mean_completion_h, "{kill:?} {migrate:?}");
    assert!(killed.wasted_node_h > 0.0 && moved.wasted_node_h == 0.0, "{kill:?} {migrate:?}");
}

#[test]
fn the_same_seed_gives_the_same_result() {
    let run = |seed| {
        let mut setup = pair(Reclaim::Kill, 1000);
        setup.domains.push(DomainSetup { name: "third".into(), ..setup.domains[0].clone() });
        setup.seed = seed;
        simulate(&setup, &mut |_| {})
    };
    assert_eq!(run(3), run(3));
    assert!((0..5).any(|seed| run(seed) != run(3)), "the seed does nothing");
}

/// Five times what it takes at most on a quiet machine, for the code as users run it.
#[test]
fn a_hundred_thousand_jobs_take_seconds_even_if_all_wait() {
    let begun = std::time::Instant::now();
    let mut setup = pair(Reclaim::Kill, 50_000);
    setup.domains[0].trace = made::trace(Like { jobs: 50_000, machines: 64, load_percent: 400, seed: 3 });
    let outcome = simulate(&setup, &mut |_| {});
    assert_eq!(outcome.domains.values().map(|domain| domain.jobs).sum::<u64>(), 100_000);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}

fn jobs() -> impl Strategy<Value = Vec<(u64, u64, u64, u32)>> {
    let job = (0..20_000_u64, 0..9000_u64, 1..9000_u64, 1..9_u32);
    proptest::collection::vec(job, 1..25).prop_map(|mut jobs| {
        jobs.sort_by_key(|job| job.0);
        jobs
    })
}

fn mode() -> impl Strategy<Value = Reclaim> {
    proptest::sample::select(Reclaim::ALL.to_vec())
}

proptest! {
    /// No machine is used twice at a time, every job that fits ends, what is lent is what is borrowed, and only what is killed is lost.
    #[test]
    fn nothing_is_made_or_lost(
        traces in proptest::collection::vec((jobs(), 1..12_u32, mode()), 1..4), interval_s in 60..5000_u64, seed in any::<u64>(),
        longest in proptest::option::of(1..9000_u64),
    ) {
        let names = ["a", "b", "c"];
        let mut domains: Vec<DomainSetup> =
            traces.iter().zip(names).map(|((jobs, machines, mode), name)| domain(name, *machines, jobs, *mode)).collect();
        for domain in &mut domains {
            // All ways meet, the preferred first.
            domain.policy.borrowing.survives.value = Modes(Reclaim::ALL.to_vec());
            domain.policy.lending.longest.value.0 = longest;
        }
        let setup = Setup { domains, costs: COSTS, interval_s, seed };
        let mut of_machine: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
        let mut of_job: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        let (mut most, machines) = (0, setup.domains.iter().map(|domain| u64::from(domain.machines)).sum::<u64>());
        let outcome = simulate(&setup, &mut |seen| match seen {
            Seen::Used { machine, domain, job, from_s, to_s } => {
                of_machine.entry(machine).or_default().push((from_s, to_s));
                *of_job.entry((domain, job)).or_default() += to_s - from_s;
            }
            Seen::Sample { running, .. } => most = most.max(running),
            Seen::Progress { .. } => {}
        });
        prop_assert!(most <= machines);
        for (machine, mut times) in of_machine {
            prop_assert!(u64::from(machine) < machines);
            times.sort_unstable();
            prop_assert!(times.windows(2).all(|two| two[0].1 <= two[1].0), "machine {} is used twice: {:?}", machine, times);
        }
        let mut any_kill = false;
        for (number, domain) in setup.domains.iter().enumerate() {
            any_kill |= domain.policy.lending.reclaim.value.0.contains(&Reclaim::Kill);
            let fitting: Vec<&Job> = domain.trace.jobs.iter().filter(|job| job.width <= domain.machines).collect();
            let told = &outcome.domains[&domain.name];
            prop_assert_eq!((told.jobs, told.left_out), (fitting.len() as u64, (domain.trace.jobs.len() - fitting.len()) as u64));
            for (job, wanted) in fitting.iter().enumerate() {
                let used = of_job.get(&(number, job)).copied().unwrap_or_default();
                // A VM that stood still keeps what it did but for less than a second each time.
                let work = wanted.run_s * u64::from(wanted.width);
                prop_assert!(used >= work, "job {} of {} used {} of {}", job, domain.name, used, work);
            }
        }
        let sum = |of: fn(&crate::outcome::DomainOutcome) -> f64| outcome.domains.values().map(of).sum::<f64>();
        prop_assert!((sum(|domain| domain.lent_node_h) - sum(|domain| domain.borrowed_node_h)).abs() < 1e-6);
        prop_assert!(any_kill || sum(|domain| domain.wasted_node_h) == 0.0);
    }
}
