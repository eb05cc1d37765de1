//! Users of a domain: keys that sign commands. `GET /v1/users`, `POST /v1/users`, `DELETE /v1/users/{name}`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::token::Role;

/// `POST /v1/users`: a new user, or another role or end for one that there is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// The name, unique in the domain.
    pub name: String,
    /// The user's key, 64 hexadecimal digits, as `rebec user key` prints it.
    pub key: String,
    /// What the user may do.
    pub role: Role,
    /// For how long, in seconds; without it, until the user is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_s: Option<u64>,
}

/// A user of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its key, 64 hexadecimal digits.
    pub key: String,
    /// What it may do.
    pub role: Role,
    /// When that ends, in seconds since 1970; none where it does when the user is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}
