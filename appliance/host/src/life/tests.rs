//! One life at a time, told from its beginning.

use rebec_book::key::Name;
use rebec_book::{Key, record::SeenState};
use rebec_migrate::ledger::Right;
use rebec_pool::lease::Stance;
use rebec_vmm_api::{Outcome, control::VmState};

use super::{end::RESTARTS_MAX, *};

const OTHER: Key = Name([2; 32]);
const THIRD: Key = Name([3; 32]);

/// A life, and its clock.
struct Told {
    life: Life,
    now: Duration,
    kept: Vec<(Durable, Vec<Grant>)>,
}

impl Told {
    fn begins(want: Want) -> Self {
        let durable = Durable { want, epoch: 1, from: None, to: None, granting: None };
        Self { life: Life::new(durable), now: Duration::from_secs(1000), kept: vec![] }
    }

    fn runs() -> Self {
        let mut told = Self::begins(Want::Stopped);
        told.hears(Input::Want(Goal::Run { reason: None })).unwrap();
        told.hears(Input::Started).unwrap();
        told.says(VmState::Running, 1);
        told.work();
        told
    }

    fn hears(&mut self, input: Input) -> Result<(), Refused> {
        self.life.handle(self.now, input)
    }

    fn says(&mut self, state: VmState, epoch: u64) {
        let said = Said { vmm: self.life.vmm().unwrap(), state, epoch, pid: 77, unleased: None };
        self.hears(Input::Said(said)).unwrap();
    }

    fn ends(&mut self, code: Option<i32>, right: Option<Right>) {
        let right = Ok(right.map(|right| (right, self.life.durable.epoch)));
        self.hears(Input::Ended(Ended { code, how: "its VMM ended".to_owned(), right })).unwrap();
    }

    /// What is to be done, but for what is to be kept and said.
    fn work(&mut self) -> Vec<Output> {
        let mut work = vec![];
        while let Some(output) = self.life.poll_output() {
            match output {
                Output::Say => {}
                Output::Keep { durable, grants } => self.kept.push((durable, grants)),
                other => work.push(other),
            }
        }
        work
    }

    /// Until the next deadline; how long that was.
    fn waits(&mut self) -> Duration {
        let deadline = self.life.next_deadline().expect("nothing is waited for");
        let waited = deadline.saturating_sub(self.now);
        self.now = self.now.max(deadline);
        self.life.tick(self.now);
        waited
    }

    fn state(&self) -> SeenState {
        self.life.word().state
    }

    fn reason(&self) -> &str {
        self.life.word().reason.as_deref().unwrap_or_default()
    }
}

#[test]
fn what_runs_is_not_started_twice_and_says_so() {
    let mut told = Told::begins(Want::Stopped);
    told.hears(Input::Want(Goal::Run { reason: Some("it was wanted".to_owned()) })).unwrap();
    assert_eq!(told.work(), [Output::StartVmm(How::Boot)]);
    assert_eq!((told.kept[0].0.want, told.state(), told.reason()), (Want::Running, SeenState::Starting, "it was wanted"));
    assert_eq!(told.hears(Input::Want(Goal::Run { reason: None })), Err(Refused::RunsAlready));
    assert_eq!(told.hears(Input::Want(Goal::Stop { patience: PATIENCE })), Err(Refused::Busy));
    told.hears(Input::Started).unwrap();
    assert!(told.life.is_starting());
    told.says(VmState::Running, 1);
    assert!(!told.life.is_starting());
    assert_eq!((told.life.word().pid, told.reason()), (77, "it was wanted"));
    assert_eq!(told.hears(Input::Want(Goal::Remove)), Err(Refused::Runs));
    // A word of an earlier VMM is nobody's.
    told.hears(Input::Said(Said { vmm: 0, state: VmState::Moved, epoch: 9, pid: 1, unleased: None })).unwrap();
    assert_eq!((told.state(), told.life.durable().epoch), (SeenState::Running, 1));
}

