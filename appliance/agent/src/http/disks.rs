//! `/v1/vms/{name}/resize-disk`, `/v1/vms/{name}/disks`: at the VM's home, whose word its record is.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, FromRequest, Path, State},
    http::Request,
    response::{IntoResponse, Response},
};
use rebec_api::{
    ApiError, ErrorCode,
    vm::{ResizeDisk, VmDisk},
};
use rebec_book::{
    authority::{Granted, Question},
    record::{ROOT_DISK, SeenState, VmBody},
    view,
};

use super::{
    Caller,
    answer::{Answer, Failure, Json},
    forward, rights,
    vms::{self, Whereabouts},
};
use crate::{
    agent::Agent,
    names,
    orders::disks::{self, DisksOrder},
    vm::disks::take_over as take_over_here,
};

/// `POST /v1/vms/{name}/resize-disk`
pub async fn resize(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (found, request) = match at_home(&agent, &granted, request).await? {
        Ok(here) => here,
        Err(answer) => return Ok(answer),
    };
    let Json(ResizeDisk { bytes, disk }) = Json::<ResizeDisk>::from_request(request, &()).await?;
    let bytes = disks::checked_bytes(bytes)?;
    let name = disk.as_deref().unwrap_or(ROOT_DISK);
    changed(&agent, &found, |body| disks::resized(body, name, bytes)).await
}

/// `POST /v1/vms/{name}/disks`
pub async fn add(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (found, request) = match at_home(&agent, &granted, request).await? {
        Ok(here) => here,
        Err(answer) => return Ok(answer),
    };
    let Json(new) = Json::<VmDisk>::from_request(request, &()).await?;
    names::check("disk", &new.name)?;
    disks::checked_bytes(new.bytes)?;
    require_still(&agent, &found)?;
    changed(&agent, &found, |body| disks::added(body, &new)).await
}

/// `DELETE /v1/vms/{name}/disks/{disk}`
pub async fn remove(
    State(agent): State<Arc<Agent>>,
    Extension(granted): Extension<Granted>,
    Path((_, disk)): Path<(String, String)>,
    request: Request<Body>,
) -> Result<Response, Failure> {
    let (found, _) = match at_home(&agent, &granted, request).await? {
        Ok(here) => here,
        Err(answer) => return Ok(answer),
    };
    require_still(&agent, &found)?;
    changed(&agent, &found, |body| disks::removed(body, &disk)).await
}

/// Where the VM is whose home this is, or the answer of the host that is its home.
pub(super) async fn at_home(
    agent: &Arc<Agent>,
    granted: &Granted,
    request: Request<Body>,
) -> Result<Result<(Whereabouts, Request<Body>), Response>, Failure> {
    let found = vms::find(agent, granted)?;
    if found.home == agent.knowledge.key() {
        return Ok(Ok((found, request)));
    }
    Ok(Err(forward::about(agent, &found.home, found.id, request).await?.into_response()))
}

pub(super) async fn changed(
    agent: &Arc<Agent>,
    found: &Whereabouts,
    how: impl FnOnce(&mut VmBody) -> Result<(), ApiError>,
) -> Result<Response, Failure> {
    disks::change(&agent.orders, found.id, how).await?;
    Ok(axum::Json(vms::info(agent, found.id)?).into_response())
}

/// Disks come and go between two starts.
fn require_still(agent: &Agent, found: &Whereabouts) -> Result<(), ApiError> {
    let state = agent.knowledge.pool(|book| view::seen(book, found.id).map(|seen| seen.body.state))?;
    if matches!(state, None | Some(SeenState::Stopped | SeenState::Failed)) {
        return Ok(());
    }
    let name = &found.name;
    Err(ApiError::new(
        ErrorCode::Conflict,
        format!("VM {name} runs: a disk comes or goes while it is stopped; `rebec vm stop {name}` first"),
    ))
}

/// `POST /internal/disks`: from the VM's home.
pub async fn take_over(State(agent): State<Arc<Agent>>, Extension(caller): Extension<Caller>, Json(order): Json<DisksOrder>) -> Answer<()> {
    agent.peers.learn(order.records);
    rights::ask(&agent, caller, Question::Disks(order.vm)).await?;
    // One that is not here takes it over when it starts.
    match agent.vms.get(&order.vm) {
        Some(vm) => Ok(axum::Json(take_over_here(&agent.vms, &vm).await?)),
        None => Ok(axum::Json(())),
    }
}
