//! `/v1/users`: keys to which this host's domain gave a role.

use std::sync::Arc;

use axum::extract::{Path, State};
use rebec_api::{
    ApiError, ErrorCode,
    user::{NewUser, User},
};
use rebec_book::{
    Book,
    key::{Key, is_key},
    record::UserBody,
};

use super::answer::{Answer, Failure, Json};
use crate::{agent::Agent, chance::now_s, names, pool, roles};

/// `GET /v1/users`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<User>> {
    Ok(axum::Json(
        agent.knowledge.pool(|book| book.own_domain().map_or_else(Vec::new, |own| book.users(&own).into_iter().map(shown).collect()))?,
    ))
}

fn shown(user: &UserBody) -> User {
    User { name: user.name.clone(), key: user.key.to_string(), role: roles::said(user.role), expires: user.until }
}

/// `POST /v1/users`: a key that is a user already gets the new name, role and end.
pub async fn add(State(agent): State<Arc<Agent>>, Json(new): Json<NewUser>) -> Answer<User> {
    names::check("user", &new.name)?;
    let key: Key = new.key.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("the user's key: {error}")))?;
    if !is_key(&key) {
        return Err(ApiError::new(ErrorCode::BadRequest, "the user's key is no Ed25519 key; `rebec user key` prints the user's").into());
    }
    if new.valid_s == Some(0) {
        return Err(ApiError::new(ErrorCode::BadRequest, "`valid_s` is 0: give a time of at least a second, or none").into());
    }
    let taken = |book: &Book| {
        let own = book.own_domain()?;
        book.users(&own).into_iter().find(|user| user.name == new.name && user.key != key).map(|user| user.key)
    };
    if let Some(other) = agent.knowledge.pool(taken)? {
        let message = format!("user `{}` is the key {other}; choose another name, or `rebec user rm {}` first", new.name, new.name);
        return Err(ApiError::new(ErrorCode::Conflict, message).into());
    }
    let until = new.valid_s.map(|valid_s| now_s().saturating_add(valid_s));
    let user = pool::set_user(&agent.membership, key, &new.name, roles::meant(new.role), until)?;
    log::info!("user {} ({}) has the role {} now", user.name, key.short(), user.role);
    Ok(axum::Json(shown(&user)))
}

/// `DELETE /v1/users/{name}`
pub async fn remove(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Result<(), Failure> {
    let found = agent.knowledge.pool(|book| {
        let own = book.own_domain()?;
        book.users(&own).into_iter().find(|user| user.name == name).map(|user| user.key)
    })?;
    let key = found.ok_or_else(|| ApiError::not_found("user", &name, "rebec user ls"))?;
    pool::remove_user(&agent.membership, key)?;
    log::info!("user {name} ({}) has no role any more", key.short());
    Ok(())
}