#[test]
fn a_vmm_that_cannot_start_leaves_a_vm_that_can_be_started_or_removed() {
    let mut told = Told::begins(Want::Stopped);
    told.hears(Input::Want(Goal::Run { reason: None })).unwrap();
    told.hears(Input::NotStarted("no memory".to_owned())).unwrap();
    assert_eq!((told.state(), told.reason(), told.life.durable().want), (SeenState::Failed, "no memory", Want::Stopped));
    told.work();
    told.hears(Input::Want(Goal::Remove)).unwrap();
    assert_eq!(told.work(), [Output::Remove]);
}

#[test]
fn what_was_tried_too_early_is_tried_again_until_it_starts() {
    let durable = Durable { want: Want::Running, epoch: 1, from: None, to: None, granting: None };
    let now = Duration::from_secs(1000);
    let mut told = Told { life: Life::found(now, durable, "its VMM ended when the machine stopped".to_owned()), now, kept: vec![] };
    told.hears(Input::Heard).unwrap();
    told.hears(Input::Ledger(Ok(Some((Right::Running, 1))))).unwrap();
    assert_eq!(told.work(), [Output::ReadLedger, Output::StartVmm(How::Boot)]);
    let mut waits = vec![];
    for _ in 0..20 {
        told.hears(Input::NotStarted("this host has no IPv4 address".to_owned())).unwrap();
        assert_eq!((told.state(), told.life.durable().want), (SeenState::Starting, Want::Running));
        let reason = told.reason().to_owned();
        assert!(reason.starts_with("it waits to be started: this host has no IPv4 address (tried every "), "{reason}");
        waits.push(told.waits().as_secs());
        assert_eq!(told.work(), [Output::StartVmm(How::Boot)]);
    }
    assert_eq!((&waits[..7], waits.iter().max()), (&[1, 2, 4, 8, 16, 32, 32][..], Some(&32)));
    // What it waits for is there: it does not wait for its turn.
    told.hears(Input::NotStarted("this host has no IPv4 address".to_owned())).unwrap();
    told.hears(Input::Roused).unwrap();
    assert_eq!(told.work(), [Output::StartVmm(How::Boot)]);
    told.hears(Input::Started).unwrap();
    told.says(VmState::Running, 1);
    assert_eq!(told.reason(), "its VMM ended when the machine stopped; it was started again from its disk");
    // One whose VMM ends again and again is not roused by what its host says of itself.
    told.ends(Some(-1), Some(Right::Holding));
    assert_eq!(told.state(), SeenState::Starting);
    told.hears(Input::Roused).unwrap();
    assert_eq!(told.work(), []);
    assert!(told.waits() >= Duration::from_secs(2));

    // Whoever does not want it any more has it rest.
    let mut told = Told { life: Life::found(now, durable, "its VMM ended".to_owned()), now, kept: vec![] };
    told.hears(Input::Heard).unwrap();
    told.hears(Input::Ledger(Ok(None))).unwrap();
    told.hears(Input::NotStarted("its disk is not there".to_owned())).unwrap();
    told.hears(Input::Want(Goal::Stop { patience: PATIENCE })).unwrap();
    assert_eq!((told.state(), told.life.next_deadline()), (SeenState::Stopped, None));
}

