//! Steps, states and answers of schedulers: recorded, made up and hostile ones.

use proptest::prelude::*;

use super::*;

fn node(name: &str, state: NodeState, drains: bool, is_ours: bool) -> Node {
    Node { name: name.into(), state, drains, is_ours }
}

/// Recorded from `scontrol` of Debian 12 and 13: a node in the states that it goes through.
#[test]
fn nodes_of_slurm_are_read() {
    use NodeState::{Busy, Down, Idle};
    let (nodes, others) = slurm_nodes(include_str!("golden/nodes-24.11.txt"), "node");
    let expected = [
        node("node-borrowed-1", Busy, false, false),
        node("node-borrowed-2", Busy, true, true),
        node("node-borrowed-3", Idle, true, true),
        node("node-borrowed-4", Down, false, true),
    ];
    assert_eq!((nodes, others), (expected.to_vec(), 0));
    let (nodes, _) = slurm_nodes(include_str!("golden/nodes-22.05.txt"), "node");
    assert_eq!(nodes, [node("node-own-1", Idle, false, false), node("node-own-2", Idle, true, true)]);
    // Another's nodes are counted where they take jobs; what an administrator says is no word of this program.
    let text = "NodeName=c1 Arch=x State=IDLE Reason=x\nNodeName=c2 State=IDLE+DRAIN Reason=disk\nNodeName=c3 State=DOWN*\nNodeName=node-own-1 State=MIXED*+DRAIN Reason=a disk, see State=IDLE Reason=rebec: no\nNo nodes in the system\nNodeName=";
    assert_eq!(slurm_nodes(text, "node"), (vec![node("node-own-1", Down, true, false)], 1));
}

#[test]
fn steps_become_words_of_the_schedulers_own_commands() {
    let scheduler = |kind| Scheduler { kind, before: vec!["sudo".into()], time: Duration::from_secs(9), shape: Shape::default() };
    let words = |kind, step: Step| scheduler(kind).words(&step, "why not").map(|words| words.join("|"));
    let name = || "node-own-1".to_owned();
    let slurm = |step| words(Kind::Slurm, step).unwrap();
    assert_eq!(slurm(Step::Drain(name())), "sudo|scontrol|update|NodeName=node-own-1|State=DRAIN|Reason=rebec: why not");
    assert_eq!(slurm(Step::Resume(name())), "sudo|scontrol|update|NodeName=node-own-1|State=RESUME");
    assert_eq!(slurm(Step::Down(name())), "sudo|scontrol|update|NodeName=node-own-1|State=DOWN|Reason=rebec: why not");
    assert_eq!(slurm(Step::Forget(name())), "sudo|scontrol|delete|NodeName=node-own-1");
    assert_eq!(words(Kind::Slurm, Step::Remove(name())), None);
    let program = Kind::Program { queue: vec!["q".into()], hook: vec!["h".into(), "-x".into()] };
    assert_eq!(words(program, Step::Forget(name())).unwrap(), "h|-x|forget|node-own-1");
    assert_eq!(words(Kind::Condor, Step::Drain(name())), None);
}

#[test]
fn a_program_says_its_nodes_beside_its_queue() {
    let text = r#"{"queued": 1, "nodes": [{"name": "node-own-1", "state": "busy"}, {"name": "old", "state": "idle"}, {"name": "node-borrowed-7", "state": "drained"}]}"#;
    let expected = vec![node("node-own-1", NodeState::Busy, false, false), node("node-borrowed-7", NodeState::Idle, true, true)];
    assert_eq!(program_nodes(text, "node"), Ok((expected, 1)));
    for bad in [r#"{"nodes": 7}"#, r#"{"nodes": [{"name": "x"}]}"#, r#"{"nodes": [{"name": "x", "state": "odd"}]}"#] {
        assert!(program_nodes(bad, "node").unwrap_err().starts_with("`nodes`: "), "{bad}");
    }
    let asked = |script: &str| {
        let queue = ["sh", "-c", script].map(str::to_owned).to_vec();
        let (kind, time) = (Kind::Program { queue, hook: vec![] }, Duration::from_secs(30));
        let scheduler = Scheduler { kind, before: vec![], time, shape: Shape::default() };
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scheduler.ask("node"))
    };
    let answer = asked(r#"echo '{"queued": 2, "nodes": [{"name": "mine", "state": "idle"}]}'"#).unwrap();
    assert_eq!((answer.demand.queued, answer.others), (2, 1));
    assert_eq!(asked("echo nonsense").unwrap_err(), "sh: no JSON: expected ident at line 1 column 2");
}

proptest! {
    #[test]
    fn any_text_is_nodes_or_none(text in "(NodeName=[ -~]{0,40} State=[A-Z*+~]{0,30}[ -~\n]{0,60}){0,5}", other in ".{0,80}") {
        slurm_nodes(&text, "node");
        slurm_nodes(&other, "node");
        program_nodes(&other, "node").unwrap_or_default();
    }
}
