//! `/v1/hosts`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, FromRequest, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::{
    ApiError, ErrorCode,
    host::{DeclareDead, DrainHost, HostInfo, SetRole},
};
use rebec_book::{
    Key,
    authority::Granted,
    record::{Kind, id_of_key},
};
use rebec_host::failed;

use super::{
    answer::{Answer, Failure, Json},
    forward, jobs, shown,
};
use crate::{agent::Agent, orders::drain, pool, roles};

/// `GET /v1/hosts`
pub async fn list(State(agent): State<Arc<Agent>>) -> Answer<Vec<HostInfo>> {
    Ok(axum::Json(agent.knowledge.pool(|book| shown::hosts(&agent, book))?))
}

/// `GET /v1/hosts/{name}`
pub async fn show(State(agent): State<Arc<Agent>>, Extension(granted): Extension<Granted>) -> Answer<HostInfo> {
    Ok(axum::Json(info(&agent, key(&agent, &granted)?)?))
}

pub(super) fn info(agent: &Agent, host: Key) -> Result<HostInfo, ApiError> {
    let found = agent.knowledge.pool(|book| shown::hosts(agent, book).into_iter().find(|shown| shown.key == host.to_string()))?;
    found.ok_or_else(gone)
}

/// The host that a granted command is about.
pub(super) fn key(agent: &Agent, granted: &Granted) -> Result<Key, ApiError> {
    let id = granted.about().ok_or_else(gone)?;
    agent.knowledge.pool(|book| book.thing(Kind::MEMBER, id).map(|thing| thing.home))?.ok_or_else(gone)
}

fn gone() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "the host has left; `rebec host ls` lists those there are")
}

/// `POST /v1/hosts/{name}/drain`: a job. The host takes no more VMs, and those that run there move away, one after the other; or it takes VMs
/// again.
pub async fn drain(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let host = key(&agent, &granted)?;
    if host != agent.knowledge.key() {
        return Ok(forward::about(&agent, &host, id_of_key(&host), request).await?.into_response());
    }
    let (name, order) = (agent.knowledge.own_name(), jobs::order(request.headers())?);
    let says_nothing = hyper::body::Body::is_end_stream(request.body());
    let DrainHost { undo } = if says_nothing { DrainHost::default() } else { Json::from_request(request, &()).await?.0 };
    let what = if undo { format!("let host {name} take VMs again") } else { format!("drain host {name}") };
    Ok(jobs::begin(&agent, granted.asker(), order, what, async move |agent, reporter| {
        agent.bulletin.set_draining(!undo).map_err(|error| failed(&error))?;
        if !undo {
            drain::empty(&agent.orders, &reporter).await?;
        }
        info(&agent, host)
    })?)
}

/// `POST /v1/hosts/{name}/declare-dead`
pub async fn declare_dead(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Json(wish): Json<DeclareDead>,
) -> Answer<HostInfo> {
    let host = key(&agent, &granted)?;
    log::warn!("host {} is declared dead: {}", agent.knowledge.name_of(&host), wish.reason);
    pool::declare_dead(&agent.membership, host, &wish.reason)?;
    Ok(axum::Json(info(&agent, host)?))
}

/// `POST /v1/hosts/{name}/role`
pub async fn set_role(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Json(wish): Json<SetRole>,
) -> Answer<HostInfo> {
    let host = key(&agent, &granted)?;
    pool::set_role(&agent.membership, host, roles::meant_for_host(wish.role))?;
    log::info!("root at host {} has another role in the domain now", agent.knowledge.name_of(&host));
    Ok(axum::Json(info(&agent, host)?))
}
