//! The end of a VM that runs: its guest is asked to power itself off, its power is cut when that has taken too long, and a VMM that does not hear
//! that is killed, again and again until it has gone.

use std::time::Duration;

use rebec_book::record::SeenState;

use super::{Life, Output, Refused, State, Want};

/// How long a guest has where nobody said.
pub const PATIENCE: Duration = Duration::from_secs(rebec_api::vm::StopVm::DEFAULT_TIMEOUT_S as u64);
/// How long a VMM may take to end.
pub const END_TIME: Duration = Duration::from_secs(10);
/// How long one may take that was killed.
pub const KILL_TIME: Duration = Duration::from_secs(5);

/// How far the end has come.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// The guest was asked, and has so long.
    Asked { patience: Duration },
    /// The VMM was told; why, in words that follow.
    Cut { why: String },
    /// The VMM was killed, and has not gone since it was first.
    Killed { why: String, again: bool },
}

impl Life {
    /// It is to end; no patience is a cut at once, also while another waits for the guest.
    pub(super) fn stop(&mut self, now: Duration, patience: Duration) -> Result<(), Refused> {
        match &mut self.state {
            State::Running { .. } => {
                self.keep(|durable| durable.want = Want::Stopped, vec![]);
                if patience.is_zero() { self.cut(now, ", as was asked for".to_owned()) } else { self.ask_guest(now, patience) }
            }
            State::Stopping { step: Step::Asked { .. }, .. } if patience.is_zero() => self.cut(now, ", as was asked for".to_owned()),
            // Another waits for the guest, or an earlier agent did.
            State::Stopping { step: Step::Asked { .. }, until } => {
                *until = (*until).min(now.saturating_add(patience));
                self.outputs.push_back(Output::PressPower);
            }
            State::Stopping { .. } => {}
            State::Found { .. } | State::Retrying { .. } if self.durable.want == Want::Running => {
                self.rest(SeenState::Stopped, "it was not started again, as was asked for".to_owned());
            }
            State::Absent | State::Stopped | State::Failed => self.keep(|durable| durable.want = Want::Stopped, vec![]),
            State::Found { .. }
            | State::Retrying { .. }
            | State::Starting { .. }
            | State::Arriving { .. }
            | State::Departing { .. }
            | State::Granted { .. }
            | State::Leaving { .. }
            | State::Gone => {
                return Err(Refused::Busy);
            }
        }
        Ok(())
    }

    /// Presses the power button and waits for what comes of it.
    pub(super) fn ask_guest(&mut self, now: Duration, patience: Duration) {
        self.state = State::Stopping { step: Step::Asked { patience }, until: now.saturating_add(patience) };
        self.outputs.push_back(Output::PressPower);
        let asked = format!("its guest was asked to power itself off, and has {} s for that", patience.as_secs());
        self.say(self.word.state, Some(asked));
    }

    fn cut(&mut self, now: Duration, why: String) {
        self.state = State::Stopping { step: Step::Cut { why }, until: now.saturating_add(END_TIME) };
        self.outputs.push_back(Output::StopVmm);
    }

    /// The button could not be pressed.
    pub(super) fn not_pressed(&mut self, now: Duration, why: String) {
        if let State::Stopping { step: Step::Asked { .. }, .. } = self.state {
            self.press_on(now, Some(why));
        }
    }

    /// The time of a step is over, or it led nowhere.
    pub(super) fn press_on(&mut self, now: Duration, refused: Option<String>) {
        let State::Stopping { step, .. } = &self.state else { return };
        let (why, again) = match step {
            Step::Asked { patience } => {
                let late = || format!("its guest did not power itself off within {} s", patience.as_secs());
                return self.cut(now, format!(": {}", refused.unwrap_or_else(late)));
            }
            Step::Cut { why } => (why.clone(), false),
            Step::Killed { why, .. } => (why.clone(), true),
        };
        self.state = State::Stopping { step: Step::Killed { why, again }, until: now.saturating_add(KILL_TIME) };
        self.outputs.push_back(Output::Kill(self.pid));
    }

    /// A VM that was to end has.
    pub(super) fn stopped(&mut self, code: Option<i32>, how: &str) {
        let reason = match &self.state {
            State::Stopping { step: Step::Asked { .. }, .. } if code == Some(0) => {
                Some("its guest powered itself off, as was asked for".to_owned())
            }
            State::Stopping { step: Step::Asked { .. }, .. } => Some(how.to_owned()),
            State::Stopping { step: Step::Cut { why }, .. } => Some(format!("its power was cut{why}")),
            State::Stopping { step: Step::Killed { why, .. }, .. } => Some(format!("its VMM did not answer and was killed{why}")),
            _ => None,
        };
        self.state = State::Stopped;
        self.ended_so(SeenState::Stopped, reason);
        // Its keeper should know at once that it is not to be started elsewhere.
        self.outputs.push_back(Output::AskKeeper);
    }
}
