//! Lives, checked in every order of events (stateright): a host that has a VM and moves it, a host that it is sent to, each with the engine of
//! [`super`] and a VMM with a ledger that is docs/formats/handover.md cut down to what decides who runs. Whatever may go wrong goes wrong between any
//! two steps: VMMs and agents are killed, VMMs hang, guests do not listen, moves fail, the target loses its power and is declared dead.

use std::collections::BTreeSet;

use rebec_book::{Key, key::Name};
use rebec_migrate::ledger::Right;
use rebec_vmm_api::{Outcome, control::VmState};
use stateright::{Checker, Model, Property};

use super::*;

const SOURCE: usize = 0;
const TARGET: usize = 1;

/// How often what may happen: moves, stops, starts, deaths of VMMs, of agents, of the target, hung VMMs, deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Budget {
    moves: u8,
    stops: u8,
    starts: u8,
    vmms: u8,
    agents: u8,
    target: u8,
    hangs: u8,
    deadlines: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    hosts: [Host; 2],
    /// The job that moves the VM, and whether its streams are open.
    moves: bool,
    is_open: bool,
    is_declared_dead: bool,
    left: Budget,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Host {
    /// None where its agent, or the VM, is not there.
    life: Option<Life>,
    now: Duration,
    kept: Option<Durable>,
    /// Whom the book says that it sends the VM to.
    said_to: Option<Key>,
    ledger: Option<(Right, u64)>,
    vmm: Option<Vmm>,
    /// How a VMM ended that its agent has not seen end.
    ended: Option<Option<i32>>,
    work: BTreeSet<Work>,
    has_no_power: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Vmm {
    state: VmStateOf,
    hangs: bool,
}

/// The states of a VMM that matter here, in an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum VmStateOf {
    Running,
    Incoming,
    Waiting,
    Moved,
}

/// What an agent has been told to do and has not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Work {
    Boot,
    WaitForIt,
    Press,
    StopVmm,
    Kill,
    ReadLedger,
    Bring,
    GiveBack,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Action {
    Stop {
        patience: bool,
    },
    Run,
    Depart,
    Offer,
    Connect,
    /// The move's own steps, between the two VMMs.
    Prepare,
    Grant,
    Take,
    Confirm,
    JobEnds,
    JobFails,
    Do(usize, Work),
    Fail(usize, Work),
    SeeEnd(usize),
    Look(usize),
    Tick(usize),
    VmmDies(usize),
    VmmHangs(usize),
    AgentDies(usize),
    AgentStarts(usize),
    PowerIsLost,
    DeclareDead,
    HearOfDeath,
    HearThatNobodySends,
}

fn key(host: usize) -> Key {
    Name([u8::try_from(host).unwrap() + 1; 32])
}

impl Host {
    fn hears(&mut self, input: Input) -> Result<(), Refused> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let heard = life.handle(self.now, input);
        self.obey();
        heard
    }

    /// Writes what is to be kept, and notes what is to be done.
    fn obey(&mut self) {
        let Some(life) = &mut self.life else { return };
        while let Some(output) = life.poll_output() {
            let work = match output {
                Output::Keep { durable, .. } => {
                    self.kept = Some(durable);
                    continue;
                }
                Output::Say => {
                    self.said_to = life.word().to;
                    continue;
                }
                Output::AskKeeper => continue,
                Output::Remove => {
                    let said_to = self.said_to;
                    *self = Self { now: self.now, said_to, ..Self::default() };
                    return;
                }
                Output::StartVmm(How::Boot) => Work::Boot,
                Output::StartVmm(How::Arrive) => Work::WaitForIt,
                Output::PressPower => Work::Press,
                Output::StopVmm => Work::StopVmm,
                Output::Kill(_) => Work::Kill,
                Output::ReadLedger => Work::ReadLedger,
                Output::Bring => Work::Bring,
                Output::GiveBack => Work::GiveBack,
            };
            self.work.insert(work);
        }
    }

    fn runs(&self) -> bool {
        self.vmm.as_ref().is_some_and(|vmm| vmm.state == VmStateOf::Running)
    }

    fn vmm_is(&self, state: VmStateOf) -> bool {
        self.vmm.as_ref().is_some_and(|vmm| vmm.state == state && !vmm.hangs)
    }

    fn holds(&self, right: Right) -> bool {
        self.ledger.is_some_and(|(last, _)| last == right)
    }

    fn vmm_ends(&mut self, code: Option<i32>) {
        if self.vmm.take().is_some() && self.life.is_some() {
            self.ended = Some(code);
        }
    }

    /// A VMM begins, as its ledger says.
    fn begins(&mut self, how: Work) {
        let epoch = self.kept.map_or(1, |kept| kept.epoch);
        let state = match (how, self.ledger) {
            (Work::Boot, None) => {
                self.ledger = Some((Right::Holding, epoch));
                VmStateOf::Running
            }
            (Work::Boot, Some((Right::Holding | Right::Running, _))) => VmStateOf::Running,
            (Work::Boot, Some((Right::Granted, _))) => VmStateOf::Waiting,
            (_, ledger) => {
                self.ledger = ledger.map(|(_, epoch)| (Right::Released, epoch));
                VmStateOf::Incoming
            }
        };
        self.vmm = Some(Vmm { state, hangs: false });
    }
}

