//! Jobs on made-up ticks: what each way costs, and who is late.

use proptest::prelude::*;

use super::{course::run, *};

const HOUR: u64 = 3600;

/// Ticks of 5 minutes: so many with a machine, so many without, again and again for ten days.
fn periodic(with: usize, without: usize) -> Ticks {
    Ticks::new(300, (0..2880).map(|tick| tick % (with + without) < with))
}

/// Five hours of work in eight.
fn plan() -> Plan {
    Plan { work_s: 5 * HOUR, deadline_s: 8 * HOUR, jobs: 7, ..Plan::default() }
}

fn one(ticks: Ticks) -> ZoneOutcome {
    simulate(&plan(), &[("z".into(), ticks)]).unwrap().zones.remove("z").unwrap()
}

#[test]
fn where_a_machine_is_always_there_all_ways_are_one() {
    let zone = one(periodic(1, 0));
    assert_eq!((&zone.ended, &zone.uniform), (&zone.moved, &zone.moved));
    // The work and one beginning, at a third of the price.
    assert!((zone.moved.cost_percent - 520.0 / 300.0 * 20.0).abs() < 0.1, "{zone:?}");
    assert_eq!((zone.moved.late_jobs, zone.moved.withdrawals, zone.spot_share), (0, 0.0, 1.0));
}

#[test]
fn where_none_is_ever_there_the_deadline_is_met_at_the_full_price() {
    let zone = one(periodic(0, 1));
    assert_eq!((zone.ended.given_up, zone.ended.late_jobs, zone.ended.cost_percent), (7, 7, 0.0));
    for way in [&zone.uniform, &zone.moved] {
        assert!(way.late_jobs == 0 && (100.0..125.0).contains(&way.cost_percent), "{way:?}");
    }
}

#[test]
fn a_move_saves_what_a_restart_costs() {
    // A machine for half an hour, then none for ten minutes: of each half hour 12 minutes go into beginning again.
    let zone = one(periodic(6, 2));
    assert!(zone.ended.late_jobs == 7 && zone.ended.late_mean_h > 1.0, "{zone:?}");
    assert!(zone.uniform.late_jobs == 0 && zone.moved.late_jobs == 0, "{zone:?}");
    assert!(zone.moved.cost_percent < 40.0 && zone.uniform.cost_percent > 50.0, "{zone:?}");
    assert!(zone.moved.withdrawals >= 9.0 && zone.moved.lost_mean_h < 0.25, "{zone:?}");
}

#[test]
fn a_vm_that_moves_finds_a_machine_in_another_zone() {
    let first = periodic(6, 6);
    let second = Ticks::new(300, (0..2880).map(|tick| tick % 12 >= 6));
    let outcome = simulate(&plan(), &[("a".into(), first), ("b".into(), second)]).unwrap();
    let all = outcome.all.unwrap();
    assert!(all.spot_share == 1.0 && all.moved.cost_percent < 36.0, "{all:?}");
    assert!(outcome.zones["a"].moved.cost_percent > all.moved.cost_percent + 5.0);
}

#[test]
fn a_vm_that_moves_for_longer_than_the_notice_is_ended() {
    let (ticks, slow) = (periodic(6, 2), Plan { move_s: 121, ..plan() });
    for first in 0..20 {
        assert_eq!(run(&slow, &[&ticks], Way::Moved, first), run(&slow, &[&ticks], Way::Uniform, first));
    }
}

#[test]
fn what_is_no_trace_is_told() {
    let told = |text: &str| read(text.as_bytes()).unwrap_err().to_string();
    assert!(told("").contains("gap_seconds"));
    assert!(told(r#"{"metadata": {"gap_seconds": 0}, "data": [1]}"#).contains("from 1"));
    assert!(told(r#"{"metadata": {"gap_seconds": 30}, "data": []}"#).contains("no ticks"));
    assert!(told(r#"{"metadata": {"gap_seconds": 30}, "data": [-1]}"#).contains("-1"));
    let short = Ticks::new(300, [true; 4]);
    assert!(simulate(&plan(), &[("z".into(), short)]).unwrap_err().starts_with("z: its trace is 0 h long"));
    let read = read(br#"{"metadata": {"gap_seconds": 30}, "data": [0, 16, 1], "more": {}}"#.as_slice()).unwrap();
    assert_eq!(read, Ticks::new(30, [false, true, true]));
}

proptest! {
    /// Whatever the trace is: who follows the rule is in time if there is time for two changeovers, and pays for little more than all of its work.
    #[test]
    fn who_follows_the_rule_is_never_late(there in prop::collection::vec(any::<bool>(), 100..400), first in 0usize..400) {
        let (plan, ticks) = (plan(), Ticks::new(300, there));
        for way in [Way::Uniform, Way::Moved] {
            let course = run(&plan, &[&ticks], way, first);
            prop_assert!(!course.given_up && course.took_s <= plan.deadline_s, "{way:?}: {course:?}");
            prop_assert_eq!(course.spot_s + course.dear_s, plan.work_s + course.lost_s);
        }
    }
}
