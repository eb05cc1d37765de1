//! The audit log of a host: what was asked there, by whom, and what was decided. `GET /v1/audit`, `GET /v1/audit/verify`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rows that are shown where nobody says how many.
pub const TAIL: u32 = 100;
/// Most rows that are shown at once.
pub const TAIL_MAX: u32 = 10_000;

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRow {
    /// Its number; the first is 1.
    pub seq: u64,
    /// When, in seconds since 1970.
    pub time: u64,
    /// The key of the host that asked, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The role of who gave the command, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The token that was shown; none with a user's own signature and for root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Who gave the command: a user by name, `root@HOST`, or a key that has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The key of the host through which a signed command came, if it was not given here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The question or command, as docs/formats/authority.md names it; `Enter` where a token was not good, `dropped` where decisions found
    /// no place; `changed` where the log was not what it should be when the agent started.
    pub asked: String,
    /// The id of what it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Why it was not granted; none where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Of how many decisions this row is, where it is of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// Hash of the row before.
    pub before: String,
}

/// What came of a walk along the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditVerdict {
    /// The first row that is in the log; those before were dropped when it was full.
    pub first: u64,
    /// The last row, and its hash.
    pub last: Option<AuditMark>,
    /// The last row of which this host told the pool.
    pub told: Option<AuditMark>,
    /// The first row that is wrong; none where the log is whole.
    pub wrong: Option<String>,
}

/// A row and its hash: written `ROW:HASH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditMark {
    /// Its number.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

impl std::fmt::Display for AuditMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl std::str::FromStr for AuditMark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mark = text.split_once(':').and_then(|(seq, hash)| Some(Self { seq: seq.parse().ok()?, hash: hash.to_ascii_lowercase() }));
        let is_hash = |hash: &str| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        mark.filter(|mark| is_hash(&mark.hash)).ok_or_else(|| "expected a row's number, a colon and the 64 digits of its hash".to_owned())
    }
}