impl State {
    fn act(&mut self, action: &Action) -> Option<()> {
        match *action {
            Action::Stop { patience } => {
                self.left.stops -= 1;
                let patience = if patience { PATIENCE } else { Duration::ZERO };
                self.hosts[SOURCE].hears(Input::Want(Goal::Stop { patience })).ok()?;
            }
            Action::Run => {
                self.left.starts -= 1;
                self.hosts[SOURCE].hears(Input::Want(Goal::Run { reason: None })).ok()?;
            }
            Action::Depart => {
                self.left.moves -= 1;
                self.hosts[SOURCE].hears(Input::Want(Goal::Depart { to: key(TARGET) })).ok()?;
                self.moves = true;
            }
            Action::Offer => {
                let epoch = self.hosts[SOURCE].kept?.epoch + 1;
                let target = &mut self.hosts[TARGET];
                if target.life.is_none() {
                    let durable = Durable { want: Want::Arriving, epoch, from: Some(key(SOURCE)), to: None, granting: None };
                    (target.life, target.kept) = (Some(Life::new(durable)), Some(durable));
                }
                target.hears(Input::Want(Goal::Arrive { from: key(SOURCE), epoch })).ok()?;
            }
            Action::Connect => {
                self.hosts[SOURCE].hears(Input::Want(Goal::SetOut)).ok()?;
                self.is_open = true;
                self.hosts[TARGET].hears(Input::StreamBegan).ok()?;
            }
            Action::Prepare => {
                let epoch = self.hosts[SOURCE].ledger?.1 + 1;
                self.hosts[TARGET].ledger = Some((Right::Prepared, epoch));
            }
            Action::Grant => {
                let source = &mut self.hosts[SOURCE];
                source.ledger = Some((Right::Granted, source.ledger?.1 + 1));
                source.vmm = Some(Vmm { state: VmStateOf::Waiting, hangs: false });
            }
            Action::Take => {
                let target = &mut self.hosts[TARGET];
                target.ledger = Some((Right::Running, target.ledger?.1));
                target.vmm = Some(Vmm { state: VmStateOf::Running, hangs: false });
            }
            Action::Confirm => self.hosts[SOURCE].vmm = Some(Vmm { state: VmStateOf::Moved, hangs: false }),
            Action::JobEnds => self.job_ends(self.hosts[SOURCE].report()),
            Action::JobFails => self.job_ends(None),
            Action::Do(host, work) => self.does(host, work),
            Action::Fail(host, work) => self.fails(host, work),
            Action::SeeEnd(host) => {
                let host = &mut self.hosts[host];
                let ended = Ended { code: host.ended.take()?, how: "it ended".to_owned(), right: Ok(host.ledger) };
                host.hears(Input::Ended(ended)).ok()?;
            }
            Action::Look(host) => self.hosts[host].looks(),
            Action::Tick(host) => {
                self.left.deadlines -= 1;
                let host = &mut self.hosts[host];
                // However late: what an offer waits for is over too.
                host.now = host.life.as_ref()?.next_deadline()?.max(host.now + OFFER_TIME + OFFER_LOOK);
                host.life.as_mut()?.tick(host.now);
                host.obey();
            }
            Action::VmmDies(host) => {
                self.left.vmms -= 1;
                self.cut();
                self.hosts[host].vmm_ends(None);
            }
            Action::VmmHangs(host) => {
                self.left.hangs -= 1;
                self.hosts[host].vmm.as_mut()?.hangs = true;
            }
            Action::AgentDies(host) => {
                self.left.agents -= 1;
                self.agent_dies(host);
            }
            Action::AgentStarts(host) => {
                let host = &mut self.hosts[host];
                host.life = Some(Life::found(host.now, host.kept?, "it had ended".to_owned()));
                if host.vmm.is_some() {
                    host.hears(Input::Adopted(7)).ok()?;
                }
            }
            Action::PowerIsLost => {
                self.left.target -= 1;
                self.agent_dies(TARGET);
                (self.hosts[TARGET].vmm, self.hosts[TARGET].has_no_power) = (None, true);
            }
            Action::DeclareDead => self.is_declared_dead = true,
            Action::HearOfDeath => self.hosts[SOURCE].hears(Input::DeclaredDead(key(TARGET))).ok()?,
            Action::HearThatNobodySends => self.hosts[TARGET].hears(Input::NotSent).ok()?,
        }
        Some(())
    }

