//! `/v1/hosts`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::{
    ApiError,
    host::{DeclareDead, HostInfo},
};

use super::{
    answer::{Answer, Failure, Json},
    forward, names, shown,
};
use crate::{agent::Agent, pool, run};

/// `GET /v1/hosts`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<HostInfo>> {
    Ok(axum::Json(agent.pool(|book| shown::hosts(&agent, book))?))
}

/// `GET /v1/hosts/{name}`
pub async fn show(State(agent): State<Arc<Agent>>, Path(name): Path<String>) -> Answer<HostInfo> {
    find(&agent, &name).map(axum::Json)
}

fn find(agent: &Agent, name: &str) -> Result<HostInfo, Failure> {
    let found = agent.pool(|book| shown::hosts(agent, book).into_iter().find(|host| host.name == name))?;
    Ok(found.ok_or_else(|| ApiError::not_found("host", name, "rebec host ls"))?)
}

/// `POST /v1/hosts/{name}/drain`: the host takes no more VMs and says which it still has.
pub async fn drain(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let host = names::host(&agent, &name)?;
    if host != agent.key() {
        return Ok(forward::to(&agent, &host, request).await?.into_response());
    }
    agent.store.set_fact("draining", &true)?;
    run::publish_host(&agent);
    Ok(axum::Json(find(&agent, &name)?).into_response())
}

/// `POST /v1/hosts/{name}/declare-dead`
pub async fn declare_dead(State(agent): State<Arc<Agent>>, Path(name): Path<String>, Json(wish): Json<DeclareDead>) -> Answer<HostInfo> {
    let host = names::host(&agent, &name)?;
    log::warn!("host {name} is declared dead: {}", wish.reason);
    pool::declare_dead(&agent, host, &wish.reason)?;
    find(&agent, &name).map(axum::Json)
}
