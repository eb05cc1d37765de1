//! Decisions of a broker, each with its reason.

use super::{
    borrow::{self, Deal},
    demand::{self, Demand, Holdings},
    file,
    lend::{self, Ask, Lend, Offer},
    policy::{Modes, Policy, Reclaim},
    recall,
    world::{Loan, Work, World},
};

/// Monday, 7 January 2019, 12:00.
const NOON: u64 = 1_546_862_400;

fn world<'a>(policy: &'a Policy, holdings: (u32, u32, u32), demand: (u32, u32), lent: &'a [Loan<'a>]) -> World<'a> {
    let (owned, lent_number, borrowed) = holdings;
    let (queued, running) = demand;
    World {
        now: NOON,
        policy,
        holdings: Holdings { owned, lent: lent_number, borrowed },
        demand: Demand { queued, running, widest: 0 },
        idle: (owned - lent_number).saturating_sub(running),
        borrowed_idle: borrowed,
        lent,
    }
}

fn loan(machine: u32, reclaim: Reclaim, work: Work) -> Loan<'static> {
    Loan { machine, borrower: "beta", until: None, reclaim, work }
}

#[test]
fn demand_counts_what_waits_and_what_runs() {
    let demand = Demand { queued: 30, running: 70, widest: 10 };
    let holdings = Holdings { owned: 100, lent: 20, borrowed: 5 };
    assert_eq!(demand::needed(&demand, &holdings), 15);
    assert_eq!(demand::told(&demand, &holdings), "n = 30 queued + 70 running - ((100 - 20) + 5) = 15");
    assert_eq!(demand::needed(&Demand::default(), &holdings), -85);
    let extremes = Holdings { owned: 0, lent: u32::MAX, borrowed: 0 };
    assert_eq!(demand::needed(&Demand { queued: u32::MAX, running: u32::MAX, widest: 0 }, &extremes), 3 * i64::from(u32::MAX));
}

#[test]
fn half_of_what_is_idle_is_lent_what_is_lent_already_among_it() {
    let policy = Policy::default();
    let ask = |machines, least| Ask { borrower: "beta", machines, least, reclaim: Reclaim::Migrate };
    // 60 idle: 30 at most, to the first; the rest is too few for the second.
    let plan = lend::plan(&world(&policy, (100, 0, 0), (0, 40), &[]), &[ask(20, 1), ask(20, 11)]);
    assert_eq!(plan.steps.len(), 1);
    assert_eq!(plan.steps[0].what, Lend { borrower: "beta", machines: 20, until: None, reclaim: Reclaim::Migrate });
    assert!(plan.steps[0].reason.ends_with("60 idle, 0 lent (default: lending.share = 50%)"), "{}", plan.steps[0].reason);
    assert!(plan.refusals[0].reason.starts_with("asks for 20, at least 11, of the 10 that are left"), "{}", plan.refusals[0].reason);
    // 30 of 60 are lent: no more, an hour later.
    let again = lend::offer("alpha", &world(&policy, (100, 30, 0), (0, 40), &[])).unwrap_err();
    assert!(again.contains("30 idle, 30 lent"), "{again}");
}

#[test]
fn the_policy_says_to_whom_when_how_long_and_how() {
    let text = "[lending]\nkeep = 50\nto = [\"beta\"]\nwhen = \"mon-fri 08:00-20:00\"\nlongest = \"12h\"\nreclaim = [\"kill\"]\n";
    let policy = file::read(text).unwrap();
    let ask = |borrower, reclaim| Ask { borrower, machines: 9, least: 1, reclaim };
    let mut world = world(&policy, (100, 0, 0), (0, 42), &[]);
    let asks = [ask("gamma", Reclaim::Kill), ask("beta", Reclaim::Wait), ask("beta", Reclaim::Kill)];
    let plan = lend::plan(&world, &asks);
    // The hours end before the lease would.
    assert_eq!(plan.steps[0].what, Lend { borrower: "beta", machines: 8, until: Some(NOON + 8 * 3600), reclaim: Reclaim::Kill });
    assert!(plan.steps[0].reason.contains("(line 2: lending.keep = 50)"), "{}", plan.steps[0].reason);
    let reasons: Vec<&str> = plan.refusals.iter().map(|refusal| refusal.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["is not lent to (line 3: lending.to = beta)", "wants to give machines back by wait (line 6: lending.reclaim = kill)"]
    );
    world.now += 10 * 3600;
    assert_eq!(lend::offer("alpha", &world), Err("it is not the time to lend (line 4: lending.when = mon-fri 08:00-20:00)".into()));
}

#[test]
fn who_borrows_does_not_lend() {
    let policy = Policy::default();
    let why = lend::offer("alpha", &world(&policy, (100, 0, 3), (0, 40), &[])).unwrap_err();
    assert_eq!(why, "it has borrowed 3 itself");
}

