//! Tokens: what lets a client in over TCP. `GET /v1/tokens`, `POST /v1/tokens`, `DELETE /v1/tokens/{name}`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What who shows a token may do, the least first: each may do what those before it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Runs VMs.
    User,
    /// Runs VMs for a scheduler's queue, and says what that wants.
    Scheduler,
    /// Looks after hosts, images and LANs.
    Operator,
    /// Decides who belongs to the domain.
    #[default]
    Admin,
}

/// `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Its name.
    pub name: String,
    /// What it lets its holder do; without it, everything.
    #[serde(default)]
    pub role: Role,
    /// For how long it is good, in seconds; without it, until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u64>,
}

/// A token that lets a client in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What it lets its holder do.
    #[serde(default)]
    pub role: Role,
    /// When it ends, in seconds since 1970; none where it is good until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// Answer to `POST /v1/tokens`. The token is shown once; only its hash is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// Its name.
    pub name: String,
    /// What the client sends as `Authorization: Bearer TOKEN`.
    pub token: String,
}
