//! The table of docs/formats/handover.md, enumerated: a handover is stopped at every step, each event of the table
//! happens there with the step's message lost, delayed or doubled, then the link is healed and what was killed comes back
//! with its ledger. At no moment two run; in the end one does, and it is the one that the table names.

#![expect(clippy::unwrap_used, reason = "a test")]

mod pair;

use std::{collections::BTreeMap, time::Duration};

use pair::{EPOCH, Event, MOVE, Pair, Plan, Side, last};
use rebec_migrate::{MoveId, Record, SourceInput, Target, TargetInput, ledger::Right};
use rebec_vmm_api::report::Outcome;

const TABLE: &str = include_str!("../../../docs/formats/handover.md");

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    SourceKilled,
    TargetKilled,
    BothKilled,
    LinkCut,
    Cancel,
}

const HAPPENINGS: [Happening; 5] =
    [Happening::SourceKilled, Happening::TargetKilled, Happening::BothKilled, Happening::LinkCut, Happening::Cancel];

/// What becomes of the message (or write, or answer) that was about to arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It arrives first.
    Arrives,
    /// It never arrives.
    Lost,
    /// It arrives after the event, if its receiver lives and its connection stands.
    Delayed,
    /// It arrives twice, then the event happens.
    Doubled,
}

const FATES: [Fate; 4] = [Fate::Arrives, Fate::Lost, Fate::Delayed, Fate::Doubled];

#[test]
fn the_table_holds_at_every_step() {
    let table = read_table();
    let steps = count_steps();
    assert!(steps > 20, "only {steps} steps");
    let mut seen: BTreeMap<(String, String, Happening), u32> = BTreeMap::new();
    for step in 0..steps {
        for happening in HAPPENINGS {
            for fate in FATES {
                let row = one(step, happening, fate, &table);
                if let Some((source, target)) = row {
                    *seen.entry((source, target, happening)).or_default() += 1;
                }
            }
        }
    }
    for (source, target) in table.keys() {
        for happening in HAPPENINGS {
            assert!(seen.contains_key(&(source.clone(), target.clone(), happening)), "{source} / {target}, {happening:?} never happened");
        }
    }
}

#[test]
fn a_ledger_that_cannot_be_written_loses_nothing() {
    for (refused, epoch) in [(Right::Prepared, EPOCH), (Right::Granted, EPOCH), (Right::Running, EPOCH + 2)] {
        let mut pair = Pair::new(Plan::tiny());
        pair.refused = vec![refused];
        pair.run();
        assert!(pair.source.running && !pair.target.running, "{refused:?}");
        assert_eq!(pair.report().outcome, Outcome::Failed);
        assert_eq!(last(&pair.source.ledger).unwrap().epoch, epoch, "{refused:?}");
    }
}

#[test]
fn the_targets_user_may_cancel_at_every_step() {
    for step in 0..count_steps() {
        let mut pair = Pair::new(Plan::tiny());
        for _ in 0..step {
            pair.step();
        }
        let granted = last(&pair.target.ledger).is_some_and(|record| record.right == Right::Running) || pair.target.writing;
        pair.later(Duration::ZERO, Event::Target(TargetInput::Cancel));
        pair.run();
        assert!(pair.source.running != pair.target.running, "step {step}");
        assert!(!granted || pair.target.running || last(&pair.target.ledger).unwrap().right != Right::Running, "step {step}");
    }
}

#[test]
fn a_release_that_was_never_heard_is_told_again() {
    let mut pair = Pair::new(Plan::tiny());
    while last(&pair.source.ledger).unwrap().right != Right::Granted {
        assert!(pair.step());
    }
    pair.kill(Side::Target);
    pair.run();
    // It came back, released, and was killed again before its source connected. Now it waits for a new VM.
    let prepared = last(&pair.target.ledger).unwrap();
    let released = Record { right: Right::Released, ..prepared };
    pair.target.ledger.extend(released.to_bytes());
    pair.target.engine = Some(Target::new(MOVE, 1).remembering(Some(released)));
    pair.linked = true;
    pair.tell_source(SourceInput::Reconnected);
    pair.drain_outputs();
    pair.run();
    assert!(pair.source.running && !pair.target.running);
    assert_eq!(last(&pair.source.ledger).unwrap().epoch, EPOCH + 2);
}

#[test]
fn a_target_that_can_record_nothing_waits_and_says_so() {
    let mut pair = Pair::new(Plan::tiny());
    pair.refused = vec![Right::Running, Right::Released];
    pair.run();
    assert!(!pair.source.running && !pair.target.running);
    assert_eq!(pair.report().outcome, Outcome::Waiting);
    // Its process is killed, the disk is mended, and it comes back with its ledger.
    pair.refused.clear();
    pair.kill(Side::Target);
    pair.run();
    pair.heal();
    pair.assert_one_runs();
    assert!(pair.source.running);
}

#[test]
fn a_new_move_finds_the_target_of_an_old_one_and_it_lets_go() {
    let mut pair = Pair::new(Plan::tiny());
    while last(&pair.target.ledger).is_none() {
        assert!(pair.step());
    }
    pair.cut("before the grant");
    pair.run();
    assert!(pair.source.running);
    pair.linked = true;
    pair.start_again(MoveId([77; 16]));
    pair.run();
    assert!(pair.report().reason.as_ref().unwrap().contains("older move"), "{:?}", pair.report());
    assert_eq!(last(&pair.target.ledger).unwrap().right, Right::Released);
    assert!(pair.source.running && !pair.target.running);
}