    /// The streams of the move end.
    fn cut(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.hosts[TARGET].hears(Input::StreamEnded).unwrap();
        }
    }

    fn agent_dies(&mut self, host: usize) {
        self.cut();
        self.moves &= host != SOURCE;
        let host = &mut self.hosts[host];
        (host.life, host.ended, host.work) = (None, None, BTreeSet::new());
    }

    fn job_ends(&mut self, outcome: Option<Outcome>) {
        self.cut();
        self.moves = false;
        self.hosts[SOURCE].hears(Input::Moved { outcome, why: "it waits".to_owned() }).unwrap();
    }

    fn does(&mut self, at: usize, work: Work) {
        let host = &mut self.hosts[at];
        host.work.remove(&work);
        let hangs = host.vmm.as_ref().is_some_and(|vmm| vmm.hangs);
        match work {
            Work::Boot | Work::WaitForIt => {
                host.begins(work);
                host.hears(Input::Started).unwrap();
            }
            Work::Press | Work::StopVmm if hangs => {}
            Work::Press | Work::StopVmm => host.vmm_ends(Some(0)),
            Work::Kill => host.vmm_ends(None),
            Work::ReadLedger => {
                let right = Ok(host.ledger);
                host.hears(Input::Ledger(right)).unwrap();
            }
            Work::Bring => {
                self.bring();
                self.job_ends(self.hosts[SOURCE].report());
            }
            Work::GiveBack => {
                if host.vmm_is(VmStateOf::Waiting) {
                    host.goes_on();
                }
                self.job_ends(self.hosts[SOURCE].report());
            }
        }
    }

    fn fails(&mut self, at: usize, work: Work) {
        let host = &mut self.hosts[at];
        host.work.remove(&work);
        match work {
            Work::Boot | Work::WaitForIt => host.hears(Input::NotStarted("no memory".to_owned())).unwrap(),
            Work::Press => host.hears(Input::NotPressed("it does not listen".to_owned())).unwrap(),
            _ => self.job_ends(None),
        }
    }

    /// The two VMMs meet again, and the one step that is missing follows.
    fn bring(&mut self) {
        let [source, target] = &mut self.hosts;
        let granted = source.vmm_is(VmStateOf::Waiting).then_some(source.ledger).flatten();
        let is_let_in = target.life.as_ref().is_some_and(|life| !life.is_leaving());
        let (Some((Right::Granted, epoch)), Some(vmm), true) = (granted, &mut target.vmm, is_let_in) else { return };
        match target.ledger {
            Some((Right::Prepared, at)) if at == epoch => {
                target.ledger = Some((Right::Running, epoch));
                (vmm.state, source.vmm) = (VmStateOf::Running, Some(Vmm { state: VmStateOf::Moved, hangs: false }));
            }
            Some((Right::Running, at)) if at == epoch => source.vmm = Some(Vmm { state: VmStateOf::Moved, hangs: false }),
            Some((Right::Released, at)) if at == epoch => source.goes_on(),
            _ => {}
        }
    }
}

