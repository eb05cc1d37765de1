//! A target whose source falls silent, and one whose donors never come to an end: neither holds anything for ever.

use std::time::Duration;

use rebec_migrate::{
    MoveId, Target, TargetInput, TargetOutput, VmId,
    frame::FrameHead,
    index::Holder,
    message::{FromSource, Shape},
    page::Digest,
    unit::Space,
};

const S: fn(u64) -> Duration = Duration::from_secs;

fn offer() -> FromSource {
    let shape = Shape {
        vm: VmId([1; 16]),
        epoch: 1,
        memory_bytes: 1 << 20,
        vcpus: 1,
        nets: vec![],
        disks: vec![],
        cpu_model: vec![],
        memory_max_bytes: None,
    };
    FromSource::Offer { shape, key: [2; 32] }
}

fn outputs(target: &mut Target) -> Vec<TargetOutput> {
    std::iter::from_fn(|| target.poll_output()).collect()
}

fn built(holders: Vec<Holder>) -> TargetInput {
    TargetInput::Built { holders, ports: vec![], bases: vec![] }
}

fn ended(target: &mut Target) -> Option<String> {
    outputs(target).into_iter().find_map(|output| if let TargetOutput::Ended { reason } = output { Some(reason) } else { None })
}

#[test]
fn a_source_that_connects_and_says_nothing_is_left() {
    let mut target = Target::new(MoveId([3; 16]), 1);
    // Whoever waits for a VM may have waited for hours: the time begins with the connection.
    target.tick(S(5000));
    assert_eq!(target.next_deadline(), Some(S(5060)));
    target.tick(S(5059));
    assert_eq!(ended(&mut target), None);
    target.tick(S(5060));
    assert_eq!(ended(&mut target).unwrap(), "the source has sent nothing for 60 s");
}

#[test]
fn a_source_that_stops_sending_is_left_and_one_that_is_slow_is_not() {
    let mut target = Target::new(MoveId([3; 16]), 1);
    target.handle(S(0), TargetInput::Control(offer()));
    assert_eq!(target.next_deadline(), None, "the machine is built here");
    target.handle(S(100), built(vec![]));
    outputs(&mut target);
    for minute in 1..10 {
        let now = S(100 + minute * 59);
        target.tick(now);
        let head = FrameHead { space: Space::MEMORY, round: 0, sequence: minute - 1 };
        target.handle(now, TargetInput::Frame { stream: 0, head, entries: vec![] });
        target.handle(now, TargetInput::Applied { stream: 0, missed: vec![] });
        assert_eq!(ended(&mut target), None, "minute {minute}");
    }
    let silent = target.next_deadline().unwrap();
    target.tick(silent);
    assert!(ended(&mut target).is_some() && target.is_ended());
    assert_eq!(target.next_deadline(), None);
}

#[test]
fn donors_are_looked_at_for_a_minute_and_no_longer() {
    let mut target = Target::new(MoveId([3; 16]), 1);
    target.handle(S(0), TargetInput::Control(offer()));
    target.handle(S(1), built(vec![Holder::Donor(0), Holder::Donor(1)]));
    let mut asked = 0;
    loop {
        let all = outputs(&mut target);
        let Some(TargetOutput::Index { first, .. }) = all.iter().find(|output| matches!(output, TargetOutput::Index { .. })) else { break };
        asked += 1;
        // Slow, without an end, and the same content all over: the index never fills.
        let (next, found) = (Some(first + 4096), vec![(*first, Digest([9; 16]))]);
        target.handle(S(1 + asked * 5), TargetInput::Indexed { next, found });
    }
    assert_eq!(asked, 12);
    assert!(target.next_deadline().is_some(), "it is the source's turn");
}
