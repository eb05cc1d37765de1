//! Jobs: long work with progress. `GET /v1/jobs`, `GET /v1/jobs/{id}`; `GET /v1/jobs/{id}/events` is a stream of
//! server-sent events, each a whole [`Job`] as JSON under the event name `job`; the stream ends after the one whose state is
//! not `running`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiError;

/// Long work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// In words: `move vm web to host b2`.
    pub what: String,
    /// Whether it is at it.
    pub state: JobState,
    /// How far it is.
    pub progress: JobProgress,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
    /// What it made: the object's own type, as `GET` on it would answer, or the report of a move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// Its agent ended while it was at it, and nobody has ordered it again: what it was about tells how far it came.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
}

/// The header that names an order: 32 hexadecimal digits, chosen at random by whoever gives it. The same order is carried out once, however
/// often it comes: who did not hear the answer gives it again.
pub const ORDER: &str = "rebec-order";

/// Where a job is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// At it.
    Running,
    /// All of it was done.
    Done,
    /// It could not be done; `error` says why.
    Failed,
}

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    /// One phrase: `fetching image debian from a1`, `round 2`.
    pub phase: String,
    /// Bytes done in this phase.
    pub done_bytes: u64,
    /// Bytes of this phase; 0 when that is not known.
    pub total_bytes: u64,
}
