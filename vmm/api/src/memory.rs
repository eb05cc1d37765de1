//! What a VMM says of memory that changes while its VM runs; a part of its status.

use serde::{Deserialize, Serialize};

/// How the memory of a VM stands that changes while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Most that its guest may have.
    pub max_bytes: u64,
    /// What it was asked to have.
    pub asked_bytes: u64,
    /// What it has taken. Below what it began with this is the guest's word alone.
    pub taken_bytes: u64,
    /// What the host holds for it.
    pub held_bytes: u64,
    /// What it reported as free since it began here, counted each time.
    #[serde(default)]
    pub reported_bytes: u64,
    /// Requests and pages of its that made no sense, or wanted more than it was asked to have.
    #[serde(default)]
    pub refused: u64,
    /// What it says is free of its memory, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_free_bytes: Option<u64>,
    /// What it says could be had of it without swapping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_available_bytes: Option<u64>,
}
