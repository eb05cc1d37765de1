//! A VM comes from another host, or leaves for one. What decides where it runs is between the two VMMs and their ledgers; here is who waits for what,
//! and how long.

use std::time::Duration;

use rebec_book::{Key, record::SeenState};
use rebec_migrate::ledger::Right;
use rebec_vmm_api::Outcome;

use super::{END_TIME, Grant, How, KILL_TIME, Ledger, Life, Output, Refused, State, Want};

/// An offer of which nothing comes for so long is void: its room is others'.
pub const OFFER_TIME: Duration = Duration::from_secs(15);
/// Between two looks whether it has come to that.
pub const OFFER_LOOK: Duration = Duration::from_secs(3);
/// Between two tries to bring a granted right to the other side.
pub const BRING_PERIOD: Duration = Duration::from_secs(2);
/// A VMM whose VM has left forwards late frames for a few seconds; one that is there much longer is told to end.
const LEFT_TIME: Duration = Duration::from_secs(20);

impl Life {
    /// Another host is to send it here.
    pub(super) fn arrive(&mut self, now: Duration, from: Key, epoch: u64) -> Result<(), Refused> {
        let is_new = match &mut self.state {
            State::Absent => true,
            // An earlier attempt: its VMM still waits, or will, and takes the next.
            State::Starting { how: How::Arrive, .. } => false,
            State::Arriving { silent_since, is_sent, .. } => {
                (*silent_since, *is_sent) = (now, true);
                false
            }
            _ => return Err(Refused::StillHere),
        };
        self.keep(|durable| (durable.want, durable.from, durable.epoch) = (Want::Arriving, Some(from), epoch), vec![]);
        if is_new {
            self.start(How::Arrive, None);
        }
        Ok(())
    }

    /// A VMM waits for it now.
    pub(super) fn wait_for(&mut self, now: Duration) {
        self.state = State::Arriving { streams: 0, silent_since: now, is_sent: true, look: now.saturating_add(OFFER_LOOK) };
    }

    /// A stream of the move here has begun, or ended.
    pub(super) fn stream(&mut self, now: Duration, has_begun: bool) {
        if let State::Arriving { streams, silent_since, is_sent, .. } = &mut self.state {
            *streams = if has_begun { streams.saturating_add(1) } else { streams.saturating_sub(1) };
            (*silent_since, *is_sent) = (now, true);
        }
    }

    /// Its source goes on with it.
    pub(super) fn not_sent(&mut self) {
        if let State::Arriving { is_sent, .. } = &mut self.state {
            *is_sent = false;
        }
    }

    fn is_silent(&self, now: Duration) -> bool {
        matches!(self.state, State::Arriving { streams: 0, silent_since, .. } if now.saturating_sub(silent_since) > OFFER_TIME)
    }

    /// Looks whether who offered it has sent nothing for too long.
    pub(super) fn look_at_offer(&mut self, now: Duration) {
        let is_silent = self.is_silent(now);
        if let State::Arriving { look, .. } = &mut self.state {
            *look = now.saturating_add(OFFER_LOOK);
        }
        if is_silent {
            self.outputs.push_back(Output::ReadLedger);
        }
    }

    /// Ends the wait for a VM that was offered and does not come. One that was prepared has to tell its source what became of it, and is kept until
    /// that needs no answer.
    pub(super) fn offer_read(&mut self, now: Duration, right: Ledger) {
        let State::Arriving { is_sent, .. } = self.state else { return };
        let is_over = match right {
            Ok(None) => true,
            Ok(Some((Right::Prepared | Right::Released, _))) => !is_sent,
            // It runs here, and its VMM is about to say so.
            _ => false,
        };
        if is_over && self.is_silent(now) {
            self.go(now);
        }
    }

    /// It is to move.
    pub(super) fn depart(&mut self, to: Key) -> Result<(), Refused> {
        let since = match self.state {
            State::Running { since } if self.durable.want == Want::Running && self.word.state != SeenState::Starting => since,
            State::Absent | State::Stopped | State::Failed => return Err(Refused::DoesNotRun),
            _ => return Err(Refused::NotNow),
        };
        let granting = self.durable.epoch.saturating_add(1);
        self.keep(|durable| (durable.to, durable.granting) = (Some(to), Some(granting)), vec![]);
        self.state = State::Departing { since, is_begun: false };
        // Whoever is to believe that it arrives there can see that it is sent.
        self.word.to = Some(to);
        self.outputs.push_back(Output::Say);
        Ok(())
    }

    /// Its VMM is about to be told to move; not the next VMM, should that one have ended.
    pub(super) fn set_out(&mut self) -> Result<(), Refused> {
        let State::Departing { is_begun, .. } = &mut self.state else { return Err(Refused::NotNow) };
        *is_begun = true;
        self.say(SeenState::Moving, None);
        Ok(())
    }

