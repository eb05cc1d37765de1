//! What `rebec-vmm judge` says of a kernel or a disk that can be used, as one line of JSON.

use serde::{Deserialize, Serialize};

/// The answer; what was not asked about is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// What kind of file the kernel is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskJudgement>,
    /// What would start from the disk, if no kernel was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartJudgement>,
}

/// A disk that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskJudgement {
    /// `raw` or `qcow2`.
    pub format: String,
    /// What a guest sees.
    pub bytes: u64,
}

/// What would start from a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartJudgement {
    /// Which entry of what, for people.
    pub from: String,
    /// What kind of file its kernel is.
    pub kernel: String,
    /// Length of its initial RAM disks; 0 without one.
    pub initramfs_bytes: u64,
    /// Its kernel's command line.
    pub cmdline: String,
}
