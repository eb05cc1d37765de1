//! Two engines, one fake network: whole moves from printed seeds, with late, cut, doubled and damaged bytes, machines
//! that keep changing and donors that change. `SEED=n cargo test -p rebec-migrate --test moving` repeats one.

#![expect(clippy::unwrap_used, reason = "a test")]

mod pair;

use std::time::Duration;

use pair::{Base, Fault, Pair, Plan};
use rebec_migrate::source::THROTTLE_PERCENT_MAX;
use rebec_vmm_api::report::Outcome;

const SEEDS: u64 = 24;

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().map(|seed: u64| seed..seed + 1).unwrap(),
        Err(_) => 0..SEEDS,
    }
}

/// Runs every seed and says which one failed.
fn each_seed(test: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in seeds() {
        if let Err(panic) = std::panic::catch_unwind(|| test(seed)) {
            eprintln!("failed with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_move_brings_everything() {
    each_seed(|seed| {
        let mut pair = Pair::new(Plan::random(seed));
        pair.run();
        let report = pair.report();
        assert_eq!(report.outcome, Outcome::Moved, "{report:?}");
        pair.assert_moved();
        assert!(report.wire_bytes > 0 && report.rounds >= 2);
        assert_eq!(pair.target.engine.as_ref().unwrap().table_entries(), 0, "the engine lives on, its tables do not");
    });
}

#[test]
fn of_a_base_that_both_sides_have_nothing_is_said() {
    each_seed(|seed| {
        for base in [Base::None, Base::Same, Base::Other] {
            let mut pair = Pair::new(Plan { base, disk_units: vec![40, 60], ..Plan::random(seed) });
            pair.run();
            pair.assert_moved();
            let on_base = pair.report().clusters.on_base;
            assert_eq!(on_base > 0, base == Base::Same, "{base:?}: {on_base}");
        }
    });
}

#[test]
fn a_cut_at_any_moment_costs_nothing() {
    each_seed(|seed| {
        let mut plan = Plan::random(seed);
        plan.fault = Some(Fault::Cut { at: Duration::from_millis(seed * 7 % 400) });
        let mut pair = Pair::new(plan);
        pair.run();
        pair.heal();
        pair.assert_one_runs();
    });
}

#[test]
fn a_cancel_at_any_moment_leaves_one_running() {
    each_seed(|seed| {
        let mut plan = Plan::random(seed);
        plan.fault = Some(Fault::Cancel { at: Duration::from_millis(seed * 5 % 400) });
        let mut pair = Pair::new(plan);
        pair.run();
        pair.heal();
        pair.assert_one_runs();
    });
}

#[test]
fn damaged_bytes_are_never_applied() {
    for round in 0..4 {
        each_seed(|seed| {
            let mut plan = Plan::random(seed);
            plan.fault = Some(Fault::Flip { message: seed * 4 + round, byte: seed * 31 + round * 7 });
            let mut pair = Pair::new(plan);
            pair.run();
            pair.heal();
            pair.assert_one_runs();
        });
    }
}

#[test]
fn a_doubled_message_is_noticed() {
    each_seed(|seed| {
        let mut plan = Plan::random(seed);
        plan.fault = Some(Fault::Double { message: seed * 3 });
        let mut pair = Pair::new(plan);
        pair.run();
        pair.heal();
        pair.assert_one_runs();
    });
}

#[test]
fn what_a_donor_holds_travels_as_digests() {
    let mut plan = Plan::random(3);
    (plan.donor_share, plan.donor_changes, plan.guest_writes) = (100, false, 0);
    let mut pair = Pair::new(plan);
    pair.run();
    pair.assert_moved();
    let report = pair.report();
    assert!(report.pages.digest > report.pages.compressed + report.pages.raw, "{report:?}");
}

#[test]
fn a_donor_that_changes_costs_a_resend() {
    let mut plan = Plan::random(4);
    (plan.donor_share, plan.donor_changes) = (100, true);
    let mut pair = Pair::new(plan);
    pair.run();
    pair.assert_moved();
    assert!(pair.wanted > 0, "the donor never changed in time");
}

#[test]
fn a_machine_that_changes_too_fast_is_slowed_and_then_refused() {
    let mut plan = Plan::random(5);
    (plan.bytes_per_ms, plan.guest_writes, plan.downtime_max) = (400, 60, Duration::from_millis(100));
    let mut pair = Pair::new(plan);
    pair.ignores_throttle = true;
    pair.run();
    let report = pair.report();
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.reason.as_ref().unwrap().contains("100 ms are allowed"), "{report:?}");
    assert!(
        pair.throttles.contains(&THROTTLE_PERCENT_MAX)
            && pair.throttles.iter().all(|percent| *percent <= THROTTLE_PERCENT_MAX)
            && pair.throttles.ends_with(&[0]),
        "{:?}",
        pair.throttles
    );
    pair.assert_one_runs();
}

#[test]
fn slowed_vcpus_let_a_busy_machine_move() {
    let mut plan = Plan::random(5);
    (plan.bytes_per_ms, plan.guest_writes, plan.downtime_max) = (400, 60, Duration::from_millis(400));
    let mut pair = Pair::new(plan);
    pair.run();
    let report = pair.report();
    assert_eq!(report.outcome, Outcome::Moved, "{report:?}");
    assert!(!pair.throttles.is_empty());
    pair.assert_moved();
}

#[test]
fn a_pause_that_the_targets_disk_would_make_too_long_is_not_begun() {
    let slow = Duration::from_millis(300);
    let plan = || Plan { disk_units: vec![40], flush: slow, guest_writes: 0, ..Plan::random(6) };
    let mut pair = Pair::new(plan());
    pair.run();
    let report = pair.report();
    assert_eq!((report.outcome, report.downtime_ms), (Outcome::Failed, 0), "{report:?}");
    assert!(report.reason.as_ref().unwrap().contains("150 ms are allowed"), "{report:?}");
    pair.assert_one_runs();
    let mut patient = Pair::new(Plan { downtime_max: slow * 5, ..plan() });
    patient.run();
    patient.assert_moved();
    let mut without_disks = Pair::new(Plan { disk_units: vec![], ..plan() });
    without_disks.run();
    without_disks.assert_moved();
}
