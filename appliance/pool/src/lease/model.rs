//! The lease, checked in every order of events (stateright): one keeper that runs the functions of [`super`], hosts whose VMMs and ledgers are
//! those of docs/formats/handover.md cut down to what decides who runs, and whatever may go wrong between them.
//!
//! - Messages are lost, late and out of order. The death of an agent is the loss of what it asks and hears: the lease is its VMM's.
//! - Hosts and the keeper lose their power at any time; the keeper keeps its charge, hosts their ledgers.
//! - One host's clock at a time lags behind the keeper's, by 1: no more than the margin. A clock that runs ahead only ends a lease early.

use std::{collections::BTreeSet, time::Duration};

use stateright::{Checker, Model, Property};

use super::{Ask, Charge, Promises, Refusal, Stance, Terms, grant, may_restart, promise};
use rebec_book::key::{Id, Key, Name};

const VM: Id = Name([7; 16]);
const LEASE: u64 = 2;

/// A pool and how far it is looked at.
struct Pool {
    hosts: usize,
    margin: u64,
    ends: u64,
    /// Moves, crashes of hosts, crashes of the keeper, restarts.
    budget: [u8; 4],
}

const MOVES: usize = 0;
const HOSTS: usize = 1;
const KEEPER: usize = 2;
const RESTARTS: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    now: u64,
    /// The host whose clock is one behind.
    lags: Option<usize>,
    charge: Option<Charge>,
    promises: Promises,
    copies: Vec<Option<Copy>>,
    wire: BTreeSet<Message>,
    left: [u8; 4],
}

