//! Addresses of one LAN, checked in every order of events (stateright): a home that hands parts out and takes them back by the functions of [`super`]
//! and of `rebec_book::lan`, hosts that give addresses to their VMs, and whatever may go wrong between them.
//!
//! - Every version of the LAN's record may come to every host at any time, late ones too; a host keeps the latest that it has heard.
//! - Questions to take a part back come late and again and again; answers are those versions of the record.
//! - A host loses its power: it knows what was durable of the record, its marks and its VMs.

use std::{collections::BTreeSet, net::Ipv4Addr};

use rebec_book::{
    key::{Id, Key, Name},
    lan::{free_address, next_lease, take_back},
    record::LanBody,
};
use stateright::{Checker, Model, Property};

use super::{Mark, is_marked, is_settled, usable};

const LAN: Id = Name([7; 16]);
const HOME: Key = Name([9; 32]);

/// How far it is looked at, and how.
struct Lan {
    hosts: usize,
    /// Parts that are handed out in all, and power cuts.
    budget: [u8; 2],
    /// Whether hosts heed their marks, and whether what they know is durable before a mark goes.
    care: [bool; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    /// All versions of the record; the home has the last.
    versions: Vec<Vec<Lease>>,
    hosts: Vec<Host>,
    /// Host and tag.
    questions: BTreeSet<(usize, u64)>,
    left: [u8; 2],
}

/// Host, first address, count, tag.
type Lease = (u8, u32, u32, u64);

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Host {
    known: usize,
    durable: usize,
    marks: Vec<Mark>,
    /// The address of its one VM.
    vm: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    HandOut(usize),
    Hear(usize, usize),
    Flush(usize),
    CutPower(usize),
    Create(usize),
    Remove(usize),
    Give(usize, u64),
    Ask(usize, u64),
    TakeBack(usize, u64),
    Settle(usize, u64),
}

fn key(host: usize) -> Key {
    Name([u8::try_from(host).unwrap(); 32])
}

fn body(leases: &[Lease]) -> LanBody {
    let lease = |(host, first, count, tag): &Lease| rebec_book::record::RangeLease {
        host: Name([*host; 32]),
        first: (*first).into(),
        count: *count,
        tag: Some(*tag),
    };
    LanBody {
        nonce: Name([0; 16]),
        name: "lab".into(),
        vni: 7,
        network: Ipv4Addr::new(10, 0, 0, 0),
        prefix: 27,
        mtu: 1400,
        leases: leases.iter().map(lease).collect(),
        created: 0,
        domains: vec![],
        sealed: None,
        port_bits: None,
    }
}

fn leases(body: &LanBody) -> Vec<Lease> {
    body.leases.iter().map(|lease| (lease.host.0[0], lease.first.into(), lease.count, lease.tag.unwrap())).collect()
}

impl State {
    fn home(&self) -> LanBody {
        body(self.versions.last().unwrap())
    }

    fn write(&mut self, lan: &LanBody) {
        self.versions.push(leases(lan));
    }