    /// An attempt to move it, or to bring a granted right to the other side, has ended.
    pub(super) fn moved(&mut self, now: Duration, outcome: Option<Outcome>, why: String) {
        if outcome == Some(Outcome::Moved) && self.durable.granting.is_some() {
            return self.left(now);
        }
        match &mut self.state {
            State::Departing { .. } if outcome == Some(Outcome::Waiting) || self.word.state == SeenState::Waiting => {
                self.granted(now, Some(why));
            }
            State::Departing { since, is_begun } => {
                let (since, is_begun) = (*since, *is_begun);
                self.state = State::Running { since };
                if outcome.is_some() || !is_begun {
                    self.word.to = None;
                }
                // Where nobody knows how it ended, the next word of the VMM tells.
                let state = if self.word.state == SeenState::Moving { SeenState::Running } else { self.word.state };
                let reason = self.word.reason.take();
                self.say(state, reason);
            }
            State::Granted { .. } if outcome == Some(Outcome::Failed) => {
                self.went_on(now);
                self.outputs.push_back(Output::Say);
            }
            State::Granted { next, .. } => {
                *next = Some(now.saturating_add(BRING_PERIOD));
                if self.word.reason.as_ref() != Some(&why) {
                    self.say(SeenState::Waiting, Some(why));
                }
            }
            _ => {}
        }
    }

    /// Its right to run was granted to the other side, which has not answered: `why` is what the move says at its end, none where the VMM says so
    /// meanwhile or has been started anew.
    pub(super) fn granted(&mut self, now: Duration, why: Option<String>) {
        if self.word.state != SeenState::Waiting {
            // Whoever sees it there can know by whose word.
            self.keep(|_| {}, self.gave());
        }
        match self.state {
            // The job that moves it ends soon.
            State::Departing { .. } if why.is_none() => {}
            State::Departing { .. } => self.state = State::Granted { is_dead: false, next: Some(now.saturating_add(BRING_PERIOD)) },
            State::Running { .. } | State::Arriving { .. } => self.state = State::Granted { is_dead: false, next: Some(now) },
            _ => {}
        }
        let reason = why.or_else(|| self.word.reason.take());
        self.say(SeenState::Waiting, reason);
    }

    fn gave(&self) -> Vec<Grant> {
        let granted = self.durable.to.zip(self.durable.granting);
        granted.map(|(to, epoch)| Grant { to: Some(to), epoch }).into_iter().collect()
    }

    /// Brings the right to run it to the other side, or takes it back.
    pub(super) fn bring(&mut self) {
        if let State::Granted { is_dead, next } = &mut self.state {
            *next = None;
            self.outputs.push_back(if *is_dead { Output::GiveBack } else { Output::Bring });
        }
    }

    /// A host was declared dead: it does not run what was granted to it, and does not send what it offered.
    pub(super) fn declared_dead(&mut self, now: Duration, host: Key) {
        match &mut self.state {
            State::Granted { is_dead, next } if self.durable.to == Some(host) && !*is_dead => {
                *is_dead = true;
                *next = next.map(|next| next.min(now));
            }
            State::Arriving { .. } if self.durable.from == Some(host) => self.go(now),
            _ => {}
        }
    }

    /// Whom it was granted to has let go: it runs here.
    pub(super) fn went_on(&mut self, now: Duration) {
        self.state = State::Running { since: now };
        self.word.to = None;
        (self.word.state, self.word.reason) = (SeenState::Running, None);
        self.outputs.push_back(Output::AskKeeper);
    }

    /// It runs at the host that it was granted to.
    pub(super) fn left(&mut self, now: Duration) {
        if self.is_leaving() {
            return;
        }
        // The folder goes when the VMM, which forwards late frames for a moment, has ended.
        self.keep(|durable| durable.want = Want::Gone, self.gave());
        self.word.to = None;
        self.ended_so(SeenState::Left, None);
        self.state = State::Leaving { is_told: false, until: now.saturating_add(LEFT_TIME) };
        if !self.has_vmm {
            self.gone();
        }
    }

    /// Another copy of it is the VM now.
    pub(super) fn superseded(&mut self, now: Duration, epoch: u64) {
        // What it has by now may be another copy.
        if self.durable.epoch == epoch && !self.is_leaving() {
            self.go(now);
        }
    }

    fn go(&mut self, now: Duration) {
        self.keep(|durable| durable.want = Want::Gone, vec![]);
        self.leave(now);
    }

    /// What is here of it goes, as soon as its VMM has ended.
    pub(super) fn leave(&mut self, now: Duration) {
        if !self.has_vmm {
            return self.gone();
        }
        self.state = State::Leaving { is_told: true, until: now.saturating_add(END_TIME) };
        self.outputs.push_back(Output::StopVmm);
    }

    /// Its VMM is still there.
    pub(super) fn leave_on(&mut self, now: Duration) {
        let State::Leaving { is_told, until } = &mut self.state else { return };
        if std::mem::replace(is_told, true) {
            *until = now.saturating_add(KILL_TIME);
            self.outputs.push_back(Output::Kill(self.pid));
        } else {
            *until = now.saturating_add(END_TIME);
            self.outputs.push_back(Output::StopVmm);
        }
    }
}