impl Host {
    fn goes_on(&mut self) {
        self.ledger = self.ledger.map(|(_, epoch)| (Right::Holding, epoch + 1));
        self.vmm = Some(Vmm { state: VmStateOf::Running, hangs: false });
    }

    fn report(&self) -> Option<Outcome> {
        Some(match self.vmm.as_ref()?.state {
            VmStateOf::Moved => Outcome::Moved,
            VmStateOf::Waiting => Outcome::Waiting,
            VmStateOf::Running | VmStateOf::Incoming => Outcome::Failed,
        })
    }

    fn looks(&mut self) {
        let (Some(life), Some(vmm)) = (&self.life, &self.vmm) else { return };
        let state = match vmm.state {
            VmStateOf::Running => VmState::Running,
            VmStateOf::Incoming => VmState::Incoming,
            VmStateOf::Waiting => VmState::Waiting,
            VmStateOf::Moved => VmState::Moved,
        };
        let epoch = self.ledger.map_or(0, |(right, epoch)| if right == Right::Granted { epoch - 1 } else { epoch });
        if let Some(vmm) = life.vmm() {
            self.hears(Input::Said(Said { vmm, state, epoch, pid: 7, unleased: None })).unwrap();
        }
    }

    /// Whether its life waits for nothing, or for what is sure to come.
    fn has_way_out(&self, moves: bool) -> bool {
        let Some(life) = &self.life else { return true };
        let rests = matches!(life.state, super::State::Stopped | super::State::Failed | super::State::Absent | super::State::Gone);
        let runs = matches!(life.state, super::State::Running { .. }) && (self.vmm.is_some() || self.ended.is_some());
        let departs = matches!(life.state, super::State::Departing { .. }) && moves;
        rests || runs || departs || life.next_deadline().is_some() || !self.work.is_empty()
    }
}

