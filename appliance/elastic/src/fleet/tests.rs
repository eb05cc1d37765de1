//! Lives of nodes, and plans for worlds that are made up.

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fleet() -> Fleet {
    Fleet::new(Terms { name: "node".into(), own: 1, most: 8, boot: s(60), idle: s(30), silent: s(20) })
}

fn machines(names: &[&str]) -> Vec<Machine> {
    let machine = |host: &&str| Machine { host: (*host).into(), kind: if host.starts_with('a') { Kind::Own } else { Kind::Borrowed } };
    names.iter().map(machine).collect()
}

fn vm(name: &str, host: &str, state: VmState) -> Vm {
    Vm { name: name.into(), host: host.into(), state }
}

fn node(name: &str, state: NodeState) -> Node {
    Node { name: name.into(), state, drains: false, is_ours: false }
}

fn drained(name: &str, state: NodeState) -> Node {
    Node { drains: true, is_ours: true, ..node(name, state) }
}

fn steps(plan: &Plan<Step>) -> Vec<String> {
    let said = |step: &Step| match step {
        Step::Create { name, host, .. } => format!("create {name} at {host}"),
        Step::Drain(name) => format!("drain {name}"),
        Step::Resume(name) => format!("resume {name}"),
        Step::Down(name) => format!("down {name}"),
        Step::Forget(name) => format!("forget {name}"),
        Step::Remove(name) => format!("remove {name}"),
    };
    plan.steps.iter().map(|step| said(&step.what)).collect()
}

fn world(wanted: Option<u32>, hosts: &[&str], vms: &[Vm], nodes: &[Node]) -> World {
    World { wanted, machines: machines(hosts), vms: vms.to_vec(), nodes: Some(nodes.to_vec()) }
}

#[test]
fn a_queue_gets_nodes_on_own_machines_and_then_on_borrowed_ones() {
    let mut fleet = fleet();
    let plan = fleet.look(s(0), &world(Some(3), &["a1", "a2", "b1"], &[], &[]));
    // One machine of the own domain carries a node, whatever is wanted.
    assert_eq!(steps(&plan), ["create node-own-1 at a1", "create node-borrowed-1 at b1"]);
    assert_eq!(plan.refusals[0].reason, "1 more are wanted than there are machines for");
    let vms = [vm("node-own-1", "a1", VmState::Starting), vm("node-borrowed-1", "b1", VmState::Up)];
    assert_eq!(steps(&fleet.look(s(1), &world(Some(2), &["a1", "b1"], &vms, &[]))), [""; 0]);
    assert_eq!(steps(&fleet.look(s(2), &world(Some(3), &["a1", "b1", "b2"], &vms, &[]))), ["create node-borrowed-2 at b2"]);
    // Names of others are none of its business.
    let others = [vm("node-own-x", "b2", VmState::Down), vm("nodes-own-1", "b2", VmState::Down)];
    assert_eq!(steps(&fleet.look(s(3), &world(Some(0), &["b2"], &others, &[node("c1", NodeState::Down)]))), [""; 0]);
}

/// A node from its first second to its last, as the world goes on.
#[test]
fn a_node_lives_until_its_machine_is_called_back_and_its_job_has_ended() {
    let mut fleet = fleet();
    let name = "node-borrowed-1";
    let mut look = |at, hosts: &[&str], vms: &[Vm], nodes: &[Node]| steps(&fleet.look(s(at), &world(Some(1), hosts, vms, nodes)));
    assert_eq!(look(0, &["b1"], &[], &[]), ["create node-borrowed-1 at b1"]);
    assert_eq!(look(1, &["b1"], &[vm(name, "b1", VmState::Starting)], &[]), [""; 0]);
    assert_eq!(look(2, &["b1"], &[vm(name, "b1", VmState::Up)], &[]), [""; 0]);
    assert_eq!(look(3, &["b1"], &[vm(name, "b1", VmState::Up)], &[node(name, NodeState::Busy)]), [""; 0]);
    // Called back: its contract lets nothing come any more.
    assert_eq!(look(4, &[], &[vm(name, "b1", VmState::Up)], &[node(name, NodeState::Busy)]), ["drain node-borrowed-1"]);
    // Its broker has moved it home, and its job runs on there. It does not become a node of that machine.
    assert_eq!(look(5, &["a1"], &[vm(name, "a1", VmState::Up)], &[drained(name, NodeState::Busy)]), ["create node-own-1 at a1"]);
    let own = vm("node-own-1", "a1", VmState::Starting);
    assert_eq!(
        look(6, &["a1"], &[vm(name, "a1", VmState::Up), own.clone()], &[drained(name, NodeState::Idle)]),
        ["remove node-borrowed-1"]
    );
    assert_eq!(look(7, &["a1"], std::slice::from_ref(&own), &[drained(name, NodeState::Down)]), ["forget node-borrowed-1"]);
    assert_eq!(look(8, &["a1"], &[own], &[]), [""; 0]);
}

