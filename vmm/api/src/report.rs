//! The one JSON object that ends a move: what happened and what it cost.

use serde::{Deserialize, Serialize};

/// How a move ended, and so the exit code of `ctl migrate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The VM runs at the target.
    Moved,
    /// The VM runs on at the source.
    Failed,
    /// The right to run it was granted and its holder has not answered: the VM waits.
    Waiting,
}

impl Outcome {
    /// The exit code that tells scripts the same.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Moved => 0,
            Self::Failed => 1,
            Self::Waiting => 3,
        }
    }
}

/// How many 4 KiB units travelled, by the form they took. Repeats count each time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitCounts {
    /// Dirty, but equal to what was last sent: nothing was sent.
    pub unchanged: u64,
    /// All zero: only the range was named.
    pub zero: u64,
    /// The target held the content: only the digest was sent.
    pub digest: u64,
    /// Sent in a compressed batch.
    pub compressed: u64,
    /// Sent as it is, because compression gained nothing.
    pub raw: u64,
    /// Of a base that the target has too: nothing was said of it.
    pub on_base: u64,
}

/// What a move did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, when it did not end with the VM at the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// From the request to the end.
    pub total_ms: u64,
    /// Last vCPU stopped at the source to first vCPU running at the target.
    pub downtime_ms: u64,
    /// Everything that the source put on the streams.
    pub wire_bytes: u64,
    /// Passes over memory and disk, the last one (with the VM paused) included.
    pub rounds: u32,
    /// Parallel streams.
    pub streams: u32,
    /// Memory, in 4 KiB pages.
    pub pages: UnitCounts,
    /// Disks, in 4 KiB units.
    pub clusters: UnitCounts,
    /// Size of the memory that moved.
    pub memory_bytes: u64,
    /// Size of the disks that moved.
    pub disk_bytes: u64,
}