impl Model for Budget {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let durable = Durable { want: Want::Stopped, epoch: 1, from: None, to: None, granting: None };
        let mut source = Host { life: Some(Life::new(durable)), kept: Some(durable), ..Host::default() };
        source.hears(Input::Want(Goal::Run { reason: None })).unwrap();
        vec![State { hosts: [source, Host::default()], moves: false, is_open: false, is_declared_dead: false, left: *self }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let State { hosts: [source, target], moves, is_open, is_declared_dead, left } = state;
        let mut may = |when: bool, action| actions.extend(when.then_some(action));
        may(left.stops > 0, Action::Stop { patience: true });
        may(left.stops > 0, Action::Stop { patience: false });
        may(left.starts > 0, Action::Run);
        may(left.moves > 0, Action::Depart);
        may(*moves && !target.has_no_power && (target.kept.is_none() || target.life.is_some()), Action::Offer);
        let is_let_in = target.life.as_ref().is_some_and(|life| matches!(life.state, super::State::Arriving { .. }));
        let sets_out = source.life.as_ref().is_some_and(|life| matches!(life.state, super::State::Departing { is_begun: false, .. }));
        may(*moves && sets_out && source.vmm.is_some() && is_let_in && target.vmm_is(VmStateOf::Incoming), Action::Connect);
        let is_free = target.ledger.is_none_or(|(right, _)| right == Right::Released);
        let waits = *is_open && target.vmm_is(VmStateOf::Incoming);
        may(waits && source.vmm_is(VmStateOf::Running) && is_free, Action::Prepare);
        let [at, next] = [source.ledger, target.ledger].map(|last| last.map_or(0, |last| last.1));
        let is_prepared = target.holds(Right::Prepared);
        may(waits && source.vmm_is(VmStateOf::Running) && is_prepared && next == at + 1, Action::Grant);
        may(waits && source.vmm_is(VmStateOf::Waiting) && is_prepared && next == at, Action::Take);
        may(*is_open && source.vmm_is(VmStateOf::Waiting) && target.vmm_is(VmStateOf::Running) && next == at, Action::Confirm);
        may(*moves, Action::JobEnds);
        may(*moves, Action::JobFails);
        for (at, host) in state.hosts.iter().enumerate() {
            for work in &host.work {
                may(true, Action::Do(at, *work));
                may(!matches!(work, Work::StopVmm | Work::Kill | Work::ReadLedger), Action::Fail(at, *work));
            }
            may(host.ended.is_some(), Action::SeeEnd(at));
            may(host.vmm.as_ref().is_some_and(|vmm| !vmm.hangs), Action::Look(at));
            may(left.deadlines > 0 && host.life.as_ref().is_some_and(|life| life.next_deadline().is_some()), Action::Tick(at));
            may(left.vmms > 0 && host.vmm.is_some(), Action::VmmDies(at));
            may(left.hangs > 0 && host.vmm.is_some(), Action::VmmHangs(at));
            may(left.agents > 0 && host.life.is_some(), Action::AgentDies(at));
            may(host.life.is_none() && host.kept.is_some() && !host.has_no_power, Action::AgentStarts(at));
        }
        may(left.target > 0 && target.kept.is_some(), Action::PowerIsLost);
        may(target.has_no_power && !is_declared_dead, Action::DeclareDead);
        may(*is_declared_dead, Action::HearOfDeath);
        may(source.said_to.is_none() && target.life.is_some(), Action::HearThatNobodySends);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        next.act(&action)?;
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two run", |_, state: &State| state.hosts.iter().filter(|host| host.runs()).count() <= 1),
            Property::always("never lost", |_, state: &State| {
                let [source, target] = &state.hosts;
                // One that waits for a target that has forgotten it would wait for ever.
                let waits = source.holds(Right::Granted) && (target.ledger.is_some() || target.has_no_power);
                let is_here = |host: &Host| host.holds(Right::Holding) || host.holds(Right::Running);
                source.ledger.is_none() && source.kept.is_some() || waits || state.hosts.iter().any(is_here)
            }),
            Property::always("every state has a way out", |_, state: &State| state.hosts.iter().all(|host| host.has_way_out(state.moves))),
            Property::sometimes("moved, and nothing is left", |_, state: &State| {
                state.hosts[TARGET].runs() && state.hosts[SOURCE].kept.is_none()
            }),
            Property::sometimes("goes on where the target let go", |_, state: &State| {
                state.hosts[SOURCE].runs()
                    && state.hosts[SOURCE].ledger.is_some_and(|last| last.1 == 3)
                    && !state.hosts[TARGET].has_no_power
            }),
            Property::sometimes("comes back from a target that is dead", |_, state: &State| {
                state.hosts[SOURCE].runs() && state.hosts[SOURCE].ledger.is_some_and(|last| last.1 == 3) && state.hosts[TARGET].has_no_power
            }),
            Property::sometimes("stopped though its VMM hung", |_, state: &State| {
                let source = &state.hosts[SOURCE];
                state.left.hangs == 0
                    && source.vmm.is_none()
                    && source.life.as_ref().is_some_and(|life| life.state == super::State::Stopped)
            }),
        ]
    }
}

const NOTHING: Budget = Budget { moves: 0, stops: 0, starts: 0, vmms: 0, agents: 0, target: 0, hangs: 0, deadlines: 0 };

/// Checks what must always hold, and that this is reached.
fn check(budget: Budget, reached: &[&'static str]) {
    let checker = budget.checker().threads(2).spawn_bfs().join();
    println!("{} states, {} of them unique", checker.state_count(), checker.unique_state_count());
    for property in ["never two run", "never lost", "every state has a way out"] {
        checker.assert_no_discovery(property);
    }
    for property in reached {
        checker.assert_any_discovery(property);
    }
}

#[test]
fn a_life_without_moves() {
    let budget = Budget { stops: 2, starts: 1, vmms: 1, agents: 1, hangs: 1, deadlines: 3, ..NOTHING };
    check(budget, &["stopped though its VMM hung"]);
}

#[test]
fn a_move_with_what_is_killed() {
    check(
        Budget { moves: 1, vmms: 1, agents: 1, deadlines: 2, ..NOTHING },
        &["moved, and nothing is left", "goes on where the target let go"],
    );
}

#[test]
fn a_move_to_a_target_that_is_lost() {
    check(Budget { moves: 1, vmms: 1, target: 1, deadlines: 3, ..NOTHING }, &["comes back from a target that is dead"]);
}
