//! `/v1/tokens`: for users of this host.

use std::sync::Arc;

use axum::extract::{Path, State};
use rebec_api::{
    ApiError, ErrorCode,
    token::{CreatedToken, NewToken, Token},
};
use rebec_book::{authority, warrant::Signer};

use super::answer::{Answer, Failure, Json};
use crate::{agent::Agent, chance::now_s, names, roles, tokens};

/// `GET /v1/tokens`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<Token>> {
    Ok(axum::Json(tokens::list(&agent.store)?))
}

/// `POST /v1/tokens`
pub async fn create(State(agent): State<Arc<Agent>>, Json(new): Json<NewToken>) -> Answer<CreatedToken> {
    names::check("token", &new.name)?;
    if new.valid_s == Some(0) {
        return Err(ApiError::new(ErrorCode::BadRequest, "`valid_s` is 0: give a time of at least a second, or none").into());
    }
    // A token is worth no more than its host.
    let (root, role) = (Signer::root(agent.knowledge.key()), roles::meant(new.role));
    let lacks = agent.knowledge.look(|book| {
        let is_enough = authority::role_of(book, agent.knowledge.key(), now_s(), &root) >= Some(role);
        (!is_enough).then(|| authority::needs_role(book, agent.knowledge.key(), now_s(), &root, "make a token of that role", role))
    });
    if let Some(why) = lacks {
        return Err(ApiError::new(ErrorCode::Forbidden, format!("{why}; or choose a lower --role")).into());
    }
    log::info!("token {} is made", new.name);
    Ok(axum::Json(tokens::create(&agent.store, &new, now_s())?))
}

/// `DELETE /v1/tokens/{name}`
pub async fn remove(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Result<(), Failure> {
    Ok(tokens::remove(&agent.store, &name)?)
}
