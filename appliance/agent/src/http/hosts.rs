//! `/v1/hosts`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::{
    ApiError, ErrorCode,
    host::{DeclareDead, HostInfo},
    vm::MoveVm,
};
use rebec_vmm_api::Outcome;

use super::{
    answer::{Answer, Failure, Json},
    forward, jobs, names, shown,
};
use crate::{
    agent::Agent,
    jobs::Reporter,
    pool, run,
    vm::{Want, create, depart},
};

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

/// `POST /v1/hosts/{name}/drain`: a job. The host takes no more VMs, and those that run there move away, one after the other.
pub async fn drain(State(agent): State<Arc<Agent>>, Path(name): Path<String>, request: Request<Body>) -> Result<Response, Failure> {
    let host = names::host(&agent, &name)?;
    if host != agent.key() {
        return Ok(forward::to(&agent, &host, request).await?.into_response());
    }
    agent.store.set_fact("draining", &true)?;
    run::publish_host(&agent);
    Ok(jobs::begin(&agent, format!("drain host {name}"), async move |agent, reporter| {
        empty(&agent, &reporter).await?;
        find(&agent, &name).map_err(|Failure(error)| error)
    }))
}

/// Moves every running VM away; those that find no place stay and are named.
async fn empty(agent: &Arc<Agent>, reporter: &Reporter) -> Result<(), ApiError> {
    let mut details = vec![];
    for vm in agent.local_vms() {
        let kept = vm.kept();
        if kept.want != Want::Running {
            continue;
        }
        let moved = async {
            let chosen = create::place(agent, &kept.body, None, None, Some(&kept))?;
            let peer = agent.peer(&chosen.key).ok_or_else(|| ApiError::not_found("host", &chosen.name, "rebec host ls"))?;
            depart::depart(agent, &vm, &peer, &MoveVm::default(), reporter).await
        };
        match moved.await {
            Ok(report) if report.outcome == Outcome::Moved => {}
            Ok(report) => details.push(format!("{}: {}", kept.body.name, report.reason.unwrap_or_default())),
            Err(error) => details.push(format!("{}: {error}", kept.body.name)),
        }
    }
    if details.is_empty() {
        return Ok(());
    }
    let message = format!("{} VMs stay on host {}, which takes no others", details.len(), agent.own_name());
    Err(ApiError { code: ErrorCode::Refused, message, details })
}

/// `POST /v1/hosts/{name}/declare-dead`
pub async fn declare_dead(State(agent): State<Arc<Agent>>, Path(name): Path<String>, Json(wish): Json<DeclareDead>) -> Answer<HostInfo> {
    let host = names::host(&agent, &name)?;
    log::warn!("host {name} is declared dead: {}", wish.reason);
    pool::declare_dead(&agent, host, &wish.reason)?;
    find(&agent, &name).map(axum::Json)
}