#[test]
fn one_that_is_killed_starts_again_later_and_later_and_at_last_not() {
    let mut told = Told::runs();
    let mut waits = vec![];
    for _ in 0..RESTARTS_MAX {
        told.ends(Some(-1), Some(Right::Holding));
        assert_eq!(told.state(), SeenState::Starting);
        if told.life.vmm().is_none() {
            waits.push(told.waits().as_secs());
        }
        assert_eq!(told.work(), [Output::StartVmm(How::Boot)]);
        told.hears(Input::Started).unwrap();
        told.says(VmState::Running, 1);
        assert_eq!(told.reason(), "its VMM ended; it was started again from its disk");
    }
    assert_eq!(waits, [2, 4, 8]);
    told.ends(Some(-1), Some(Right::Holding));
    assert_eq!((told.state(), told.life.next_deadline()), (SeenState::Failed, None));
    assert!(told.reason().ends_with("not started again after 4 times"), "{}", told.reason());

    let mut told = Told::runs();
    for _ in 0..2 * RESTARTS_MAX {
        // One that has run for long begins anew.
        told.now += Duration::from_secs(61);
        told.ends(Some(-1), Some(Right::Holding));
        assert_eq!(told.work(), [Output::StartVmm(How::Boot)]);
        told.hears(Input::Started).unwrap();
    }
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped_and_one_whose_ledger_is_damaged_is_left_alone() {
    let mut told = Told::runs();
    told.ends(Some(0), Some(Right::Running));
    assert_eq!(
        (told.state(), told.reason(), told.life.durable().want),
        (SeenState::Stopped, "the guest powered itself off", Want::Stopped)
    );
    assert_eq!(told.life.stance(true, true), Some(Stance::Stopped));

    let mut told = Told::runs();
    told.hears(Input::Ended(Ended { code: Some(0), how: "its VMM ended".to_owned(), right: Err("record 3 is damaged".to_owned()) }))
        .unwrap();
    assert_eq!((told.state(), told.life.durable().want), (SeenState::Failed, Want::Running));
    assert_eq!((told.work(), told.reason()), (vec![], "its VMM ended; record 3 is damaged"));
}

#[test]
fn a_stop_asks_then_cuts_then_kills_until_the_vmm_has_gone() {
    let mut told = Told::runs();
    told.hears(Input::Want(Goal::Stop { patience: Duration::from_secs(60) })).unwrap();
    assert_eq!(told.work(), [Output::PressPower]);
    assert_eq!(told.reason(), "its guest was asked to power itself off, and has 60 s for that");
    assert_eq!(told.hears(Input::Want(Goal::Run { reason: None })), Err(Refused::BeingStopped));
    // Whoever has less patience is not made to wait.
    told.hears(Input::Want(Goal::Stop { patience: Duration::from_secs(5) })).unwrap();
    assert_eq!((told.waits().as_secs(), told.work()), (5, vec![Output::PressPower, Output::StopVmm]));
    assert_eq!((told.waits(), told.work()), (END_TIME, vec![Output::Kill(77)]));
    assert!(!told.life.is_stuck());
    for _ in 0..3 {
        assert_eq!((told.waits(), told.work()), (KILL_TIME, vec![Output::Kill(77)]));
        assert!(told.life.is_stuck() && told.life.is_stopping());
    }
    told.ends(None, Some(Right::Holding));
    assert_eq!(told.work(), [Output::AskKeeper]);
    assert_eq!(told.reason(), "its VMM did not answer and was killed: its guest did not power itself off within 60 s");
    told.hears(Input::Want(Goal::Run { reason: None })).unwrap();
}

#[test]
fn how_a_stop_ended_is_said() {
    let ended = |inputs: Vec<Input>, code| {
        let mut told = Told::runs();
        inputs.into_iter().for_each(|input| told.hears(input).unwrap());
        told.ends(code, Some(Right::Holding));
        assert_eq!(told.state(), SeenState::Stopped);
        told.reason().to_owned()
    };
    let stop = |seconds| Input::Want(Goal::Stop { patience: Duration::from_secs(seconds) });
    assert_eq!(ended(vec![stop(9)], Some(0)), "its guest powered itself off, as was asked for");
    assert_eq!(ended(vec![stop(0)], Some(0)), "its power was cut, as was asked for");
    assert_eq!(ended(vec![stop(9), stop(0)], None), "its power was cut, as was asked for");
    assert_eq!(ended(vec![stop(9), Input::NotPressed("it does not listen".to_owned())], None), "its power was cut: it does not listen");
    assert_eq!(ended(vec![stop(9)], Some(-1)), "its VMM ended");
}

#[test]
fn a_new_agent_goes_on_with_what_it_finds() {
    let found = |want| {
        let durable = Durable { want, epoch: 3, from: Some(OTHER), to: None, granting: None };
        let now = Duration::from_secs(7);
        Told { life: Life::found(now, durable, "the machine stopped".to_owned()), now, kept: vec![] }
    };
    let mut told = found(Want::Stopped);
    told.hears(Input::Adopted(77)).unwrap();
    assert_eq!((told.work(), told.life.is_stopping()), (vec![Output::PressPower], true));
    let mut told = found(Want::Gone);
    told.hears(Input::Adopted(77)).unwrap();
    assert_eq!(told.work(), [Output::StopVmm]);
    // Without a VMM it hears another host first, or waits no longer.
    let mut told = found(Want::Running);
    assert_eq!((told.waits(), told.work()), (WORD_TIME, vec![Output::ReadLedger]));
    told.hears(Input::Ledger(Ok(Some((Right::Holding, 5))))).unwrap();
    assert_eq!(told.work(), [Output::StartVmm(How::Boot)]);
    // Whom it was sent to had let go, and nobody was there to say so.
    assert_eq!(told.kept[0].1, [Grant { to: None, epoch: 5 }]);
    assert_eq!(told.reason(), "the machine stopped; it starts again from its disk");
    let mut told = found(Want::Running);
    told.hears(Input::Outcast).unwrap();
    assert_eq!((told.work(), told.state()), (vec![], SeenState::Stopped));
    for right in [None, Some((Right::Released, 3))] {
        let mut told = found(Want::Arriving);
        told.hears(Input::Heard).unwrap();
        told.hears(Input::Ledger(Ok(right))).unwrap();
        assert_eq!(told.work(), [Output::ReadLedger, Output::Remove]);
    }
    let mut told = found(Want::Arriving);
    told.hears(Input::Heard).unwrap();
    told.hears(Input::Ledger(Ok(Some((Right::Prepared, 3))))).unwrap();
    assert_eq!(told.work(), [Output::ReadLedger, Output::StartVmm(How::Arrive)]);
    // It is told again without an end.
    for _ in 0..10 {
        told.hears(Input::NotStarted("no memory".to_owned())).unwrap();
        assert!(told.waits() <= Duration::from_secs(16));
        assert_eq!(told.work(), [Output::StartVmm(How::Arrive)]);
    }
}

#[test]
fn a_lease_that_has_run_out_is_said_and_asked_for() {
    let mut told = Told::runs();
    let vmm = told.life.vmm().unwrap();
    let said = Said { vmm, state: VmState::Running, epoch: 1, pid: 77, unleased: Some("a1".to_owned()) };
    told.hears(Input::Said(said)).unwrap();
    assert_eq!((told.state(), told.work()), (SeenState::Unleased, vec![Output::AskKeeper]));
    assert_eq!(told.reason(), "its lease has run out: it goes on as soon as keeper a1 answers");
    told.says(VmState::Running, 1);
    assert_eq!((told.state(), told.reason()), (SeenState::Running, ""));
}

#[test]
fn what_was_started_elsewhere_goes_even_if_its_vmm_hears_nothing() {
    let mut told = Told::runs();
    told.hears(Input::Superseded(9)).unwrap();
    assert_eq!(told.work(), [], "another copy is meant");
    told.hears(Input::Superseded(1)).unwrap();
    assert_eq!((told.work(), told.life.durable().want), (vec![Output::StopVmm], Want::Gone));
    assert_eq!((told.waits(), told.work()), (END_TIME, vec![Output::Kill(77)]));
    assert_eq!((told.waits(), told.work()), (KILL_TIME, vec![Output::Kill(77)]));
    told.ends(None, Some(Right::Holding));
    assert_eq!(told.work(), [Output::Remove]);
}

fn arrives() -> Told {
    let mut told = Told::begins(Want::Arriving);
    told.hears(Input::Want(Goal::Arrive { from: OTHER, epoch: 5 })).unwrap();
    assert_eq!(told.work(), [Output::StartVmm(How::Arrive)]);
    told.hears(Input::Started).unwrap();
    told
}

#[test]
fn an_offer_of_which_nothing_comes_ends_unless_it_is_prepared() {
    let mut told = arrives();
    assert_eq!((told.life.stance(true, true), told.life.stance(true, false)), (Some(Stance::Arrives), None));
    told.hears(Input::StreamBegan).unwrap();
    for _ in 0..9 {
        told.waits();
        assert_eq!(told.work(), [], "a stream is open");
    }
    told.hears(Input::StreamEnded).unwrap();
    let silent_since = told.now;
    while told.work().is_empty() {
        told.waits();
    }
    assert!((OFFER_TIME..=OFFER_TIME + OFFER_LOOK).contains(&(told.now - silent_since)));
    // What was prepared is kept until its source says that nobody asks for it.
    for right in [Right::Prepared, Right::Released] {
        told.hears(Input::Ledger(Ok(Some((right, 5))))).unwrap();
        assert_eq!(told.work(), []);
        told.waits();
        told.work();
    }
    let mut other = Told { life: told.life.clone(), now: told.now, kept: vec![] };
    other.hears(Input::NotSent).unwrap();
    other.hears(Input::Ledger(Ok(Some((Right::Prepared, 5))))).unwrap();
    assert_eq!(other.work(), [Output::StopVmm]);
    told.hears(Input::Ledger(Ok(None))).unwrap();
    assert_eq!(told.work(), [Output::StopVmm]);
    assert_eq!(told.hears(Input::Want(Goal::Arrive { from: THIRD, epoch: 5 })), Err(Refused::StillHere));
    told.ends(Some(0), None);
    assert_eq!(told.work(), [Output::Remove]);
}

#[test]
fn what_arrives_runs_here_and_a_dead_source_sends_nothing() {
    let mut told = arrives();
    told.says(VmState::Incoming, 5);
    assert_eq!(told.life.durable().want, Want::Arriving);
    told.says(VmState::Running, 5);
    told.work();
    let kept = told.kept.last().unwrap();
    assert_eq!((kept.0.want, kept.0.epoch, kept.1.len(), told.state()), (Want::Running, 5, 0, SeenState::Running));

    let mut told = arrives();
    told.hears(Input::DeclaredDead(THIRD)).unwrap();
    assert_eq!(told.work(), []);
    told.hears(Input::DeclaredDead(OTHER)).unwrap();
    assert_eq!(told.work(), [Output::StopVmm]);
}

fn departs() -> Told {
    let mut told = Told::runs();
    told.hears(Input::Want(Goal::Depart { to: OTHER })).unwrap();
    told.work();
    let kept = told.kept.last().unwrap().0;
    assert_eq!((kept.to, kept.granting, told.life.word().to), (Some(OTHER), Some(2), Some(OTHER)));
    told.hears(Input::Want(Goal::SetOut)).unwrap();
    told
}

fn ended(outcome: Option<Outcome>) -> Input {
    Input::Moved { outcome, why: "the right to run it waits for host a2".to_owned() }
}

#[test]
fn a_move_leaves_or_goes_on_here() {
    let mut told = departs();
    for goal in [Goal::Stop { patience: PATIENCE }, Goal::Depart { to: THIRD }, Goal::Run { reason: None }, Goal::Remove] {
        told.hears(Input::Want(goal)).unwrap_err();
    }
    // Nobody knows how it ended: it may have been granted.
    told.hears(ended(None)).unwrap();
    assert_eq!((told.state(), told.life.word().to, told.work()), (SeenState::Running, Some(OTHER), vec![]));
    told.says(VmState::Running, 1);
    assert_eq!(told.life.word().to, None);
    let mut told = departs();
    told.hears(ended(Some(Outcome::Failed))).unwrap();
    assert_eq!((told.state(), told.life.word().to, told.work()), (SeenState::Running, None, vec![]));

    let mut told = departs();
    told.hears(ended(Some(Outcome::Moved))).unwrap();
    assert_eq!((told.work(), told.state(), told.life.word().pid), (vec![], SeenState::Left, 0));
    assert_eq!(told.kept.last().unwrap().1, [Grant { to: Some(OTHER), epoch: 2 }]);
    // It forwards late frames for a moment; one that never ends is ended.
    told.waits();
    assert_eq!(told.work(), [Output::StopVmm]);
    told.waits();
    assert_eq!(told.work(), [Output::Kill(77)]);
    told.ends(Some(0), Some(Right::Granted));
    assert_eq!(told.work(), [Output::Remove]);
    assert_eq!(Told::begins(Want::Stopped).hears(Input::Want(Goal::Depart { to: OTHER })), Err(Refused::DoesNotRun));
}

#[test]
fn a_granted_right_is_brought_until_it_is_taken_and_asked_back_when_the_target_is_dead() {
    let mut told = departs();
    // Its VMM says so before the move's job has ended.
    told.says(VmState::Waiting, 1);
    assert_eq!((told.work(), told.kept.last().unwrap().1.len()), (vec![], 1));
    told.hears(ended(Some(Outcome::Waiting))).unwrap();
    assert_eq!(
        (told.state(), told.reason(), told.life.stance(true, true)),
        (SeenState::Waiting, "the right to run it waits for host a2", None)
    );
    for _ in 0..3 {
        assert_eq!((told.waits(), told.work()), (BRING_PERIOD, vec![Output::Bring]));
        assert_eq!(told.hears(Input::Want(Goal::Stop { patience: PATIENCE })), Err(Refused::Busy));
        told.hears(ended(None)).unwrap();
    }
    told.hears(Input::DeclaredDead(THIRD)).unwrap();
    assert_eq!((told.waits(), told.work()), (BRING_PERIOD, vec![Output::Bring]));
    told.hears(Input::DeclaredDead(OTHER)).unwrap();
    assert_eq!(told.life.next_deadline(), None, "one attempt at a time");
    told.hears(ended(None)).unwrap();
    assert_eq!((told.waits(), told.work()), (BRING_PERIOD, vec![Output::GiveBack]));
    told.says(VmState::Running, 3);
    assert_eq!((told.state(), told.life.word().to), (SeenState::Running, None));
    told.work();
    assert_eq!((told.life.durable().epoch, told.kept.last().unwrap().1.as_slice()), (3, &[Grant { to: None, epoch: 3 }][..]));
    told.hears(ended(Some(Outcome::Failed))).unwrap();
    told.hears(Input::Want(Goal::Stop { patience: PATIENCE })).unwrap();
}

#[test]
fn a_vmm_that_is_killed_while_it_waits_goes_on_waiting() {
    let mut told = departs();
    told.says(VmState::Waiting, 1);
    told.ends(Some(-1), Some(Right::Granted));
    assert_eq!(told.work(), [Output::StartVmm(How::Boot)]);
    told.hears(ended(None)).unwrap();
    told.hears(Input::Started).unwrap();
    told.says(VmState::Waiting, 1);
    assert!(told.life.is_granted());
    told.waits();
    assert_eq!(told.work(), [Output::Bring]);
    told.hears(ended(Some(Outcome::Moved))).unwrap();
    assert_eq!((told.state(), told.life.durable().want), (SeenState::Left, Want::Gone));
}

#[test]
fn one_word_of_a_vmm_signs_only_so_many_grants() {
    let mut told = Told::runs();
    told.says(VmState::Running, u64::MAX);
    told.work();
    assert_eq!(told.kept.last().unwrap().1.len(), OWN_GRANTS_MAX);
}