#[test]
fn what_is_idle_goes_borrowed_first_and_comes_back_if_it_is_wanted_again() {
    let mut fleet = fleet();
    let vms = [vm("node-own-1", "a1", VmState::Up), vm("node-borrowed-1", "b1", VmState::Up)];
    let idle = [node("node-own-1", NodeState::Idle), node("node-borrowed-1", NodeState::Idle)];
    let mut look = |at, wanted, nodes: &[Node]| steps(&fleet.look(s(at), &world(wanted, &["a1", "b1"], &vms, nodes)));
    assert_eq!(look(0, Some(1), &idle), [""; 0]);
    assert_eq!(look(29, Some(1), &idle), [""; 0]);
    assert_eq!(look(30, Some(1), &idle), ["drain node-borrowed-1"]);
    // Not known is not nothing.
    assert_eq!(look(31, None, &idle), [""; 0]);
    let draining = [idle[0].clone(), drained("node-borrowed-1", NodeState::Idle)];
    assert_eq!(look(32, Some(1), &draining), ["remove node-borrowed-1"]);
    assert_eq!(look(33, Some(2), &draining), ["resume node-borrowed-1"]);
    // A job has come between: it is not idle, and stays.
    assert_eq!(look(34, Some(0), &[node("node-own-1", NodeState::Busy), node("node-borrowed-1", NodeState::Busy)]), [""; 0]);
    // An administrator's word stands.
    let theirs = [idle[0].clone(), Node { is_ours: false, ..drained("node-borrowed-1", NodeState::Idle) }];
    assert_eq!(look(35, Some(2), &theirs), [""; 0]);
}

#[test]
fn what_fails_ends_in_a_settled_state() {
    let mut fleet = fleet();
    let name = "node-borrowed-1";
    let mut look = |at, vms: &[Vm], nodes: &[Node]| {
        let plan = fleet.look(s(at), &world(Some(1), &["b1"], vms, nodes));
        (steps(&plan), plan.refusals.into_iter().map(|no| no.reason).collect::<Vec<_>>().join("; "))
    };
    // It starts, and the scheduler never hears of it: it goes, and its host is left alone for a while.
    look(0, &[vm(name, "b1", VmState::Up)], &[]);
    assert_eq!(look(60, &[vm(name, "b1", VmState::Up)], &[]).0, ["remove node-borrowed-1"]);
    assert_eq!(look(61, &[], &[]), (vec![], "a node failed there; again in 14 s; 1 more are wanted than there are machines for".into()));
    assert_eq!(look(75, &[], &[]).0, ["create node-borrowed-1 at b1"]);
    // Its VM ends by itself: its job is queued again before the VM goes.
    assert_eq!(look(80, &[vm(name, "b1", VmState::Down)], &[node(name, NodeState::Busy)]).0, ["down node-borrowed-1"]);
    assert_eq!(look(81, &[vm(name, "b1", VmState::Down)], &[node(name, NodeState::Down)]).0, ["remove node-borrowed-1"]);
    // Somebody removed its VM.
    assert_eq!(look(90, &[], &[node(name, NodeState::Busy)]).0, ["down node-borrowed-1", "create node-borrowed-2 at b1"]);
    assert_eq!(look(91, &[], &[node(name, NodeState::Down)]).0, ["forget node-borrowed-1", "create node-borrowed-2 at b1"]);
    // The guest runs and the scheduler does not hear it.
    look(100, &[vm(name, "b1", VmState::Up)], &[node(name, NodeState::Down)]);
    assert_eq!(look(119, &[vm(name, "b1", VmState::Up)], &[node(name, NodeState::Down)]).0, [""; 0]);
    assert_eq!(look(120, &[vm(name, "b1", VmState::Up)], &[node(name, NodeState::Down)]).0, ["remove node-borrowed-1"]);
    // Its host is lost: its jobs are queued again after a while, and the VM is left to its owner.
    look(130, &[vm(name, "b1", VmState::Lost)], &[node(name, NodeState::Busy)]);
    assert_eq!(look(150, &[vm(name, "b1", VmState::Lost)], &[node(name, NodeState::Busy)]).0, ["down node-borrowed-1"]);
    assert!(look(151, &[vm(name, "b1", VmState::Lost)], &[node(name, NodeState::Down)]).1.contains("declare-dead"));
    // The scheduler does not answer: nothing.
    let silent = World { nodes: None, ..world(Some(9), &["b1", "b2"], &[vm(name, "b1", VmState::Down)], &[]) };
    assert_eq!(steps(&fleet.look(s(200), &silent)), [""; 0]);
}