/// Runs one case; the row it fell into.
fn one(step: usize, happening: Happening, fate: Fate, table: &Table) -> Option<(String, String)> {
    let case = format!("step {step}, {happening:?}, message {fate:?}");
    let mut pair = Pair::new(Plan::tiny());
    for _ in 0..step {
        pair.step();
    }
    let late = meet(&mut pair, fate)?;
    let row = (source_state(&pair), target_state(&pair));
    // A lost write or answer of one's own process means that the process died with it.
    happen(&mut pair, happening);
    if let Some((event, side)) = late {
        let delivered = match happening {
            Happening::LinkCut => false,
            Happening::SourceKilled => side != Side::Source,
            Happening::TargetKilled => side != Side::Target,
            Happening::BothKilled => false,
            Happening::Cancel => true,
        };
        if delivered {
            pair.later(Duration::from_millis(1), event);
        }
    }
    pair.run();
    let waited = !pair.source.running && !pair.target.running;
    pair.heal();
    pair.assert_one_runs();
    let outcome = if pair.source.running {
        if pair.cold_source { "cold restart at the source" } else { "source runs on" }
    } else if pair.cold_target {
        "cold restart at the target"
    } else if waited {
        "waits for the link, then target runs"
    } else {
        "target runs"
    };
    // What is lost takes the link with it, so that is what happened besides a cancel.
    let column = if fate == Fate::Lost && happening == Happening::Cancel { Happening::LinkCut } else { happening };
    let expected = &table.get(&row).unwrap_or_else(|| panic!("{case}: no row for {row:?}"))[&column];
    let early = expected == "waits for the link, then target runs" && outcome == "target runs";
    assert!(outcome == expected || early, "{case}, row {row:?}: {outcome}, and the table says {expected}");
    Some(row)
}

/// Lets the next event meet its fate; what is delayed is handed back with the side that would take it. `None`: this event is
/// not a message, so this fate does not apply to it.
fn meet(pair: &mut Pair, fate: Fate) -> Option<Option<(Event, Side)>> {
    let Some(((at, _), event)) = pair.events.pop_first() else { return Some(None) };
    pair.now = pair.now.max(at);
    let copy = match &event {
        Event::ToSource(bytes) => Some((Event::ToSource(bytes.clone()), Side::Source)),
        Event::ToTarget(bytes) => Some((Event::ToTarget(bytes.clone()), Side::Target)),
        _ => None,
    };
    match (fate, copy) {
        (Fate::Arrives, _) => pair.happen(event),
        (Fate::Lost, Some(_)) => {}
        (Fate::Delayed, Some(copy)) => return Some(Some(copy)),
        (Fate::Doubled, Some((copy, _))) => {
            pair.happen(event);
            pair.happen(copy);
        }
        (_, None) => return None,
    }
    // A connection never loses one message and brings the next: what is lost takes the link with it.
    if fate == Fate::Lost {
        pair.cut("lost a message");
    }
    Some(None)
}

fn happen(pair: &mut Pair, happening: Happening) {
    match happening {
        Happening::SourceKilled => pair.kill(Side::Source),
        Happening::TargetKilled => pair.kill(Side::Target),
        Happening::BothKilled => {
            pair.kill(Side::Source);
            pair.kill(Side::Target);
        }
        Happening::LinkCut => pair.cut("cut by the test"),
        Happening::Cancel => pair.later(Duration::ZERO, Event::Source(SourceInput::Cancel)),
    }
}

fn source_state(pair: &Pair) -> String {
    match last(&pair.source.ledger).unwrap().right {
        Right::Holding if pair.source.writing => "granting",
        Right::Holding => "holding",
        _ => "granted",
    }
    .into()
}

fn target_state(pair: &Pair) -> String {
    match (last(&pair.target.ledger).map(|record| record.right), pair.target.writing) {
        (None, false) => "nothing",
        (None, true) => "preparing",
        (Some(Right::Prepared), false) => "prepared",
        (Some(Right::Prepared), true) => "starting",
        (Some(Right::Running), _) => "running",
        (other, _) => panic!("{other:?}"),
    }
    .into()
}

fn count_steps() -> usize {
    let mut pair = Pair::new(Plan::tiny());
    let mut steps = 0;
    while pair.source.report.is_none() {
        assert!(pair.step(), "the undisturbed handover ends");
        steps += 1;
    }
    pair.assert_moved();
    steps
}

type Table = BTreeMap<(String, String), BTreeMap<Happening, String>>;

fn read_table() -> Table {
    let rows = TABLE.lines().skip_while(|line| !line.starts_with("| source | target | source killed")).skip(2);
    let rows: Table = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<String> = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            let outcomes = HAPPENINGS.into_iter().zip(cells[2..].iter().cloned()).collect();
            ((cells[0].clone(), cells[1].clone()), outcomes)
        })
        .collect();
    assert_eq!(rows.len(), 7, "the table of docs/formats/handover.md has another form");
    rows
}
