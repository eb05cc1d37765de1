//! The end of a VMM: what is wanted and what the ledger says decide what comes next. One that was killed is started again a few times.

use std::time::Duration;

use rebec_book::record::SeenState;
use rebec_migrate::ledger::Right;

use super::{Ended, How, Life, Output, State, Want};

/// A VMM that was killed is started again after this time, doubled for each time in a row; the first time at once.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Times in a row; one that ran for [`STEADY`] begins anew. What waits at the other side of a move is told again without an end.
pub(super) const RESTARTS_MAX: u32 = 4;
const STEADY: Duration = Duration::from_secs(60);
/// One that cannot be started yet is tried again after [`RESTART_AFTER`], doubled so often at most, for as long as it is wanted: a host that has just
/// started may have no address yet, and not all of its disks.
pub(super) const MISSES_MAX: u32 = 5;

/// What is to be started again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Retry {
    how: How,
    /// How it had ended.
    after: String,
}

impl Life {
    /// Its VMM has ended.
    pub(super) fn ended(&mut self, now: Duration, ended: Ended) {
        if self.has_vmm {
            self.without_vmm(now, ended);
        }
    }

    /// What is to become of a VM without a VMM.
    pub(super) fn without_vmm(&mut self, now: Duration, ended: Ended) {
        let Ended { code, how, right } = ended;
        (self.has_vmm, self.pid) = (false, 0);
        if let State::Running { since } | State::Departing { since, .. } = self.state
            && now.saturating_sub(since) > STEADY
        {
            self.restarts = 0;
        }
        let last = match right {
            Ok(last) => last,
            Err(error) => {
                // Nothing is started or removed on a guess.
                self.state = State::Failed;
                return self.ended_so(SeenState::Failed, Some(format!("{how}; {error}")));
            }
        };
        let right = last.map(|(right, _)| right);
        if let Some((Right::Holding | Right::Running, epoch)) = last
            && self.durable.want != Want::Gone
        {
            self.reached(epoch);
        }
        if right != Some(Right::Granted) {
            self.word.to = None;
        }
        match (self.durable.want, right) {
            (Want::Gone, _) | (Want::Arriving, None | Some(Right::Released)) => self.gone(),
            // It has not run here: a VMM must say so to the source, which waits for that.
            (Want::Arriving, _) => self.again(now, How::Arrive, how),
            (Want::Stopped, _) => self.stopped(code, &how),
            (Want::Running, Some(Right::Holding | Right::Running) | None) if code == Some(0) => {
                self.rest(SeenState::Stopped, "the guest powered itself off".to_owned());
            }
            (Want::Running, _) => self.again(now, How::Boot, how),
        }
    }

    fn again(&mut self, now: Duration, how: How, after: String) {
        let times = self.restarts;
        if how == How::Boot {
            if times >= RESTARTS_MAX {
                return self.rest(SeenState::Failed, format!("{after}; not started again after {times} times"));
            }
            self.ended_so(SeenState::Starting, Some(format!("{after}; it starts again from its disk")));
        }
        self.restarts = times.saturating_add(1);
        if times == 0 {
            return self.start(how, Some(after));
        }
        let until = now.saturating_add(RESTART_AFTER * 2u32.pow(times.min(RESTARTS_MAX)));
        self.state = State::Retrying { retry: Retry { how, after }, until };
    }

    /// The time to start it again has come.
    pub(super) fn retry(&mut self) {
        if let State::Retrying { retry, .. } = &self.state {
            let Retry { how, after } = retry.clone();
            self.start(how, Some(after));
        }
    }

    /// Its VMM could not be started.
    pub(super) fn not_started(&mut self, now: Duration, why: &str) {
        (self.has_vmm, self.pid) = (false, 0);
        let (how, again) = match &self.state {
            State::Starting { how, again } => (*how, again.clone()),
            State::Leaving { .. } => return self.gone(),
            _ => return,
        };
        match (how, again) {
            (How::Boot, None) => self.rest(SeenState::Failed, why.to_owned()),
            (How::Boot, Some(after)) => self.wait_to_start(now, after, why),
            // Nothing of it has come here.
            (How::Arrive, None) => {
                self.word.reason = Some(why.to_owned());
                self.gone();
            }
            (How::Arrive, Some(after)) => self.again(now, How::Arrive, after),
        }
    }

    /// What it needs may only not be there yet.
    fn wait_to_start(&mut self, now: Duration, after: String, why: &str) {
        let pause = RESTART_AFTER * 2u32.pow(self.misses);
        self.misses = (self.misses + 1).min(MISSES_MAX);
        self.ended_so(SeenState::Starting, Some(format!("it waits to be started: {why} (tried every {} s; {after})", pause.as_secs())));
        self.state = State::Retrying { retry: Retry { how: How::Boot, after }, until: now.saturating_add(pause) };
    }

    /// What it waits for may be there.
    pub(super) fn roused(&mut self) {
        if self.misses > 0 {
            self.retry();
        }
    }

    /// It does not run, and is not to until somebody wants it to.
    pub(super) fn rest(&mut self, state: SeenState, why: String) {
        self.keep(|durable| durable.want = Want::Stopped, vec![]);
        self.state = if state == SeenState::Failed { State::Failed } else { State::Stopped };
        self.ended_so(state, Some(why));
        // It is not to be started elsewhere.
        self.outputs.push_back(Output::AskKeeper);
    }
}
