//! The target's end of the handover: from a complete machine to the certainty of who runs the VM. It is all that a target
//! restarted from its ledger has, so it knows nothing of memory. The table is docs/formats/handover.md.

use crate::{
    ledger::{MoveId, Record, Right},
    message::{FromSource, FromTarget},
};

/// What the rest of the target does for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetAct {
    /// Make this record durable, then say so.
    Write(Record),
    /// Send this.
    Send(FromTarget),
    /// Start the vCPUs.
    Run {
        /// The epoch it holds.
        epoch: u64,
    },
    /// The VM will not run here.
    Over {
        /// Why.
        reason: String,
    },
    /// It waits, and has said so.
    Waiting {
        /// For whom.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The ledger was asked to write that the machine is complete.
    Preparing,
    /// It is durable: the source decides.
    Prepared,
    /// Granted; the ledger was asked to write that it runs.
    Starting,
    /// It runs, or ran when this process died.
    Running,
    /// The ledger was asked to write that it is given back.
    Releasing,
    Released,
    /// It was granted, but the ledger can be written neither way.
    Stuck,
    Over,
}

/// The handover, seen from the target.
#[derive(Debug)]
pub struct TargetHandover {
    record: Record,
    state: State,
    why: String,
}

impl TargetHandover {
    /// Begins with a complete machine: the record is to be written.
    pub fn begin(record: Record) -> (Self, TargetAct) {
        (Self { record, state: State::Preparing, why: String::new() }, TargetAct::Write(record))
    }

    /// Continues from the ledger of a process that died; `None` if it says nothing about a move to here.
    pub fn restarted(record: Record) -> Option<(Self, Vec<TargetAct>)> {
        let why = "its process was killed before it ran".to_owned();
        match record.right {
            Right::Prepared => {
                let mut settlement = Self { record, state: State::Prepared, why: String::new() };
                let actions = settlement.release(&why);
                Some((settlement, actions))
            }
            Right::Running => Some((Self { record, state: State::Running, why: String::new() }, vec![])),
            Right::Released => Some((Self { record, state: State::Released, why }, vec![])),
            Right::Holding | Right::Granted => None,
        }
    }

    /// Whether the VM may have the target's instructions executed.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Whether the source has granted.
    pub fn is_granted(&self) -> bool {
        matches!(self.state, State::Starting | State::Running | State::Stuck)
    }

    /// The ledger has the record.
    pub fn written(&mut self) -> Vec<TargetAct> {
        let epoch = self.record.epoch;
        match self.state {
            State::Preparing => {
                self.state = State::Prepared;
                vec![TargetAct::Send(FromTarget::Prepared { epoch })]
            }
            State::Starting => {
                self.state = State::Running;
                vec![TargetAct::Run { epoch }]
            }
            State::Releasing => {
                self.state = State::Released;
                vec![TargetAct::Send(FromTarget::Released { epoch }), TargetAct::Over { reason: self.why.clone() }]
            }
            State::Prepared | State::Running | State::Released | State::Stuck | State::Over => vec![],
        }
    }

    /// The ledger could not write.
    pub fn write_failed(&mut self, error: &str) -> Vec<TargetAct> {
        match self.state {
            State::Preparing => {
                self.state = State::Over;
                let reason = format!("the target's ledger cannot be written: {error}");
                vec![TargetAct::Send(FromTarget::Abort { reason: reason.clone() }), TargetAct::Over { reason }]
            }
            State::Starting => self.release(&format!("the target's ledger cannot be written: {error}")),
            State::Releasing => {
                self.state = State::Stuck;
                vec![TargetAct::Waiting {
                    reason: format!(
                        "the ledger can record neither that the VM runs nor that it is released ({error}): mend it, then restart this target"
                    ),
                }]
            }
            State::Prepared | State::Running | State::Released | State::Stuck | State::Over => vec![],
        }
    }

    /// A message of the source.
    pub fn message(&mut self, message: &FromSource) -> Vec<TargetAct> {
        match message {
            FromSource::Granted { epoch, move_id } => self.granted(*epoch, *move_id),
            FromSource::Resume { record } => self.resumed(record),
            // Another move of this VM: its source holds it, so it has not granted ours, and that move is over.
            FromSource::Offer { shape, .. } | FromSource::OfferWithRoom { shape, .. } => {
                self.resumed(&Record { right: Right::Holding, vm: shape.vm, epoch: shape.epoch, move_id: MoveId::NONE })
            }
            // The source never grants a move that it has aborted.
            FromSource::Abort { reason } if self.state == State::Prepared => self.release(&format!("the source runs on: {reason}")),
            _ => vec![],
        }
    }

    /// This side's user wants it gone.
    pub fn cancel(&mut self) -> Vec<TargetAct> {
        match self.state {
            State::Prepared => self.release("cancelled at the target"),
            _ => vec![],
        }
    }

    /// The link is cut.
    pub fn unanswered(&mut self, why: &str) -> Vec<TargetAct> {
        match self.state {
            State::Preparing | State::Prepared => {
                let Record { epoch, move_id, .. } = self.record;
                vec![TargetAct::Waiting {
                    reason: format!(
                        "epoch {epoch} is prepared here by move {move_id}; its source has neither granted nor called it off ({why}): it has to connect again"
                    ),
                }]
            }
            _ => vec![],
        }
    }

    fn granted(&mut self, epoch: u64, move_id: MoveId) -> Vec<TargetAct> {
        if (epoch, move_id) != (self.record.epoch, self.record.move_id) {
            return vec![];
        }
        match self.state {
            State::Prepared => {
                self.state = State::Starting;
                vec![TargetAct::Write(Record { right: Right::Running, ..self.record })]
            }
            _ => self.standing(),
        }
    }

    /// The first message on a new connection: the source says where it stands, and only one thing can follow.
    fn resumed(&mut self, theirs: &Record) -> Vec<TargetAct> {
        if theirs.vm != self.record.vm {
            return vec![TargetAct::Send(FromTarget::Refuse { reason: format!("this target is of VM {}", self.record.vm) })];
        }
        match theirs.right {
            Right::Granted => self.granted(theirs.epoch, theirs.move_id),
            // The source holds the VM at the epoch before ours, so it has not granted ours, and a source that was
            // restarted never will; or it holds a later one.
            Right::Holding | Right::Running if self.state == State::Prepared => self.release("the source runs on"),
            _ => self.standing(),
        }
    }

    fn standing(&self) -> Vec<TargetAct> {
        let epoch = self.record.epoch;
        match self.state {
            State::Prepared => vec![TargetAct::Send(FromTarget::Prepared { epoch })],
            State::Running => vec![TargetAct::Send(FromTarget::Running { epoch, after_grant_us: 0 })],
            State::Released => vec![TargetAct::Send(FromTarget::Released { epoch })],
            State::Preparing | State::Starting | State::Releasing | State::Stuck | State::Over => vec![],
        }
    }

    fn release(&mut self, why: &str) -> Vec<TargetAct> {
        self.state = State::Releasing;
        self.why = why.to_owned();
        vec![TargetAct::Write(Record { right: Right::Released, ..self.record })]
    }
}
