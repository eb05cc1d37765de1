//! What the driver says to the source engine, and what the engine wants of the driver.

use std::time::Duration;

use rebec_bits::BitSet;
use rebec_vmm_api::report::MoveReport;

use super::rounds::{BatchId, ReadBatch, SendBatch};
use crate::{
    ledger::{MoveId, Record},
    message::{FromTarget, Shape},
    page::{Key, Packed, Verdict},
};

/// One move, as the user wants it.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Random, chosen by the driver.
    pub move_id: MoveId,
    /// Random key of the wire digests.
    pub key: Key,
    /// The machine.
    pub shape: Shape,
    /// Data connections.
    pub streams: usize,
    /// Longest pause that the user accepts.
    pub downtime_max: Duration,
    /// Cap on what goes out.
    pub bytes_per_second_max: Option<u64>,
}

/// What happened, from the driver.
#[derive(Debug)]
pub enum SourceInput {
    /// A message arrived.
    Control(FromTarget),
    /// A connection broke, or what came over it was no message.
    Cut(String),
    /// A new connection stands, after [`SourceOutput::Waiting`].
    Reconnected,
    /// The user wants the VM to stay.
    Cancel,
    /// Something local failed: a disk, a worker.
    Failed(String),
    /// To [`SourceOutput::StartDirty`]. Tracking began before it was looked at.
    Populated {
        /// What holds anything but zeros, one set a space.
        data: Vec<BitSet>,
        /// What is zero, one set a disk. What is in neither set is the base's.
        zeros: Vec<BitSet>,
    },
    /// To [`SourceOutput::TakeDirty`]: what was written since the last time, one set a space.
    Dirty(Vec<BitSet>),
    /// To [`SourceOutput::Read`].
    Prepared {
        /// The batch.
        id: BatchId,
        /// One verdict a unit.
        verdicts: Vec<Verdict>,
    },
    /// To [`SourceOutput::Send`] with a head: the frame is written.
    Sent {
        /// The batch.
        id: BatchId,
        /// Bytes of the frame.
        bytes: u64,
        /// How its units went.
        packed: Packed,
    },
    /// To [`SourceOutput::Pause`]: vCPUs and devices stand still.
    Paused {
        /// When the last vCPU stopped.
        stopped: Duration,
    },
    /// To [`SourceOutput::Save`]: `SavedMachine` bytes.
    Saved(Vec<u8>),
    /// To [`SourceOutput::WriteLedger`]: durable.
    LedgerWritten,
    /// To [`SourceOutput::WriteLedger`]: not written; the file was cut back to what it was.
    LedgerFailed(String),
}

/// What to do, for the driver, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceOutput {
    /// Write these bytes to the control connection.
    Control(Vec<u8>),
    /// Start dirty tracking everywhere, then say what is populated.
    StartDirty {
        /// For each disk, whether what comes from its base is left out.
        on_base: Vec<bool>,
    },
    /// Take (and clear) what was written.
    TakeDirty,
    /// Copy and judge units. Batches of one stream are answered, and sent, in order.
    Read(ReadBatch),
    /// Pack and write a batch, or forget it.
    Send(SendBatch),
    /// Hold the vCPUs back for so many percent of the time; 0 ends it.
    Throttle(u8),
    /// Stop vCPUs and devices.
    Pause,
    /// Save the paused machine.
    Save,
    /// Let the VM run on here, at this epoch.
    Resume {
        /// The epoch it is held at.
        epoch: u64,
    },
    /// Append a record and sync it.
    WriteLedger(Record),
    /// The VM stays paused, its memory kept, until the target has spoken.
    Waiting(MoveReport),
    /// It is over: stop dirty tracking and the workers. On [`rebec_vmm_api::report::Outcome::Moved`] the VM here is a shell that forwards late frames.
    Ended(MoveReport),
}