/// What a host has of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Copy {
    epoch: u64,
    right: Right,
    /// End of its lease by the host's clock.
    until: u64,
    /// Whether it has had a promise at this epoch: without one no move begins.
    promised: bool,
    has_vmm: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Right {
    Holding,
    Granted,
    Prepared,
    Released,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Ask {
        host: usize,
        ask: Ask,
        sent: u64,
    },
    Promised {
        host: usize,
        epoch: u64,
        sent: u64,
    },
    Superseded {
        host: usize,
        epoch: u64,
    },
    Start {
        host: usize,
        epoch: u64,
    },
    /// Between the two sides of a move to this epoch.
    Prepared {
        from: usize,
        to: usize,
        epoch: u64,
    },
    Granted {
        from: usize,
        to: usize,
        epoch: u64,
    },
    Running {
        to: usize,
        epoch: u64,
    },
    Released {
        to: usize,
        epoch: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    /// Time passes; afterwards this host's clock lags.
    Tick(Option<usize>),
    Ask(usize),
    Deliver(Message),
    Lose(Message),
    Move {
        from: usize,
        to: usize,
    },
    Release {
        from: usize,
        to: usize,
    },
    CrashHost(usize),
    Boot(usize),
    CrashKeeper,
    Restart(usize),
}

impl Pool {
    fn terms(&self) -> Terms {
        Terms { lease: Duration::from_secs(LEASE), margin: Duration::from_secs(self.margin) }
    }

    fn deliver(&self, state: &mut State, message: Message) {
        let now = Duration::from_secs(state.now);
        match message {
            Message::Ask { host, ask, sent } => match promise(state.charge.as_ref(), key(host), ask) {
                Ok(charge) => {
                    state.charge = Some(charge);
                    state.promises.note(VM, now, self.terms());
                    state.wire.insert(Message::Promised { host, epoch: ask.epoch, sent });
                }
                Err(Refusal::Superseded { .. }) => drop(state.wire.insert(Message::Superseded { host, epoch: ask.epoch })),
                Err(Refusal::Unheard) => {}
            },
            Message::Promised { host, epoch, sent } => {
                if let Some(copy) = &mut state.copies[host] {
                    copy.until = copy.until.max(self.terms().ends(Duration::from_secs(sent)).as_secs());
                    copy.promised |= copy.epoch == epoch && copy.right == Right::Holding;
                }
            }
            Message::Superseded { host, epoch } => {
                state.copies[host].take_if(|copy| copy.epoch == epoch);
            }
            Message::Start { host, epoch } => {
                state.copies[host].get_or_insert(Copy { epoch, right: Right::Holding, until: 0, promised: false, has_vmm: true });
            }
            Message::Prepared { from, to, epoch } => {
                if let Some(copy) = live(state, to)
                    && (copy.right, copy.epoch) == (Right::Holding, epoch - 1)
                {
                    copy.right = Right::Granted;
                    state.wire.insert(Message::Granted { from: to, to: from, epoch });
                }
            }
            Message::Granted { from, to, epoch } => {
                if let Some(copy) = live(state, to)
                    && (copy.right, copy.epoch) == (Right::Prepared, epoch)
                {
                    copy.right = Right::Holding;
                    state.wire.insert(Message::Running { to: from, epoch });
                }
            }
            Message::Running { to, epoch } => {
                state.copies[to].take_if(|copy| (copy.right, copy.epoch) == (Right::Granted, epoch - 1));
            }
            Message::Released { to, epoch } => {
                if let Some(copy) = live(state, to)
                    && (copy.right, copy.epoch) == (Right::Granted, epoch - 1)
                {
                    *copy = Copy { epoch: epoch + 1, right: Right::Holding, promised: false, ..copy.clone() };
                }
            }
        }
    }

    /// Carries out what the state allows; what it does not changes nothing.
    fn act(&self, state: &mut State, action: Action) {
        let now = Duration::from_secs(state.now);
        match action {
            Action::Tick(lags) => {
                state.now += 1;
                state.lags = lags;
            }
            Action::Ask(host) => {
                let sent = clock(state, host);
                if let Some(copy) = live(state, host) {
                    let stance = if copy.right == Right::Prepared { Stance::Arrives } else { Stance::Runs };
                    let ask = Ask { epoch: copy.epoch, stance };
                    state.wire.insert(Message::Ask { host, ask, sent });
                }
            }
            Action::Deliver(message) => {
                state.wire.remove(&message);
                self.deliver(state, message);
            }
            Action::Lose(message) => drop(state.wire.remove(&message)),
            Action::Move { from, to } => {
                let epoch = state.copies[from].as_ref().map_or(0, |copy| copy.epoch + 1);
                state.copies[to] = Some(Copy { epoch, right: Right::Prepared, until: 0, promised: false, has_vmm: true });
                state.wire.insert(Message::Prepared { from: to, to: from, epoch });
                state.left[MOVES] -= 1;
            }
            Action::Release { from, to } => {
                if let Some(copy) = &mut state.copies[from] {
                    copy.right = Right::Released;
                    let epoch = copy.epoch;
                    state.wire.insert(Message::Released { to, epoch });
                }
            }
            Action::CrashHost(host) => {
                if let Some(copy) = &mut state.copies[host] {
                    *copy = Copy { until: 0, has_vmm: false, ..copy.clone() };
                }
                state.left[HOSTS] -= 1;
            }
            Action::Boot(host) => {
                if let Some(copy) = &mut state.copies[host] {
                    copy.has_vmm = true;
                }
            }
            Action::CrashKeeper => {
                state.promises = Promises::new(now, self.terms());
                state.left[KEEPER] -= 1;
            }
            Action::Restart(host) => {
                if let Some(charge) = &state.charge {
                    let granted = grant(charge, key(host));
                    state.wire.insert(Message::Start { host, epoch: granted.floor });
                    state.charge = Some(granted);
                    state.promises.note(VM, now, self.terms());
                    state.left[RESTARTS] -= 1;
                }
            }
        }
    }
}

impl Model for Pool {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut copies = vec![None; self.hosts];
        copies[0] = Some(Copy { epoch: 1, right: Right::Holding, until: 0, promised: false, has_vmm: true });
        let promises = Promises::new(Duration::ZERO, self.terms());
        let (lags, wire) = (None, BTreeSet::new());
        vec![State { now: 1, lags, charge: None, promises, copies, wire, left: self.budget }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.now < self.ends {
            actions.extend((0..self.hosts).map(Some).chain([None]).map(Action::Tick));
        }
        actions.extend(state.wire.iter().flat_map(|message| [Action::Deliver(*message), Action::Lose(*message)]));
        if state.left[KEEPER] > 0 {
            actions.push(Action::CrashKeeper);
        }
        let may_restart = |charge| may_restart(charge, &state.promises, VM, Duration::from_secs(state.now), self.terms());
        let restarts = state.left[RESTARTS] > 0 && state.charge.as_ref().is_some_and(may_restart);
        for host in 0..self.hosts {
            let others = || (0..self.hosts).filter(move |other| *other != host);
            let Some(copy) = &state.copies[host] else {
                actions.extend(restarts.then_some(Action::Restart(host)));
                continue;
            };
            if !copy.has_vmm {
                // Without memory, what was prepared is released.
                actions.push(Action::Boot(host));
                if copy.right == Right::Prepared {
                    actions.extend(others().map(|to| Action::Release { from: host, to }));
                }
                continue;
            }
            if state.left[HOSTS] > 0 {
                actions.push(Action::CrashHost(host));
            }
            let asks =
                |message: &Message| matches!(message, Message::Ask { host: of, .. } | Message::Promised { host: of, .. } if *of == host);
            if matches!(copy.right, Right::Holding | Right::Prepared) && !state.wire.iter().any(asks) {
                actions.push(Action::Ask(host));
            }
            if copy.right == Right::Prepared {
                actions.extend(others().map(|to| Action::Release { from: host, to }));
            }
            if state.left[MOVES] > 0 && copy.promised && runs(state, host) {
                let free = others().filter(|to| state.copies[*to].is_none());
                actions.extend(free.map(|to| Action::Move { from: host, to }));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        self.act(&mut next, action);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two run", |model: &Self, state| (0..model.hosts).filter(|host| runs(state, *host)).count() <= 1),
            Property::always("no copy is beyond what was promised", |_, state: &State| {
                let beyond = |charge: &Charge| state.copies.iter().flatten().any(|copy| copy.epoch > charge.reached);
                !state.charge.as_ref().is_some_and(beyond)
            }),
            Property::sometimes("started again elsewhere", |_, state: &State| is_started_elsewhere(state)),
            Property::sometimes("moved", |_, state: &State| runs(state, 1) && epoch(state, 1) == 2),
            Property::sometimes("goes on where a move failed", |_, state: &State| runs(state, 0) && epoch(state, 0) == 3),
            Property::sometimes("what came back is gone", |_, state: &State| is_started_elsewhere(state) && state.copies[0].is_none()),
        ]
    }
}

fn key(host: usize) -> Key {
    Name([u8::try_from(host).unwrap(); 32])
}

fn clock(state: &State, host: usize) -> u64 {
    state.now - u64::from(state.lags == Some(host))
}

/// The copy of a host whose VMM is there.
fn live(state: &mut State, host: usize) -> Option<&mut Copy> {
    state.copies[host].as_mut().filter(|copy| copy.has_vmm)
}

fn epoch(state: &State, host: usize) -> u64 {
    state.copies[host].as_ref().map_or(0, |copy| copy.epoch)
}

/// Whether the guest executes instructions there.
fn runs(state: &State, host: usize) -> bool {
    state.copies[host].as_ref().is_some_and(|copy| copy.has_vmm && copy.right == Right::Holding && clock(state, host) < copy.until)
}

fn is_started_elsewhere(state: &State) -> bool {
    let floor = state.charge.as_ref().map_or(1, |charge| charge.floor);
    floor > 1 && (1..state.copies.len()).any(|host| runs(state, host) && epoch(state, host) >= floor)
}

fn check(pool: Pool) -> impl Checker<Pool> {
    let checker = pool.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them unique", checker.state_count(), checker.unique_state_count());
    checker
}

#[test]
fn never_two_run_when_power_is_lost() {
    let checker = check(Pool { hosts: 2, margin: 1, ends: 6, budget: [0, 1, 1, 1] });
    checker.assert_no_discovery("never two run");
    checker.assert_no_discovery("no copy is beyond what was promised");
    checker.assert_any_discovery("started again elsewhere");
    checker.assert_any_discovery("what came back is gone");
}

#[test]
fn never_two_run_during_a_move() {
    check(Pool { hosts: 2, margin: 1, ends: 5, budget: [1, 0, 0, 1] }).assert_properties();
}

#[test]
fn without_the_margin_two_run() {
    let checker = check(Pool { hosts: 2, margin: 0, ends: 6, budget: [0, 0, 0, 1] });
    assert!(checker.discovery("never two run").is_some(), "clocks that disagree go unnoticed");
}
