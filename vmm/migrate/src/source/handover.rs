//! The source's end of the handover: from the decision to grant to the certainty of who runs the VM. It is all that a
//! source restarted from its ledger has, so it knows nothing of memory. The table is docs/formats/handover.md.

use crate::{
    ledger::{Record, Right},
    message::{FromSource, FromTarget},
};

/// What the rest of the source does for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceAct {
    /// Make this record durable, then say so.
    Write(Record),
    /// Send this.
    Send(FromSource),
    /// The VM runs at the target.
    Moved {
        /// From the grant's arrival to the first vCPU running.
        after_grant_us: u64,
    },
    /// The VM is this side's again, at this epoch.
    Back {
        /// The epoch it holds now.
        epoch: u64,
    },
    /// The target of an older move has let go of a VM that is held here.
    Dismissed,
    /// Nobody knows yet; the VM waits.
    Waiting {
        /// For whom, and what to do.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The ledger was asked to write the grant.
    Granting,
    /// It is durable; the target has to answer.
    Granted,
    /// The target gave it back; the ledger was asked to hold the next epoch.
    TakingBack,
    /// A source that only holds: it tells a target left over from an older move to let go.
    Holding,
    Over,
}

/// The handover, seen from the source.
#[derive(Debug)]
pub struct SourceHandover {
    record: Record,
    state: State,
}

impl SourceHandover {
    /// Begins with the decision: the record is to be written.
    pub fn begin(record: Record) -> (Self, SourceAct) {
        (Self { record, state: State::Granting }, SourceAct::Write(record))
    }

    /// Continues from the ledger of a process that died.
    pub fn restarted(record: Record) -> Self {
        let state = if record.right == Right::Granted { State::Granted } else { State::Holding };
        Self { record, state }
    }

    /// The ledger has the record.
    pub fn written(&mut self) -> Vec<SourceAct> {
        match self.state {
            State::Granting => {
                self.state = State::Granted;
                vec![self.grant()]
            }
            State::TakingBack => self.back(),
            State::Granted | State::Holding | State::Over => vec![],
        }
    }

    /// The ledger could not write. A grant that is not durable was not sent, and never will be.
    pub fn write_failed(&mut self, error: &str) -> Vec<SourceAct> {
        match self.state {
            State::Granting => {
                self.state = State::Over;
                vec![SourceAct::Back { epoch: self.record.epoch - 1 }]
            }
            // The target has durably given the epoch back, so nobody else can run the VM: wait for the ledger, not for the target.
            State::TakingBack => {
                self.state = State::Granted;
                let reason = format!(
                    "the target released epoch {}, but the ledger here cannot be written ({error}): mend it, then migrate again",
                    self.record.epoch
                );
                vec![SourceAct::Waiting { reason }]
            }
            State::Granted | State::Holding | State::Over => vec![],
        }
    }

    /// A message of the target.
    pub fn message(&mut self, message: &FromTarget) -> Vec<SourceAct> {
        let epoch = self.record.epoch;
        match (self.state, message) {
            (State::Granting | State::Granted, FromTarget::Running { epoch: theirs, after_grant_us }) if *theirs == epoch => {
                self.state = State::Over;
                vec![SourceAct::Moved { after_grant_us: *after_grant_us }]
            }
            (State::Granted, FromTarget::Released { epoch: theirs }) if *theirs == epoch => self.take_back(),
            (State::Granted, FromTarget::Prepared { epoch: theirs }) if *theirs == epoch => vec![self.grant()],
            (State::Granted, FromTarget::Refuse { reason } | FromTarget::Abort { reason }) => {
                vec![SourceAct::Waiting { reason: format!("epoch {epoch} was granted, but the target does not answer for it: {reason}") }]
            }
            (State::Holding, FromTarget::Released { .. }) => {
                self.state = State::Over;
                vec![SourceAct::Dismissed]
            }
            _ => vec![],
        }
    }

    /// A new connection to the target stands: it hears what the ledger says.
    pub fn reconnected(&mut self) -> Vec<SourceAct> {
        match self.state {
            State::Granted | State::Holding => vec![SourceAct::Send(FromSource::Resume { record: self.record })],
            State::Granting | State::TakingBack | State::Over => vec![],
        }
    }

    /// The link is cut, or the target is silent.
    pub fn unanswered(&mut self, why: &str) -> Vec<SourceAct> {
        match self.state {
            State::Granting | State::Granted => {
                let Record { epoch, move_id, .. } = self.record;
                let reason = format!(
                    "epoch {epoch} is granted to the target of move {move_id}, which has not answered ({why}): the VM waits for it; migrate to the same target again to ask it"
                );
                vec![SourceAct::Waiting { reason }]
            }
            State::TakingBack | State::Holding | State::Over => vec![],
        }
    }

    fn grant(&self) -> SourceAct {
        SourceAct::Send(FromSource::Granted { epoch: self.record.epoch, move_id: self.record.move_id })
    }

    fn take_back(&mut self) -> Vec<SourceAct> {
        self.state = State::TakingBack;
        vec![SourceAct::Write(Record { right: Right::Holding, epoch: self.record.epoch + 1, ..self.record })]
    }

    fn back(&mut self) -> Vec<SourceAct> {
        self.state = State::Over;
        vec![SourceAct::Back { epoch: self.record.epoch + 1 }]
    }
}