#[test]
fn a_host_on_which_nodes_fail_is_tried_later_and_later() {
    let mut fleet = fleet();
    let rests: Vec<u64> = (0..8)
        .map(|_| {
            fleet.failed(s(0), "b1");
            fleet.failed["b1"].1.as_secs()
        })
        .collect();
    assert_eq!(rests, [15, 30, 60, 120, 240, 480, 600, 600]);
}

/// Whatever world it looks at, no two nodes share a name or a machine, there are never more than may be, and only what is its own is touched.
#[test]
fn no_plan_makes_too_many_or_touches_what_is_not_its_own() {
    use proptest::prelude::*;
    let vm = (0u32..4, 0usize..5, prop::sample::select(vec![VmState::Starting, VmState::Up, VmState::Down, VmState::Lost]), any::<bool>());
    let node = (
        0u32..4,
        prop::sample::select(vec![NodeState::Idle, NodeState::Busy, NodeState::Down]),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    let hosts = ["a1", "a2", "b1", "b2", "c1"];
    let name = |number: u32, own: bool| match number {
        0 => "stranger".to_owned(),
        number => format!("node-{}-{number}", if own { "own" } else { "borrowed" }),
    };
    let look = (prop::option::of(0u32..12), prop::collection::vec(vm, 0..5), prop::option::of(prop::collection::vec(node, 0..5)), 0u64..90);
    proptest!(|(looks in prop::collection::vec(look, 1..8))| {
        let (mut fleet, mut now) = (fleet(), 0);
        for (wanted, vms, nodes, passed) in looks {
            now += passed;
            let mut vms: Vec<Vm> = vms.iter().map(|(number, host, state, own)| self::vm(&name(*number, *own), hosts[*host], *state)).collect();
            vms.sort_by(|a, b| a.name.cmp(&b.name));
            vms.dedup_by(|a, b| a.name == b.name);
            let nodes = nodes.map(|nodes| {
                let node = |(number, state, drains, is_ours, own): &(u32, NodeState, bool, bool, bool)| Node { name: name(*number, *own), state: *state, drains: *drains, is_ours: *is_ours };
                nodes.iter().map(node).collect()
            });
            let world = World { wanted, machines: machines(&["a1", "b1", "b2"]), vms, nodes };
            let plan = fleet.look(s(now), &world);
            let named: Vec<&str> = plan.steps.iter().map(|step| step.what.node()).collect();
            prop_assert!(named.iter().all(|name| kind_of("node", name).is_some()), "{:?}", plan);
            prop_assert_eq!(named.iter().collect::<BTreeSet<_>>().len(), named.len(), "{:?}", plan);
            let created: Vec<(&str, &str)> = plan.steps.iter().filter_map(|step| match &step.what {
                Step::Create { name, host, .. } => Some((name.as_str(), host.as_str())),
                _ => None,
            }).collect();
            prop_assert!(created.iter().all(|(name, _)| !world.vms.iter().any(|vm| vm.name == *name)), "{:?}", plan);
            prop_assert!(created.iter().all(|(name, host)| !world.vms.iter().any(|vm| vm.host == *host && kind_of("node", &vm.name) == kind_of("node", name))), "{:?}", plan);
            prop_assert!(created.len() <= wanted.unwrap_or(0).min(8) as usize);
            prop_assert!(world.nodes.is_some() || plan.steps.is_empty());
        }
    });
}
