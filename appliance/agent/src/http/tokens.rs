//! `/v1/tokens`: for users of this host. Agents of the pool may not make themselves at home here.

use std::sync::Arc;

use axum::extract::{Extension, Path, State};
use rebec_api::{
    ApiError, ErrorCode,
    token::{CreatedToken, NewToken, Token},
};

use super::{
    Caller,
    answer::{Answer, Failure, Json},
    names,
};
use crate::{
    agent::{Agent, now_s},
    tokens,
};

fn only_users(caller: Caller) -> Result<(), ApiError> {
    if caller == Caller::User { Ok(()) } else { Err(ApiError::new(ErrorCode::Forbidden, "tokens are made and seen on their own host")) }
}

/// `GET /v1/tokens`
pub async fn list(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>) -> Answer<Vec<Token>> {
    only_users(caller)?;
    Ok(axum::Json(tokens::list(&agent.store)?))
}

/// `POST /v1/tokens`
pub async fn create(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Json(new): Json<NewToken>,
) -> Answer<CreatedToken> {
    only_users(caller)?;
    names::check("token", &new.name)?;
    log::info!("token {} is made", new.name);
    Ok(axum::Json(tokens::create(&agent.store, &new.name, now_s())?))
}

/// `DELETE /v1/tokens/{name}`
pub async fn remove(
    State(agent): State<Arc<Agent>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<(), Failure> {
    only_users(caller)?;
    Ok(tokens::remove(&agent.store, &name)?)
}
