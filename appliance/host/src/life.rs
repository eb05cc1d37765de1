//! The life of one VM on one machine: what is wanted of it, what its VMM and its ledger say, what its keeper and other hosts say, and what is to be
//! done. It has no process, socket, file or clock: whoever drives it has those, and decides nothing. Whether a VM may run is between VMMs and their
//! ledgers (docs/formats/handover.md); this engine starts a VMM only where the ledger's last record leads to one.
//!
//! ```text
//!             Run                 Started, Said                 Stop                    Ended
//! Absent ----------> Starting ------------------> Running ----------------> Stopping ---------> Stopped
//!    |               ^   |  ^ tick                 |  ^  ^                                        | Run: Starting
//!    |         Ended |   v  |                      |  |  |                  Remove, or ended while Leaving
//!    |               |  Retrying (back-off)  Depart|  |  | Failed, released               |
//!    |               |   | too often               v  |  |                                v
//!    |               |   v                   Departing +-- Granted ---- Moved ---> Leaving ---> Gone
//!    |               |  Failed                   |  Waiting  ^  | dead: GiveBack      ^
//!    | Arrive        |                           +-----------+  | tick: Bring         | superseded (from anywhere)
//!    +--> Starting --+--> Arriving --- Said ---> Running        +---> Running         | offered and does not come
//!                                   \-------------------------------------------------+
//! ```
//!
//! | state | owner | until | sentence |
//! |---|---|---|---|
//! | Absent | who made its folder | it is wanted | none was said |
//! | Found | the new agent | a host is heard, or [`WORD_TIME`] | what was said before |
//! | Starting | who starts the VMM, within its own time | `Started`, `NotStarted` | starting, and why again |
//! | Retrying | this engine | its deadline; what it waits for may be there | how the VMM ended, or why it cannot be started yet |
//! | Running | the VMM | it ends | what the VMM says |
//! | Stopping | this engine: asked, then cut, then killed, then killed again | its deadline | how long the guest has |
//! | Arriving | the host that sends it | [`OFFER_TIME`] without a stream; once it was prepared, until its source says that it does not send it | the source's |
//! | Departing | the job that moves it, which ends with `Moved` | its own limits | where it is sent |
//! | Granted | this engine: brings the right there again and again | [`BRING_PERIOD`]; the target is declared dead | for whom it waits |
//! | Leaving | this engine: told to end, then killed | its deadline | left |
//! | Stopped, Failed | nobody: it rests | it is wanted | how it ended |

mod end;
#[cfg(test)]
mod model;
mod stop;
#[cfg(test)]
mod tests;
mod travel;
mod words;

use std::{collections::VecDeque, time::Duration};

use rebec_book::record::SeenState;
use rebec_pool::lease::Stance;
use rebec_vmm_api::control::VmState;

use self::{end::Retry, stop::Step};
pub use self::{
    stop::{END_TIME, KILL_TIME, PATIENCE},
    travel::{BRING_PERIOD, OFFER_LOOK, OFFER_TIME},
    words::{Durable, Ended, Goal, Grant, How, Input, Ledger, Output, Refused, Said, Want, Word},
};

/// How long a VM that is to be started anew waits for a word from another host: this one may have been declared dead meanwhile. One that reaches
/// nobody goes on by itself.
pub const WORD_TIME: Duration = Duration::from_secs(5);
/// Grants of this host to itself that one word of a VMM can lead to: more cannot be carried.
const OWN_GRANTS_MAX: usize = rebec_book::grant::GRANTS_MAX;

/// Where a VM is in its life here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    /// Nothing of it has run here, and nothing is to yet.
    Absent,
    /// A new agent has found it and waits for a word.
    Found { how: String, until: Duration },
    /// A VMM is being started; if again, after what.
    Starting { how: How, again: Option<String> },
    /// It is started again after a while.
    Retrying { retry: Retry, until: Duration },
    /// Its VMM answers, or is about to.
    Running { since: Duration },
    /// It is to end.
    Stopping { step: Step, until: Duration },
    /// A VMM waits for it. The streams that are open, when its source was heard last, whether that has said since that it sends it no more, and when
    /// to look at the ledger next.
    Arriving { streams: u32, silent_since: Duration, is_sent: bool, look: Duration },
    /// It moves to another host. Since when it runs, and whether its VMM was told to move.
    Departing { since: Duration, is_begun: bool },
    /// Its right to run is at the other side of a move, or on its way there. When to bring it next; none while that is under way.
    Granted { is_dead: bool, next: Option<Duration> },
    /// Nothing of it is to stay here; its VMM is to end by then, and is told or killed.
    Leaving { is_told: bool, until: Duration },
    /// It does not run.
    Stopped,
    /// It ended with an error, and is not started again by itself.
    Failed,
    /// Nothing is left.
    Gone,
}