#[test]
fn what_is_lacking_is_asked_of_who_has_most() {
    let policy = file::read("[borrowing]\nfrom = [\"beta\", \"gamma\", \"delta\"]\nmost = 30\nleast = 3\nsurvives = [\"wait\"]\n").unwrap();
    let (wait, kill) = (Modes(vec![Reclaim::Migrate, Reclaim::Wait]), Modes(vec![Reclaim::Kill]));
    let offer = |lender, machines, reclaim| Offer { lender, machines, reclaim };
    let offers = [offer("beta", 18, &wait), offer("gamma", 20, &wait), offer("delta", 90, &kill), offer("omega", 95, &wait)];
    let plan = borrow::plan("alpha", &world(&policy, (10, 0, 10), (40, 20), &[]), &offers);
    let Deal::Ask { lender, ask } = plan.steps[0].what else { panic!("{plan:?}") };
    assert_eq!((lender, ask.machines, ask.reclaim), ("gamma", 20, Reclaim::Wait));
    assert!(plan.steps[0].reason.ends_with("= 40 (line 3: borrowing.most = 30)"), "{}", plan.steps[0].reason);
    let told: Vec<(&str, &str)> = plan.refusals.iter().map(|refusal| (refusal.what.as_str(), refusal.reason.as_str())).collect();
    let expected = [
        ("omega", "is not borrowed from (line 2: borrowing.from = beta, gamma, delta)"),
        ("delta", "takes machines back by kill alone (line 5: borrowing.survives = wait)"),
    ];
    assert_eq!(told, expected);
}

#[test]
fn too_few_are_not_borrowed_and_what_is_left_over_is_given_back() {
    let policy = file::read("[borrowing]\nthreshold = 5\n").unwrap();
    let modes = Modes(vec![Reclaim::Wait]);
    let offers = [Offer { lender: "beta", machines: 50, reclaim: &modes }];
    let plan = borrow::plan("alpha", &world(&policy, (10, 0, 0), (4, 10), &[]), &offers);
    assert!(plan.steps.is_empty() && plan.refusals[0].reason.ends_with("too few to borrow (line 2: borrowing.threshold = 5)"), "{plan:?}");
    let plan = borrow::plan("alpha", &world(&policy, (10, 0, 8), (0, 13), &[]), &offers);
    assert_eq!(plan.steps[0].what, Deal::GiveBack(5));
}

#[test]
fn what_loses_least_comes_back_first() {
    let policy = Policy::default();
    let busy = |job, done_s, left_s| Work::Busy { job, done_s, left_s };
    let lent = [
        loan(1, Reclaim::Wait, busy(1, 10, 50)),
        loan(2, Reclaim::Kill, busy(2, 900, 5)),
        loan(3, Reclaim::Kill, busy(3, 30, 5)),
        loan(4, Reclaim::Migrate, busy(4, 5000, 5)),
        loan(5, Reclaim::Kill, Work::Idle),
        loan(6, Reclaim::Wait, busy(6, 10, 20)),
        loan(7, Reclaim::Kill, busy(3, 30, 5)),
    ];
    let order = |wanted: u32| -> Vec<u32> {
        let plan = recall::plan(&world(&policy, (20, 7, 0), (wanted, 13), &lent));
        plan.steps.iter().map(|step| step.what.machine).collect()
    };
    assert_eq!(order(7), [5, 4, 3, 7, 2, 6, 1]);
    assert_eq!(order(2), [5, 4]);
    assert_eq!(order(0), [0; 0]);
    assert_eq!(order(99).len(), 7);
    let plan = recall::plan(&world(&policy, (20, 7, 0), (3, 13), &lent));
    let expected = "n = 3 queued + 13 running - ((20 - 7) + 0) = 3; job 3 loses least, 30 s of work (agreed from default: lending.reclaim = migrate, wait)";
    assert_eq!(plan.steps[2].reason, expected);
    assert!(plan.steps[1].reason.contains("; what runs on it moves away (agreed"), "{}", plan.steps[1].reason);
    // A contract without an end says none.
    let lent = [loan(1, Reclaim::Wait, busy(1, 10, u64::MAX))];
    let plan = recall::plan(&world(&policy, (1, 1, 0), (1, 0), &lent));
    assert!(plan.steps[0].reason.contains("; no end was agreed for job 1 (agreed"), "{}", plan.steps[0].reason);
}

#[test]
fn a_wide_job_brings_machines_home_that_the_sum_does_not_ask_for() {
    let policy = Policy::default();
    let lent = [loan(1, Reclaim::Kill, Work::Idle), loan(2, Reclaim::Kill, Work::Idle)];
    // 8 at home and 5 borrowed are enough for 9 in sum, but not for one job of 9.
    let mut world = world(&policy, (10, 2, 5), (9, 0), &lent);
    world.demand.widest = 9;
    assert_eq!(recall::plan(&world).steps.len(), 1);
}

#[test]
fn leases_end_and_hours_close() {
    let policy = file::read("[lending]\nwhen = \"08:00-20:00\"\nlongest = \"1h\"\n").unwrap();
    let lent = [
        Loan { until: Some(NOON), ..loan(1, Reclaim::Kill, Work::Idle) },
        Loan { until: Some(NOON + 1), ..loan(2, Reclaim::Kill, Work::Idle) },
    ];
    let mut world = world(&policy, (10, 2, 0), (0, 0), &lent);
    let plan = recall::plan(&world);
    assert_eq!((plan.steps.len(), plan.steps[0].reason.as_str()), (1, "its lease has ended (line 3: lending.longest = 1h)"));
    world.now += 9 * 3600;
    let plan = recall::plan(&world);
    assert_eq!(
        (plan.steps.len(), plan.steps[1].reason.as_str()),
        (2, "the hours of lending are over (line 2: lending.when = 08:00-20:00)")
    );
}
