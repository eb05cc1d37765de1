//! Names: what may be one, and whom one means.

use rebec_api::{ApiError, ErrorCode};
use rebec_book::{Key, record::NAME_BYTES_MAX, view};

use crate::agent::Agent;

/// Refuses what could not be typed, shown or looked up again.
pub fn check(kind: &str, name: &str) -> Result<(), ApiError> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if first && rest && name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    let message =
        format!("{kind} name {shown:?}: expected letters, digits, `-`, `_` and `.`, first a letter or digit, at most {NAME_BYTES_MAX}");
    Err(ApiError::new(ErrorCode::BadRequest, message))
}

/// The host of that name.
pub fn host(agent: &Agent, name: &str) -> Result<Key, ApiError> {
    let found = agent.pool(|book| view::hosts(book).into_iter().find(|host| host.name == name).map(|host| host.key))?;
    found.ok_or_else(|| ApiError::not_found("host", name, "rebec host ls"))
}

/// The domain of that name.
pub fn domain(agent: &Agent, name: &str) -> Result<Key, ApiError> {
    let found = agent.pool(|book| view::domains(book).into_iter().find(|domain| domain.name == name).map(|domain| domain.body.key))?;
    found.ok_or_else(|| ApiError::not_found("domain", name, "rebec domain ls"))
}