/// The life of one VM on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Life {
    durable: Durable,
    state: State,
    word: Word,
    /// Whether a VMM is there, or is being started.
    has_vmm: bool,
    /// Its process, once it has said so.
    pid: u32,
    /// VMMs so far.
    vmms: u32,
    /// Times in a row that it was started again.
    restarts: u32,
    /// Times in a row that it could not be, up to a limit.
    misses: u32,
    outputs: VecDeque<Output>,
}

impl Life {
    /// Of a VM that has just been given its folder.
    pub fn new(durable: Durable) -> Self {
        Self::at(durable, State::Absent)
    }

    /// Of a VM that an earlier agent had; `how` says how its VMM ended, if it has.
    pub fn found(now: Duration, durable: Durable, how: String) -> Self {
        // Only what is to run has to hear others first.
        let patience = if durable.want == Want::Running { WORD_TIME } else { Duration::ZERO };
        let mut life = Self::at(durable, State::Found { how, until: now.saturating_add(patience) });
        // It may have been granted there, until its VMM or its ledger says otherwise.
        life.word.to = durable.to;
        life
    }

    fn at(durable: Durable, state: State) -> Self {
        let word = Word { state: SeenState::Stopped, reason: None, pid: 0, to: None };
        Self { durable, state, word, has_vmm: false, pid: 0, vmms: 0, restarts: 0, misses: 0, outputs: VecDeque::new() }
    }

    /// Takes in what happened. Only a wish is ever refused, and then nothing has changed.
    pub fn handle(&mut self, now: Duration, input: Input) -> Result<(), Refused> {
        if self.state == State::Gone {
            return Ok(());
        }
        match input {
            Input::Want(goal) => self.want(now, goal)?,
            Input::Adopted(pid) => self.adopted(now, pid),
            Input::Heard => self.heard(now),
            Input::Outcast => self.outcast(now),
            Input::Started => self.started(now),
            Input::NotStarted(why) => self.not_started(now, &why),
            Input::Roused => self.roused(),
            Input::Said(said) => self.said(now, said),
            Input::Ended(ended) => self.ended(now, ended),
            Input::NotPressed(why) => self.not_pressed(now, why),
            Input::StreamBegan => self.stream(now, true),
            Input::StreamEnded => self.stream(now, false),
            Input::NotSent => self.not_sent(),
            Input::Ledger(right) => self.ledger_read(now, right),
            Input::Superseded(epoch) => self.superseded(now, epoch),
            Input::Moved { outcome, why } => self.moved(now, outcome, why),
            Input::DeclaredDead(host) => self.declared_dead(now, host),
        }
        Ok(())
    }