    fn knows(&self, host: usize) -> LanBody {
        body(&self.versions[self.hosts[host].known])
    }
}

impl Lan {
    /// What a host may give out, as it knows the LAN.
    fn usable(&self, state: &State, host: usize) -> LanBody {
        let marks = if self.care[0] { &state.hosts[host].marks[..] } else { &[] };
        usable(LAN, state.knows(host), key(host), marks)
    }
}

impl Model for Lan {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { versions: vec![vec![]], hosts: vec![Host::default(); self.hosts], questions: BTreeSet::new(), left: self.budget }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.questions.iter().map(|(host, tag)| Action::TakeBack(*host, *tag)));
        for (at, host) in state.hosts.iter().enumerate() {
            if state.left[0] > 0 {
                actions.push(Action::HandOut(at));
            }
            actions.extend((host.known + 1..state.versions.len()).map(|version| Action::Hear(at, version)));
            if host.durable < host.known {
                actions.push(Action::Flush(at));
            }
            if state.left[1] > 0 {
                actions.push(Action::CutPower(at));
            }
            actions.push(if host.vm.is_some() { Action::Remove(at) } else { Action::Create(at) });
            let lan = state.knows(at);
            let own = lan.leases.iter().filter(|lease| lease.host == key(at) && !host.vm.is_some_and(|vm| lease.has(vm)));
            actions.extend(own.filter(|lease| !is_marked(&host.marks, LAN, lease)).map(|lease| Action::Give(at, lease.tag.unwrap())));
            for mark in &host.marks {
                actions.push(Action::Ask(at, mark.tag));
                if is_settled(mark, &key(at), host.known as u64, Some(&lan)) {
                    actions.push(Action::Settle(at, mark.tag));
                }
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::HandOut(host) => {
                let mut lan = state.home();
                let lease = next_lease(&lan, key(host), u64::from(self.budget[0] - state.left[0]))?;
                lan.leases.push(lease);
                next.left[0] -= 1;
                next.write(&lan);
            }
            Action::Hear(host, version) => next.hosts[host].known = version,
            Action::Flush(host) => next.hosts[host].durable = state.hosts[host].known,
            Action::CutPower(host) => {
                next.hosts[host].known = state.hosts[host].durable;
                next.left[1] -= 1;
            }
            Action::Create(host) => next.hosts[host].vm = free_address(&self.usable(state, host), key(host), &BTreeSet::new()),
            Action::Remove(host) => next.hosts[host].vm = None,
            Action::Give(host, tag) => {
                let lan = state.knows(host);
                let lease = lan.leases.iter().find(|lease| lease.tag == Some(tag))?;
                next.hosts[host].marks.extend(Mark::of(LAN, HOME, lease, state.hosts[host].known as u64));
                next.hosts[host].marks.sort();
            }
            Action::Ask(host, tag) => drop(next.questions.insert((host, tag))),
            Action::TakeBack(host, tag) => {
                let mut lan = state.home();
                if take_back(&mut lan, &key(host), &[tag]) {
                    next.write(&lan);
                }
            }
            Action::Settle(host, tag) => {
                if self.care[1] {
                    next.hosts[host].durable = state.hosts[host].known;
                }
                next.hosts[host].marks.retain(|mark| mark.tag != tag);
            }
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two have one address", |_, state: &State| {
                let vms: Vec<_> = state.hosts.iter().filter_map(|host| host.vm).collect();
                vms.iter().collect::<BTreeSet<_>>().len() == vms.len()
            }),
            Property::always("who has an address has it from the home", |_, state: &State| {
                let lan = state.home();
                let has = |host, vm| lan.leases.iter().any(|lease| lease.host == key(host) && lease.has(vm));
                state.hosts.iter().enumerate().all(|(at, host)| host.vm.is_none_or(|vm| has(at, vm)))
            }),
            Property::sometimes("another host has what was given back", |_, state: &State| {
                let first = Ipv4Addr::new(10, 0, 0, 8);
                state.hosts[1].vm == Some(first) && state.versions[1].first().is_some_and(|lease| (lease.0, lease.1) == (0, first.into()))
            }),
            Property::sometimes("a host has again what it gave back", |_, state: &State| {
                let had = |nth: usize| state.versions.get(nth).is_some_and(|leases| leases.first().is_some_and(|lease| lease.0 == 0));
                had(1) && !had(2) && had(3) && state.hosts[0].known >= 3 && state.hosts[0].vm.is_some()
            }),
        ]
    }
}

fn check(lan: Lan) -> impl Checker<Lan> {
    let checker = lan.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them unique", checker.state_count(), checker.unique_state_count());
    checker
}

#[test]
fn never_two_have_one_address() {
    check(Lan { hosts: 2, budget: [2, 1], care: [true, true] }).assert_properties();
}

#[test]
fn without_marks_two_have_one_address() {
    let checker = check(Lan { hosts: 2, budget: [2, 0], care: [false, true] });
    assert!(checker.discovery("never two have one address").is_some(), "marks are not looked at");
}

#[test]
fn two_have_one_address_where_a_mark_goes_before_the_record_is_durable() {
    let checker = check(Lan { hosts: 2, budget: [2, 1], care: [true, false] });
    assert!(checker.discovery("never two have one address").is_some(), "what a power cut takes is not looked at");
}
