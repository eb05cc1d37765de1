//! `/v1/pool`, `/v1/domains`, `/v1/invitations`.

use std::sync::Arc;

use axum::extract::{Path, State};
use rebec_api::{
    ApiError, ErrorCode,
    pool::{DomainInfo, DomainKey, InitPool, Invitation, Invite, Invited, JoinPool, PoolStatus},
    screen::Join,
};
use rebec_book::{key::Name, view};

use super::{
    answer::{Answer, Failure, Json},
    shown,
};
use crate::{agent::Agent, chance::now_s, invitations, pool};

/// `GET /v1/pool`
pub async fn status(State(agent): State<Arc<Agent>>) -> Answer<PoolStatus> {
    Ok(axum::Json(pool_status(&agent)))
}

/// How this host stands.
pub fn pool_status(agent: &Agent) -> PoolStatus {
    let join = match &*agent.membership.watch().borrow() {
        Join::Alone => "alone: no pool and no ticket".to_owned(),
        Join::Joining { what } => format!("joining: {what}"),
        Join::Joined { .. } => "joined".to_owned(),
        Join::Refused { reason } => format!("refused: {reason}"),
    };
    let host = agent.knowledge.own_name();
    let known = agent.knowledge.read(|book| {
        let hosts = view::hosts(book);
        let reachable = hosts.iter().filter(|host| agent.peers.answers(&host.key)).count() as u32;
        let own = book.own_domain();
        let domains = view::domains(book);
        PoolStatus {
            pool: view::pool_name(book).map(str::to_owned),
            key: Some(book.pool().to_string()),
            host: host.clone(),
            host_key: agent.knowledge.key().to_string(),
            domain: domains.iter().find(|domain| Some(domain.body.key) == own).map(|domain| domain.name.clone()),
            domains: domains.len() as u32,
            hosts: hosts.len() as u32,
            hosts_reachable: reachable,
            vms: view::vms(book).len() as u32,
            join: join.clone(),
            versions: shown::versions(book),
        }
    });
    let host_key = agent.knowledge.key().to_string();
    let alone = || PoolStatus {
        pool: None,
        key: None,
        host,
        host_key,
        domain: None,
        domains: 0,
        hosts: 0,
        hosts_reachable: 0,
        vms: 0,
        join,
        versions: None,
    };
    known.unwrap_or_else(alone)
}

/// `POST /v1/pool`
pub async fn init(State(agent): State<Arc<Agent>>, Json(new): Json<InitPool>) -> Answer<PoolStatus> {
    pool::init(&agent.membership, &new)?;
    Ok(axum::Json(pool_status(&agent)))
}

/// `POST /v1/pool/join`
pub async fn join(State(agent): State<Arc<Agent>>, Json(wish): Json<JoinPool>) -> Answer<PoolStatus> {
    pool::join(&agent.membership, &wish.ticket).await?;
    Ok(axum::Json(pool_status(&agent)))
}

/// `POST /v1/pool/leave`
pub async fn leave(State(agent): State<Arc<Agent>>) -> Answer<PoolStatus> {
    pool::leave(&agent.membership).await?;
    Ok(axum::Json(pool_status(&agent)))
}

/// `GET /v1/domains`
pub async fn domains(State(agent): State<Arc<Agent>>) -> Answer<Vec<DomainInfo>> {
    Ok(axum::Json(agent.knowledge.pool(shown::domains)?))
}

/// `POST /v1/hosts/invite`
pub async fn invite_host(State(agent): State<Arc<Agent>>, Json(wish): Json<Invite>) -> Answer<Invited> {
    Ok(axum::Json(pool::invite(&agent.membership, &wish, None)?))
}

/// `POST /v1/domains/invite`
pub async fn invite_domain(State(agent): State<Arc<Agent>>, Json(wish): Json<Invite>) -> Answer<Invited> {
    let missing = || ApiError::new(ErrorCode::BadRequest, "`domain` is missing: the name of the domain that the joiner will found");
    let name = wish.domain.clone().ok_or_else(missing)?;
    Ok(axum::Json(pool::invite(&agent.membership, &wish, Some(name))?))
}

/// `GET /v1/invitations`
pub async fn invitations(State(agent): State<Arc<Agent>>) -> Answer<Vec<Invitation>> {
    Ok(axum::Json(invitations::open(&agent.store, now_s())?))
}

/// `DELETE /v1/invitations/{id}`
pub async fn revoke(State(agent): State<Arc<Agent>>, Path(id): Path<String>) -> Result<(), Failure> {
    Ok(invitations::revoke(&agent.store, &id)?)
}

/// `POST /v1/domain-key/export`
pub async fn export_key(State(agent): State<Arc<Agent>>) -> Answer<DomainKey> {
    let bytes = pool::export_key(&agent.membership)?;
    log::warn!("the domain's root key was exported");
    Ok(axum::Json(DomainKey { key: Name(bytes).to_string() }))
}

/// `POST /v1/domain-key/import`
pub async fn import_key(State(agent): State<Arc<Agent>>, Json(given): Json<DomainKey>) -> Result<(), Failure> {
    let key: Name<32> = given.key.parse().map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("the domain's key: {error}")))?;
    pool::import_key(&agent.membership, &key.0)?;
    log::warn!("the domain's root key was imported");
    Ok(())
}