    /// What is to be done next, in this order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::tick`] is to be called.
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Found { until, .. } | State::Retrying { until, .. } | State::Stopping { until, .. } | State::Leaving { until, .. } => {
                Some(*until)
            }
            State::Arriving { look, .. } => Some(*look),
            State::Granted { next, .. } => *next,
            _ => None,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.state {
            State::Found { .. } => self.heard(now),
            State::Retrying { .. } => self.retry(),
            State::Stopping { .. } => self.press_on(now, None),
            State::Arriving { .. } => self.look_at_offer(now),
            State::Granted { .. } => self.bring(),
            State::Leaving { .. } => self.leave_on(now),
            _ => {}
        }
    }

    /// What is kept of it.
    pub fn durable(&self) -> &Durable {
        &self.durable
    }

    /// How it is.
    pub fn word(&self) -> &Word {
        &self.word
    }

    /// The number of its VMM, where one is there or is being started.
    pub fn vmm(&self) -> Option<u32> {
        self.has_vmm.then_some(self.vmms)
    }

    /// Whether it runs and nothing else is under way.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether a VMM is being started, or will be soon, or has not said yet how it is.
    pub fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Retrying { .. }) || self.has_vmm && self.word.state == SeenState::Starting
    }

    /// Whether it is on its way to its end.
    pub fn is_stopping(&self) -> bool {
        matches!(self.state, State::Stopping { .. })
    }

    /// Whether its VMM did not end when it was killed.
    pub fn is_stuck(&self) -> bool {
        matches!(self.state, State::Stopping { step: Step::Killed { again: true, .. }, .. })
    }

    /// Whether its right to run is at the other side of a move, or on its way there.
    pub fn is_granted(&self) -> bool {
        matches!(self.state, State::Granted { .. })
    }

    /// Whether nothing of it is to stay here.
    pub fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving { .. } | State::Gone)
    }

    /// What this host has to say to the VM's keeper about its copy, if it has to; `has_run` tells whether a VMM of it was ever started here,
    /// `source_answers` whether the host that sends it does.
    pub fn stance(&self, has_run: bool, source_answers: bool) -> Option<Stance> {
        match self.durable.want {
            // Its right to run is at the other side of a move: should that be lost, nobody here may keep the VM from being started elsewhere.
            Want::Running => (!self.is_granted() && self.word.state != SeenState::Waiting).then_some(Stance::Runs),
            // Without its source it does not come by itself, and may have to be started elsewhere.
            Want::Arriving => source_answers.then_some(Stance::Arrives),
            // What never began here was not stopped either.
            Want::Stopped => has_run.then_some(Stance::Stopped),
            Want::Gone => None,
        }
    }

    fn want(&mut self, now: Duration, goal: Goal) -> Result<(), Refused> {
        match goal {
            Goal::Run { reason } => self.run(reason),
            Goal::Stop { patience } => self.stop(now, patience),
            Goal::Arrive { from, epoch } => self.arrive(now, from, epoch),
            Goal::Depart { to } => self.depart(to),
            Goal::SetOut => self.set_out(),
            Goal::Remove => self.remove(),
        }
    }

    fn run(&mut self, reason: Option<String>) -> Result<(), Refused> {
        match self.state {
            State::Absent | State::Stopped | State::Failed => {}
            State::Stopping { .. } => return Err(Refused::BeingStopped),
            State::Arriving { .. } | State::Departing { .. } | State::Granted { .. } | State::Leaving { .. } => {
                return Err(Refused::OnTheMove);
            }
            State::Starting { how: How::Arrive, .. } => return Err(Refused::OnTheMove),
            State::Found { .. } | State::Starting { .. } | State::Retrying { .. } | State::Running { .. } | State::Gone => {
                return Err(Refused::RunsAlready);
            }
        }
        (self.restarts, self.misses) = (0, 0);
        self.keep(|durable| durable.want = Want::Running, vec![]);
        self.say(SeenState::Starting, reason);
        self.start(How::Boot, None);
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Refused> {
        match self.state {
            State::Absent | State::Stopped | State::Failed => {}
            _ => return Err(Refused::Runs),
        }
        self.gone();
        Ok(())
    }

    /// The VMM of an earlier agent goes on as it is.
    fn adopted(&mut self, now: Duration, pid: u32) {
        if !matches!(self.state, State::Found { .. }) {
            return;
        }
        (self.has_vmm, self.vmms, self.word.state) = (true, self.vmms + 1, SeenState::Running);
        // One that hangs says nothing, and may have to be killed.
        self.pid = pid;
        match self.durable.want {
            Want::Running => self.state = State::Running { since: now },
            // Sees the end through that the earlier agent had begun.
            Want::Stopped => self.ask_guest(now, PATIENCE),
            Want::Arriving => self.wait_for(now),
            Want::Gone => self.leave(now),
        }
    }

    /// Nobody has a VMM of it: what is to become of it is for its ledger to say.
    fn heard(&mut self, now: Duration) {
        if let State::Found { until, .. } = &mut self.state {
            *until = now.saturating_add(WORD_TIME);
            self.outputs.push_back(Output::ReadLedger);
        }
    }

    fn ledger_read(&mut self, now: Duration, right: Ledger) {
        match &self.state {
            State::Found { how, .. } => self.without_vmm(now, Ended { code: None, how: how.clone(), right }),
            State::Arriving { .. } => self.offer_read(now, right),
            _ => {}
        }
    }

    /// This host was declared dead: a VM that runs nowhere yet is not started.
    fn outcast(&mut self, now: Duration) {
        match self.state {
            State::Found { .. } if self.durable.want == Want::Running => {
                self.state = State::Stopped;
                self.ended_so(SeenState::Stopped, Some("this host was declared dead".to_owned()));
            }
            State::Found { .. } => self.heard(now),
            _ => {}
        }
    }

    fn start(&mut self, how: How, again: Option<String>) {
        self.state = State::Starting { how, again };
        (self.has_vmm, self.vmms) = (true, self.vmms + 1);
        self.outputs.push_back(Output::StartVmm(how));
    }

    fn started(&mut self, now: Duration) {
        if self.is_leaving() {
            // What was to be told to it found nobody.
            self.outputs.push_back(Output::StopVmm);
        }
        let State::Starting { how, again } = &self.state else { return };
        self.misses = 0;
        if let Some(how) = again {
            self.word.reason = Some(format!("{how}; it was started again from its disk"));
        }
        match how {
            How::Boot => self.state = State::Running { since: now },
            How::Arrive => self.wait_for(now),
        }
    }

    /// A VMM said how its VM is.
    fn said(&mut self, now: Duration, said: Said) {
        if self.vmm() != Some(said.vmm) {
            return;
        }
        self.pid = said.pid;
        if matches!(self.state, State::Starting { .. } | State::Leaving { .. }) {
            return;
        }
        let state = match said.state {
            VmState::Running if said.unleased.is_some() => SeenState::Unleased,
            VmState::Running => SeenState::Running,
            VmState::Paused => SeenState::Paused,
            VmState::Moving => SeenState::Moving,
            VmState::Waiting => SeenState::Waiting,
            // A word of a newer VMM.
            VmState::Other => SeenState::Other,
            // It has not run here: whoever sends it says how it is.
            VmState::Incoming => return,
            VmState::Moved => return self.left(now),
        };
        self.word.pid = said.pid;
        if state == SeenState::Waiting {
            return self.granted(now, None);
        }
        self.reached(said.epoch);
        match self.state {
            State::Arriving { .. } => self.state = State::Running { since: now },
            // Whom it was granted to has let go.
            State::Granted { .. } => self.went_on(now),
            State::Running { .. } if state != SeenState::Moving => self.word.to = None,
            _ => {}
        }
        let reason = match said.unleased {
            Some(keeper) => Some(format!("its lease has run out: it goes on as soon as keeper {keeper} answers")),
            // Why it had to start again stays said while it runs.
            None => self.word.reason.take().filter(|_| [state, SeenState::Starting].contains(&self.word.state)),
        };
        self.say(state, reason);
        if state == SeenState::Unleased {
            self.outputs.push_back(Output::AskKeeper);
        }
    }

    /// Its VMM, or its ledger, has come to an epoch. One that is two beyond the last follows from a target that let go.
    fn reached(&mut self, epoch: u64) {
        let Durable { want, epoch: before, .. } = self.durable;
        let arrives = want == Want::Arriving;
        if !arrives && epoch <= before {
            return;
        }
        let own = (before..epoch).step_by(2).map(|before| before + 2).filter(|own| !arrives && *own <= epoch);
        let grants = own.take(OWN_GRANTS_MAX).map(|epoch| Grant { to: None, epoch }).collect();
        let change = |durable: &mut Durable| {
            durable.want = if arrives { Want::Running } else { want };
            durable.epoch = before.max(epoch);
        };
        self.keep(change, grants);
    }

    fn keep(&mut self, change: impl FnOnce(&mut Durable), grants: Vec<Grant>) {
        let before = self.durable;
        change(&mut self.durable);
        if self.durable != before || !grants.is_empty() {
            self.outputs.push_back(Output::Keep { durable: self.durable, grants });
        }
    }

    fn say(&mut self, state: SeenState, reason: Option<String>) {
        (self.word.state, self.word.reason) = (state, reason);
        self.outputs.push_back(Output::Say);
    }

    /// Says that it ended or could not start.
    fn ended_so(&mut self, state: SeenState, reason: Option<String>) {
        self.word.pid = 0;
        self.say(state, reason);
    }

    fn gone(&mut self) {
        self.state = State::Gone;
        self.outputs.push_back(Output::Remove);
    }
}
